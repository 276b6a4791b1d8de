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
    table = plain_table([""])
    levels = summary["levels"]
    for level in levels:
        table.add_column(Text(level["name"]), justify="right", overflow="fold")
    for kind in _KINDS:
        shares = [level[f"{kind}_top1"] for level in levels]
        if any(share is not None for share in shares):
            table.add_row(f"{kind}, top-1", *map(percent, shares))
    for kind in _KINDS:
        distances = [(level["attribution_distance"] or {}).get(kind) for level in levels]
        if any(distance is not None for distance in distances):
            table.add_row(f"{kind}, ARD", *("-" if distance is None else f"{distance:.3f}" for distance in distances))
    table.add_row("mean weight bits", *(f"{level['mean_weight_bits']:.2f}" for level in levels))
    table.add_row("mean activation bits", *(f"{level['mean_act_bits']:.2f}" for level in levels))
    table.add_row("weight bytes", *(f"{level['weight_bytes']:,.0f}" for level in levels))
    table.add_row("BitOps", *(f"{level['bitops']:,.0f}" for level in levels))
    table.add_row("search", *(_status(level) for level in levels))
    table.add_row("ONNX Runtime agrees", *(percent(level["onnx_agreement"]) for level in levels))
    lines = [f"{level['name']}: {_use(budget)}" for level in levels for budget in level["budgets"]]
    first = levels[0]  # the indicators are the same for all levels
    if first["alpha"] is not None:
        lines.append(f"alpha {first['alpha']:.4g} ({first['alpha_reason']})")
        lines.append(f"indicators projected to be monotone: {'; '.join(first['projected']) or 'none'}")
    lines += [f"{level['name']}: {line}" for level in levels if level["supernet"] for line in _search_lines(level["supernet"])]
    lines.append(_cost_of_scoring(summary["scoring"]))
    return Group(Text(title), table, *_texts([*lines, *summary["training_notes"], summary["bitops_convention"]]))


def layers_table(report: Json) -> RenderableType:
    """The report of ``describe``: the layers, what is tied, then what is not counted, by reason."""
    layers = report["layers"]
    # Columns that say nothing on most models are left out there.
    extra = [key for key in ("groups", "calls") if any(layer[key] != 1 for layer in layers)]
    tie_names, tie_lines = _ties(layers)
    columns = ["layer", "kind", "weight shape", "MACs", "weights", "BitOps", "bytes", *extra, *(["tie"] if tie_names else [])]
    table = plain_table(columns, left=("layer", "kind", "tie"))
    table.padding = (0, 0, 0, 0)  # so that the names of ResNet-50 stay whole in 80 columns
    for layer in layers:
        shares = (f"{100 * layer[key]:.1f}%" for key in ("bitops_share", "weight_bytes_share"))
        counts = (f"{layer['macs']:,}", f"{layer['weight_numel']:,}", *shares, *(str(layer[key]) for key in extra))
        shape = "x".join(map(str, layer["weight_shape"]))
        table.add_row(Text(layer["name"]), layer["kind"], shape, *counts, *([tie_names.get(layer["name"], "")] if tie_names else []))
    reasons: dict[str, list[str]] = {}
    for entry in report["not_counted"]:
        macs = f", {entry['macs']:,} MACs" if entry["macs"] else ""
        reasons.setdefault(f"{entry['type']}, {entry['reason']}", []).append(f"{entry['name'] or '(the model itself)'}{macs}")
    title = f"{len(layers)} quantizable layers; MACs of one sample; shares of BitOps and bytes with the free layers at w4a4"
    notes = [f"{layer['name']}: {layer['note']}" for layer in layers if layer["note"]]
    left_out = [f"not counted ({reason}): {', '.join(names)}" for reason, names in reasons.items()]
    return Group(title, table, *_texts([*notes, *tie_lines, _meetings(report), *left_out]))


def uniform_table(report: Json) -> RenderableType:
    """The report of ``describe``: what uniform widths would cost."""
    table = plain_table(["uniform", "BitOps", "weight bytes", "compression"], left=("uniform",))
    for row in report["uniform"]:
        table.add_row(row["bits"], amount(row["bitops"]), amount(row["weight_bytes"]), f"{row['compression']:.2f}x")
    return Group(table, *_texts([report["bitops_convention"]]))


def _ties(layers: Sequence[Json]) -> tuple[dict[str, str], list[str]]:
    """A short label of the ties of every tied layer, and a line that explains each label."""
    groups = [
        (side, tuple(other["name"] for other in layers if other["name"] in {layer["name"], *layer[key]}))
        for side, key in (("W", "tied_weights"), ("A", "tied_activations"))
        for layer in layers
        if layer[key]
    ]
    labels = {group: f"{group[0]}{index}" for index, group in enumerate(dict.fromkeys(groups), start=1)}
    names: dict[str, list[str]] = {}
    for (_, members), label in labels.items():
        for name in members:
            names.setdefault(name, []).append(label)
    what = {"W": "one weight width", "A": "one activation width"}
    lines = [f"{label}: {what[side]} for {', '.join(members)}" for (side, members), label in labels.items()]
    return {name: " ".join(found) for name, found in names.items()}, lines


