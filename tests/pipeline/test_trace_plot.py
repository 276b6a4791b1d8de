"""The plot of a search."""

from pathlib import Path
from xml.etree import ElementTree

import pytest

from bitalloc.pipeline.trace_plot import POINTS, plot_trace
from bitalloc.supernet import Trace

SVG = "{http://www.w3.org/2000/svg}"


def _trace(names: tuple[str, ...], steps: int) -> Trace:
    rows = tuple(tuple(100.0 * (1 + k + step / steps) for k in range(len(names))) for step in range(steps))
    return Trace(names, names, (100.0,) * len(names), rows, rows, tuple(1 - step / steps for step in range(steps)))


@pytest.mark.parametrize(("names", "steps"), [(("bitops",), 1), (("bitops", "a < b & c"), 5), ((), 3), (("bitops",), 5000)])
def test_every_budget_has_a_line_in_both_panels_and_the_entropy_one(tmp_path: Path, names: tuple[str, ...], steps: int) -> None:
    plot_trace(_trace(names, steps), tmp_path / "trace.svg")
    root = ElementTree.parse(tmp_path / "trace.svg").getroot()
    lines = root.findall(f"{SVG}polyline")
    assert len(lines) == 2 * len(names) + 1
    points = [[tuple(map(float, point.split(","))) for point in line.attrib["points"].split()] for line in lines]
    assert {len(line) for line in points} == {min(steps, POINTS + 1)}
    assert all(0 <= x <= float(root.attrib["width"]) and 0 <= y <= float(root.attrib["height"]) for line in points for x, y in line)
    texts = [text.text for text in root.findall(f"{SVG}text")]
    assert all(texts.count(name) == 2 for name in names)
    assert f"{steps} steps" in texts
    if steps > 1:
        # What falls goes down in the picture, and the other way round.
        assert points[-1][0][1] < points[-1][-1][1]
        assert all(line[0][1] > line[-1][1] for line in points[:-1])
