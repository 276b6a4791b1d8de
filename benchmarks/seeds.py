"""Mixed against uniform over seeds: a sweep over the seed of a recipe, with the mean difference and its spread.

    python benchmarks/seeds.py recipes/digits.toml --out runs/digits_seeds --seeds 0 1 2 [--data-root DIR] [--json FILE]

The seed moves the float training, the measurement and the fine-tuning together; both sides get the same. Runs resume. ``--json`` writes
the summaries of all runs.
"""

import argparse
import json
from pathlib import Path

from rich.console import Console

from bitalloc.pipeline.sweep import run_sweep
from bitalloc.pipeline.sweep_tables import sweep_table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    report = run_sweep(
        arguments.recipe,
        arguments.out,
        {"seed": arguments.seeds},
        data_root=arguments.data_root,
        say=lambda line: print(line, flush=True),
        command=["python", "benchmarks/seeds.py", str(arguments.recipe), "--seeds", *map(str, arguments.seeds)],
    )
    Console(highlight=False, markup=False).print(sweep_table(report))
    if any(run["status"] == "failed" for run in report["runs"]):
        raise SystemExit(1)
    if arguments.json:
        summaries = [json.loads((arguments.out / run["name"] / "summary.json").read_text(encoding="utf-8")) for run in report["runs"]]
        arguments.json.write_text(json.dumps(summaries, indent=2) + "\n")


if __name__ == "__main__":
    main()