def _meetings(report: Json) -> str:
    count = report["requantizations"]
    meet = sum(meeting["kind"] != "max_pool" for meeting in report["meetings"])
    return (
        f"{meet} additions and concatenations of activations; an integer runtime brings {count['operands']} operands "
        f"({count['numel']:,} elements) to another scale there, {count['width_changes']} of them to another width (free layers at w4a4)"
    )


def policy_table(reports: Json) -> RenderableType:
    """``search.json`` of every level, by name: the chosen widths, one column for each level."""
    table = plain_table(["layer"], left=("layer",))
    for name in reports:
        table.add_column(Text(name), justify="right", overflow="fold")
    layers = dict.fromkeys(layer for report in reports.values() for layer in report.get("policy", {}))
    for layer in layers:
        table.add_row(Text(layer), *(report.get("policy", {}).get(layer, "-") for report in reports.values()))
    lines = []
    for name, report in reports.items():
        if report.get("policy_edited"):
            lines.append(f"{name}: the widths were edited by hand after the search, which the following lines are about")
        alpha = report["alpha"]
        if alpha is None:
            lines.append(f"{name}: {report['status']}, log-probability {report['log_probability']:.6g}")
        else:
            lines.append(f"{name}: {report['status']}, importance {report['objective']:.6g}, alpha {alpha['value']:.4g}")
        lines += [f"{name}: {_use(budget)}" for budget in report["budgets"]]
        if alpha is None:
            continue
        replaced = ", ".join(f"{change['layer']} {change['side']} at {change['width']}" for change in report["changes"])
        lines.append(f"{name}: {alpha['reason']}; indicators projected to be monotone: {replaced or 'none'}")
    return Group("Widths of weights (w) and activations (a)", table, *_texts(lines))


def accuracy_table(report: Json) -> RenderableType:
    """``evaluation.json``: top-1 of every model."""
    table = plain_table(["level", *_KINDS])
    for name, level in report["levels"].items():
        table.add_row(Text(name), *(percent(level[f"{kind}_top1"]) for kind in _KINDS))
    return Group(f"Top-1 on the test images; float model {percent(report['float_top1'])}", table)


def supernet_table(reports: Json) -> RenderableType:
    """``supernet.json`` of every level, by name: where the searches ended."""
    lines = []
    for name, report in reports.items():
        lines += [f"{name}: {line}" for line in _search_lines(report)]
        lines.append(f"{name}: {report['seconds']:,.0f} s, {report['images']:,} images")
    return Group(*_texts(lines))


def plan_text(plan: Json) -> RenderableType:
    """The result of a dry run."""
    lines = [f"{plan['name']}: {plan['layers']} layers, {plan['weights']:,} weights, {plan['macs']:,} MACs", plan["bitops_convention"]]
    for level in plan["levels"]:
        for budget in level["budgets"]:
            limits = f"at most {amount(budget['limit'])} {budget['unit']}, smallest reachable {amount(budget['smallest'])}"
            lines.append(f"{level['name']}: {budget['name']} {limits}")
    return Group(*_texts(lines))


def percent(share: float | None) -> str:
    """``0.9`` as ``90.00 %``."""
    return "-" if share is None else f"{100 * share:.2f} %"


def plain_table(columns: Sequence[str], left: Sequence[str] = ("", "level")) -> Table:
    """An empty table with these columns, those in ``left`` aligned to the left."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for column in columns:
        # Long words go on in the next line: a name that is cut is no name.
        table.add_column(Text(column), justify="left" if column in left else "right", overflow="fold")
    return table


def _texts(lines: Iterable[str]) -> list[Text]:
    # As Text, because names in square brackets would be read as markup.
    return [Text(line, overflow="fold") for line in lines]


def _use(budget: Json) -> str:
    over = " (OVER BUDGET)" if budget["used"] > budget["limit"] * (1 + 1e-12) else ""
    return f"{budget['name']} {amount(budget['used'])} of at most {amount(budget['limit'])} {budget['unit']}{over}"


def amount(value: float) -> str:
    """Whole numbers of bytes and BitOps, but four digits of 2.796 bits or 3.5 ms."""
    return f"{value:,.0f}" if abs(value) >= 1000 or float(value).is_integer() else f"{value:,.4g}"


def _search_lines(report: Json) -> Iterable[str]:
    for budget in report["budgets"]:
        share = budget["expected"] / budget["limit"] - 1
        limit = f"{amount(budget['limit'])} {budget['unit']}"
        yield f"{report['method']} ended at an expected {budget['name']} of {amount(budget['expected'])}, {share:+.1%} from {limit}"
    yield f"entropy of the choices {report['entropy']:.3f} (1 undecided, 0 certain)"


def _cost_of_scoring(scoring: Json) -> str:
    where = "" if scoring["source"] is None else f" on {scoring['source']['data']}"
    return f"{scoring['method']} took {scoring['seconds']:,.0f} s and {scoring['images']:,} images{where}"


def _status(level: Json) -> str:
    return "edited by hand" if level["policy_edited"] else f"{level['search_status']}, {1000 * level['search_seconds']:.0f} ms"
