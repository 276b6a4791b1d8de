"""How near the expected cost of a supernet search ends to its budget, and whether the policy keeps it: budgets times seeds.

    OMP_NUM_THREADS=1 python benchmarks/budget_control.py recipes/gmpq_digits.toml --out runs/control [--data-root DIR]
        [--budgets w4a4 w3a3 w2a2] [--seeds 0 1 2] [--methods gmpq edmips] [--json FILE]

A run folder for every seed and method, with a level for every budget of BitOps, up to the solve. Nothing is tuned for any of them. Runs
resume. On a recipe with a source, the search is steered on the source, and the policy keeps the budget on the target.
"""

import argparse
import json
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bitalloc.files import write_json
from bitalloc.pipeline.recipe import Recipe
from bitalloc.pipeline.run import run_recipe
from bitalloc.pipeline.run_folder import RunFolder


def ends(path: Path, out: Path, data_root: Path | None, method: str, budgets: Sequence[str], seed: int) -> Iterator[dict[str, Any]]:
    """Where the searches of one run end: expected cost over limit, and use of the budget by the policy."""
    values = tomllib.loads(path.read_text(encoding="utf-8"))
    values["supernet"]["method"] = method
    levels = [{"name": budget, "budgets": {"bitops": budget}} for budget in budgets]
    recipe = Recipe.model_validate(values | {"seed": seed, "levels": levels})
    folder = out / f"{method}_seed={seed}"
    run_recipe(recipe, folder, data_root=data_root, until="search")
    home, source = RunFolder(folder, recipe), RunFolder(folder / ("" if recipe.source is None else "source"), recipe)
    for level in recipe.levels:
        search, solved = (
            json.loads(where.level_path(level, name).read_text(encoding="utf-8"))["budgets"][0]
            for where, name in ((source, "supernet.json"), (home, "search.json"))
        )
        yield {
            "method": method,
            "budget": level.name,
            "seed": seed,
            "expected_over_limit": search["expected"] / search["limit"],
            "policy_over_limit": solved["used"] / solved["limit"],
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--budgets", nargs="+", default=["w4a4", "w3a3", "w2a2"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", default=["gmpq", "edmips"])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found = []
    for method in arguments.methods:
        for seed in arguments.seeds:
            for end in ends(arguments.recipe, arguments.out, arguments.data_root, method, arguments.budgets, seed):
                found.append(end)
                told = f"expected {end['expected_over_limit'] - 1:+.3%} of the limit, policy {end['policy_over_limit'] - 1:+.3%}"
                print(f"{method} {end['budget']} seed {seed}: {told}", flush=True)
    worst = max(abs(end["expected_over_limit"] - 1) for end in found)
    print(f"largest distance {worst:.3%}; policies within their budgets: {all(end['policy_over_limit'] <= 1 for end in found)}")
    if arguments.json:
        write_json(arguments.json, {"ends": found})


if __name__ == "__main__":
    main()
