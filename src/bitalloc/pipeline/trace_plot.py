"""The course of a search as an SVG: expected costs against the budgets, prices, entropy."""

from collections.abc import Sequence
from html import escape

from bitalloc.files import AnyPath, replacing
from bitalloc.supernet import Trace

WIDTH, HEIGHT, MARGIN = 640, 150, 40
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")
"""Okabe and Ito's, told apart by the colour-blind too."""

POINTS = 400
"""Most that are drawn of a line."""


def plot_trace(trace: Trace, path: AnyPath) -> None:
    """Writes the plot: three panels over the steps, a line for every budget.

    Raises:
        FileError: the file cannot be written.
    """
    count = len(trace.budgets)
    costs = [[row[k] / trace.limits[k] for row in trace.costs] for k in range(count)]
    prices = [[row[k] for row in trace.prices] for k in range(count)]
    named = [*trace.budgets] if count else []
    panels = [
        _panel(0, "expected cost / budget", costs, named, (1.0,)),
        _panel(1, "price of the whole budget", prices, named, (0.0,)),
        _panel(2, "entropy of the choices", [list(trace.entropy)], [""], (0.0, 1.0)),
    ]
    height = len(panels) * (HEIGHT + MARGIN) + MARGIN
    steps = _text(WIDTH / 2, height - 12, f"{len(trace.entropy)} steps", "middle")
    text = f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" font-family="sans-serif" font-size="12">'
    with replacing(path) as temporary:
        temporary.write_text(
            "\n".join([text, '<rect width="100%" height="100%" fill="white"/>', *panels, steps, "</svg>\n"]), encoding="utf-8"
        )


def _panel(index: int, title: str, lines: Sequence[Sequence[float]], names: Sequence[str], shown: Sequence[float]) -> str:
    """One panel; ``shown`` are values that get a grey line."""
    values = [value for line in lines for value in line] + list(shown)
    low, high = min(values), max(values)
    top = MARGIN + index * (HEIGHT + MARGIN)
    span = (high - low) or 1.0

    def y(value: float) -> float:
        return top + HEIGHT * (high - value) / span

    parts = [_text(MARGIN * 2, top - 8, title)]
    for value in dict.fromkeys((low, high, *shown)):
        parts.append(f'<line x1="{2 * MARGIN}" x2="{WIDTH - MARGIN}" y1="{y(value):.1f}" y2="{y(value):.1f}" stroke="#cccccc"/>')
        parts.append(_text(2 * MARGIN - 6, y(value) + 4, f"{value:.3g}", "end"))
    for number, (line, name) in enumerate(zip(lines, names, strict=True)):
        colour = COLOURS[number % len(COLOURS)]
        last = max(len(line) - 1, 1)
        kept = sorted({round(k * last / POINTS) for k in range(POINTS + 1)} & set(range(len(line))))
        points = " ".join(f"{2 * MARGIN + (WIDTH - 3 * MARGIN) * step / last:.1f},{y(line[step]):.1f}" for step in kept)
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        parts.append(_text(WIDTH - MARGIN - 120 * (len(names) - 1 - number), top - 8, name, "end", colour))
    return "\n".join(parts)


def _text(x: float, y: float, text: str, anchor: str = "start", colour: str = "#333333") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{escape(text)}</text>'
