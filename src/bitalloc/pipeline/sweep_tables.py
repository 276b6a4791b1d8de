"""A sweep as tables."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from bitalloc.pipeline.tables import amount, percent, plain_table

Json = Mapping[str, Any]


def sweep_table(report: Json) -> RenderableType:
    """``sweep.json``: a line for every run, level and policy; the runs that failed; then what the seeds give together."""
    keys = list(report["axes"])
    names = _short(keys)
    table = plain_table([*names, "level", "kind", "top-1", "BitOps", "bytes"], left=(*names, "level", "kind"))
    for run in report["runs"]:
        settings = [Text(str(run["settings"][key])) for key in keys]
        if run["status"] != "done":
            table.add_row(*settings, Text(run["status"]), "", "-", "-", "-")
        for row in run["policies"]:
            costs = (amount(row["bitops"]), amount(row["weight_bytes"]))
            table.add_row(*settings, Text(row["level"]), row["kind"], percent(row["top1"]), *costs)
    failures = [Text(f"{run['name']}: {run['error']}", overflow="fold") for run in report["runs"] if run["status"] == "failed"]
    parts: list[RenderableType] = [f"{report['name']}: top-1 on the test images, weight bytes", table, *failures]
    if report["over_seeds"]:
        parts.append(_seeds_table(report["over_seeds"], [key for key in keys if key != "seed"]))
    return Group(*parts)


def _seeds_table(groups: Sequence[Json], keys: Sequence[str]) -> RenderableType:
    names = _short(keys)
    table = plain_table([*names, "level", "kind", "seeds", "top-1", "above uniform"], left=(*names, "level", "kind"))
    for group in groups:
        settings = [Text(str(group["settings"][key])) for key in keys]
        top1, gain = (_spread(group, name) for name in ("top1", "gain"))
        table.add_row(*settings, Text(group["level"]), group["kind"], str(group["runs"]), top1, gain)
    return Group("Over seeds: mean and standard deviation, in points", table)


def _spread(group: Json, name: str) -> str:
    mean, std = group[f"{name}_mean"], group[f"{name}_std"]
    if mean is None:
        return "-"
    sign = "+" if name == "gain" else ""
    return f"{100 * mean:{sign}.2f}" + ("" if std is None else f" ± {100 * std:.2f}")


def _short(keys: Sequence[str]) -> list[str]:
    """The last parts of the keys where they differ."""
    last = [key.rsplit(".", 1)[-1] for key in keys]
    return [name if last.count(name) == 1 else key for key, name in zip(keys, last, strict=True)]
