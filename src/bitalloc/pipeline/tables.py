"""Results as text: tables that lose nothing in 80 columns. Every function takes the JSON that ``--json`` would print."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

Json = Mapping[str, Any]

_KINDS = ("mixed", "uniform", "reversed")


def summary_table(summary: Json) -> RenderableType:
    """``summary.json``: one column for each level."""
    title = f"{summary['name']}: float model {percent(summary['float_top1'])} top-1 on the test images"
    table = _table([""])
    levels = summary["levels"]
    for level in levels:
        table.add_column(Text(level["name"]), justify="right", overflow="fold")
    for kind in _KINDS:
        shares = [level[f"{kind}_top1"] for level in levels]
        if any(share is not None for share in shares):
            table.add_row(f"{kind}, top-1", *map(percent, shares))
    table.add_row("mean weight bits", *(f"{level['mean_weight_bits']:.2f}" for level in levels))
    table.add_row("mean activation bits", *(f"{level['mean_act_bits']:.2f}" for level in levels))
    table.add_row("weight bytes", *(f"{level['weight_bytes']:,.0f}" for level in levels))
    table.add_row("BitOps", *(f"{level['bitops']:,.0f}" for level in levels))
    table.add_row("search", *(_status(level) for level in levels))
    table.add_row("ONNX Runtime agrees", *(percent(level["onnx_agreement"]) for level in levels))
    lines = [f"{level['name']}: {_use(budget)}" for level in levels for budget in level["budgets"]]
    first = levels[0]  # the indicators are the same for all levels
    lines.append(f"alpha {first['alpha']:.4g} ({first['alpha_reason']})")
    lines.append(f"indicators projected to be monotone: {'; '.join(first['projected']) or 'none'}")
    return Group(Text(title), table, *_texts([*lines, summary["bitops_convention"]]))


def layers_table(report: Json) -> RenderableType:
    """``layers.json``: the layers, then what is not counted, by reason."""
    layers = report["layers"]
    columns = ["layer", "kind", "weight shape", "MACs", "weights"]
    # Columns that say nothing on most models are left out there.
    extra = [key for key in ("groups", "calls") if any(layer[key] != 1 for layer in layers)]
    table = _table([*columns, *extra], left=("layer", "kind"))
    for layer in layers:
        shape = "x".join(map(str, layer["weight_shape"]))
        counts = (f"{layer['macs']:,}", f"{layer['weight_numel']:,}", *(str(layer[key]) for key in extra))
        table.add_row(Text(layer["name"]), layer["kind"], shape, *counts)
    reasons: dict[str, list[str]] = {}
    for entry in report["not_counted"]:
        reasons.setdefault(f"{entry['type']}, {entry['reason']}", []).append(entry["name"] or "(the model itself)")
    title = f"{len(layers)} quantizable layers; MACs of one sample"
    return Group(title, table, *_texts(f"not counted ({reason}): {', '.join(names)}" for reason, names in reasons.items()))


def policy_table(reports: Json) -> RenderableType:
    """``search.json`` of every level, by name: the chosen widths, one column for each level."""
    table = _table(["layer"], left=("layer",))
    for name in reports:
        table.add_column(Text(name), justify="right", overflow="fold")
    layers = dict.fromkeys(layer for report in reports.values() for layer in report.get("policy", {}))
    for layer in layers:
        table.add_row(Text(layer), *(report.get("policy", {}).get(layer, "-") for report in reports.values()))
    lines = []
    for name, report in reports.items():
        if report.get("policy_edited"):
            lines.append(f"{name}: the widths were edited by hand after the search, which the following lines are about")
        lines.append(f"{name}: {report['status']}, importance {report['objective']:.6g}, alpha {report['alpha']['value']:.4g}")
        lines += [f"{name}: {_use(budget)}" for budget in report["budgets"]]
        replaced = ", ".join(f"{change['layer']} {change['side']} at {change['width']}" for change in report["changes"])
        lines.append(f"{name}: {report['alpha']['reason']}; indicators projected to be monotone: {replaced or 'none'}")
    return Group("Widths of weights (w) and activations (a)", table, *_texts(lines))


def accuracy_table(report: Json) -> RenderableType:
    """``evaluation.json``: top-1 of every model."""
    table = _table(["level", *_KINDS])
    for name, level in report["levels"].items():
        table.add_row(Text(name), *(percent(level[f"{kind}_top1"]) for kind in _KINDS))
    return Group(f"Top-1 on the test images; float model {percent(report['float_top1'])}", table)


def plan_text(plan: Json) -> RenderableType:
    """The result of a dry run."""
    lines = [f"{plan['name']}: {plan['layers']} layers, {plan['weights']:,} weights, {plan['macs']:,} MACs", plan["bitops_convention"]]
    for level in plan["levels"]:
        for budget in level["budgets"]:
            limits = f"at most {_amount(budget['limit'])} {budget['unit']}, smallest reachable {_amount(budget['smallest'])}"
            lines.append(f"{level['name']}: {budget['name']} {limits}")
    return Group(*_texts(lines))


def percent(share: float | None) -> str:
    """``0.9`` as ``90.00 %``."""
    return "-" if share is None else f"{100 * share:.2f} %"


def _table(columns: Sequence[str], left: Sequence[str] = ("", "level")) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for column in columns:
        # Long words go on in the next line: a name that is cut is no name.
        table.add_column(column, justify="left" if column in left else "right", overflow="fold")
    return table


def _texts(lines: Iterable[str]) -> list[Text]:
    # As Text, because names in square brackets would be read as markup.
    return [Text(line, overflow="fold") for line in lines]


def _use(budget: Json) -> str:
    over = " (OVER BUDGET)" if budget["used"] > budget["limit"] * (1 + 1e-12) else ""
    return f"{budget['name']} {_amount(budget['used'])} of at most {_amount(budget['limit'])} {budget['unit']}{over}"


def _amount(value: float) -> str:
    return f"{value:,.0f}"


def _status(level: Json) -> str:
    return "edited by hand" if level["policy_edited"] else f"{level['search_status']}, {1000 * level['search_seconds']:.0f} ms"
