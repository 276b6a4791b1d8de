"""Mixed against uniform over seeds: runs a recipe once a seed and prints every result, the mean difference and its spread.

    python benchmarks/seeds.py recipes/digits.toml --out runs/digits_seeds --seeds 0 1 2 [--data-root DIR] [--json FILE]

The seed moves the float training, the measurement and the fine-tuning together; both sides get the same. Runs resume.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from bitalloc import load_recipe, run_recipe
from bitalloc.training import make_progress


def differences(summaries: list[dict[str, Any]], index: int) -> list[float]:
    return [100 * (s["levels"][index]["mixed_top1"] - s["levels"][index]["uniform_top1"]) for s in summaries]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    summaries = []
    for seed in arguments.seeds:
        folder = arguments.out / f"seed{seed}"
        summary = run_recipe(
            load_recipe(arguments.recipe, {"seed": seed}),
            folder,
            data_root=arguments.data_root,
            progress=make_progress(quiet=True),
            say=lambda line, seed=seed: print(f"seed {seed}: {line}", flush=True),
            command=["python", "benchmarks/seeds.py", str(arguments.recipe), "--seeds", str(seed)],
        )
        assert summary is not None  # the run was not limited to a stage
        summaries.append(summary)
    print("\nlevel      seed   float   mixed  uniform  reversed  ONNX agrees")
    for index, level in enumerate(summaries[0]["levels"]):
        for summary in summaries:
            row = summary["levels"][index]
            figures = [summary["float_top1"], row["mixed_top1"], row["uniform_top1"], row["reversed_top1"], row["onnx_agreement"]]
            shown = "  ".join("      -" if value is None else f"{100 * value:7.2f}" for value in figures)
            print(f"{level['name']:10} {summary['seed']:4} {shown}")
        gained = differences(summaries, index)
        spread = statistics.stdev(gained) if len(gained) > 1 else 0.0
        print(f"{level['name']:10} mixed - uniform: mean {statistics.mean(gained):+.2f} points, standard deviation {spread:.2f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(summaries, indent=2) + "\n")


if __name__ == "__main__":
    main()
