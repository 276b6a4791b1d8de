"""What the runs of a sweep gave, side by side, and over seeds."""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from bitalloc.pipeline.recipe import Recipe
from bitalloc.pipeline.result_tasks import kinds
from bitalloc.pipeline.run_folder import RunFolder, read_report
from bitalloc.pipeline.training_tasks import load_policy
from bitalloc.pipeline.workspace import Workspace
from bitalloc.training import Silent

SEED = "seed"
COSTS = ("bitops", "weight_bytes", "model_bytes")

Json = Mapping[str, Any]


def results(recipe: Recipe, folder: Path, data_root: Path | None) -> dict[str, Any]:
    """The results of a finished run: the float model's top-1, and of every level and policy top-1 on the test images and costs."""
    work = Workspace(recipe, RunFolder(folder, recipe), data_root, Silent())
    evaluation = read_report(work.folder.path("evaluation.json"), "float_top1", "levels")
    description = work.description()
    costs = work.costs(description, work.space(description))
    rows = []
    for level in recipe.levels:
        for kind in kinds(level):
            bits = load_policy(work, level, kind).bits
            top1 = evaluation["levels"][level.name][f"{kind}_top1"]
            rows.append({"level": level.name, "kind": kind, "top1": top1, **{name: costs.used(name, bits) for name in COSTS}})
    return {"float_top1": evaluation["float_top1"], "policies": rows}


def over_seeds(runs: Sequence[Json]) -> list[dict[str, Any]]:
    """Mean and spread over the seeds of the finished runs, one entry for each other combination of settings, level and policy.

    The spread is the sample standard deviation, None for one run. ``gain`` is the top-1 above the uniform policy of the same run.
    """
    groups: dict[str, list[tuple[Json, Json, float | None]]] = {}
    for run in runs:
        if run["status"] != "done":
            continue
        settings = {key: value for key, value in run["settings"].items() if key != SEED}
        uniform = {row["level"]: row["top1"] for row in run["policies"] if row["kind"] == "uniform"}
        for row in run["policies"]:
            gain = row["top1"] - uniform[row["level"]] if row["kind"] != "uniform" and row["level"] in uniform else None
            key = json.dumps([settings, row["level"], row["kind"]])
            groups.setdefault(key, []).append((settings, row, gain))
    return [_group(members) for members in groups.values()]


def _group(members: Sequence[tuple[Json, Json, float | None]]) -> dict[str, Any]:
    settings, first, _ = members[0]
    gains = [gain for _, _, gain in members if gain is not None]
    return {
        "settings": settings,
        "level": first["level"],
        "kind": first["kind"],
        "runs": len(members),
        **_spread("top1", [row["top1"] for _, row, _ in members]),
        **_spread("gain", gains),
        **{f"{name}_mean": fmean(row[name] for _, row, _ in members) for name in COSTS},
    }


def _spread(name: str, values: Sequence[float]) -> dict[str, float | None]:
    return {f"{name}_mean": fmean(values) if values else None, f"{name}_std": stdev(values) if len(values) > 1 else None}


def as_csv(keys: Iterable[str], runs: Sequence[Json]) -> str:
    """One line for every run, level and policy, with the varied settings; one for a run without results."""
    settings = list(keys)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["run", *settings, "status", "error", "float_top1", "level", "kind", "top1", *COSTS])
    for run in runs:
        head = [run["name"], *(_cell(run["settings"][key]) for key in settings), run["status"], run["error"], run["float_top1"]]
        for row in run["policies"] or [{}]:
            writer.writerow([*head, *(row.get(name) for name in ("level", "kind", "top1", *COSTS))])
    return text.getvalue()


def _cell(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list | dict) else value
