"""Frontier and surface as text. Every function takes the JSON that ``--json`` would print."""

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from bitalloc.pipeline.tables import amount, plain_table

Json = Mapping[str, Any]

_ENDS = 20
"""Policies that are shown from either end of a long frontier; the files have all."""


def frontier_table(report: Json) -> RenderableType:
    """``frontier.json``: a line a point, with the layers that change from the line above."""
    table = plain_table([report["unit"], report["score"], "gap", "changes"], left=("changes",))
    before: Json = {}
    skipped = range(_ENDS, len(report["points"]) - _ENDS)
    for i, point in enumerate(report["points"]):
        if i in skipped:
            if i == _ENDS:
                table.add_row("...", "", "", f"{len(skipped)} more in frontier.csv")
            before = point["policy"]
            continue
        changed = [f"{name} {before[name]} > {bits}" for name, bits in point["policy"].items() if before and before[name] != bits]
        few = ", ".join(changed[:2]) + (f" and {len(changed) - 2} more" if len(changed) > 2 else "")
        table.add_row(f"{amount(point['cost'])}", f"{point['objective']:.6g}", f"{100 * point['gap']:.3g} %", Text(few, overflow="fold"))
        before = point["policy"]
    every = "all Pareto-optimal policies" if report["complete"] else "there are more policies between these"
    ends = f"smallest reachable {amount(report['smallest'])}, of no use above {amount(report['largest'])} {report['unit']}"
    return Group(Text(f"{report['budget']}: {len(report['points'])} policies; {every}; {ends}", overflow="fold"), table)


def surface_table(report: Json) -> RenderableType:
    """``surface.json``: the score under every pair of limits, a line for every limit of the first budget."""
    limits = [f"{limit:,.5g}" for limit in report["second_limits"]]
    table = plain_table([f"{report['first']} \\ {report['second']}", *limits], left=())
    for limit, row in zip(report["first_limits"], report["cells"], strict=True):
        table.add_row(f"{limit:,.5g}", *("-" if cell is None else f"{cell['objective']:.4g}" for cell in row))
    return Group(Text(f"{report['score']} under both limits; - where no policy is inside", overflow="fold"), table)
