"""Measures the exact search against the reference formulation in CBC, and how it grows.

Usage: python benchmarks/search.py --instance INSTANCE.json [--json FILE] [--svg FILE] [--repeats 20]

INSTANCE.json holds the released LIMPQ indicators of ResNet-50 (see limpq_resnet50.py). Scores: the published ones, act + 2 x weight, erased
points as published; correct MACs; first and last layer pinned at 8 bits. All in one run on one machine, medians over the repeats,
the solvers taking turns. Both sides are timed from the same checked problem to an answer, with what each builds in Python (the arrays,
PuLP's model); the time of CBC without that is printed beside it. Needs PuLP with its CBC: pip install 'bitalloc[bench]'.
"""

import argparse
import json
import random
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from limpq_resnet50 import ALPHA, indicators, model
from reference_pulp import Reference

from bitalloc.budget import Budget
from bitalloc.costs import resolve_budgets
from bitalloc.search import Problem, frontier, solve
from bitalloc.space import Candidates, SearchSpace, Table

CASES: dict[str, dict[str, str | int | float]] = {
    "W3A3": {"bitops": "w3a3"},
    "W4A4": {"bitops": "w4a4"},
    "W3A4": {"bitops": "w3a4"},
    "W3A3, 12.2x": {"bitops": "w3a3", "compression": 12.2},
    "W4A4, 12.2x": {"bitops": "w4a4", "compression": 12.2},
    "W3A4, 12.2x": {"bitops": "w3a4", "compression": 12.2},
    "W2A3": {"bitops": "w2a3"},
    "10x": {"compression": 10.0},
}
WIDTHS = (8, 6, 4, 3, 2)
SIZES = (50, 100, 200, 500, 1000, 2000, 5000)
FRONTIER = 200
WORSE = 1e-9  # a relative difference of objectives above this is not rounding


def main() -> None:
    parser = argparse.ArgumentParser(description="Measures the exact search against CBC.")
    parser.add_argument("--instance", type=Path, required=True, help="instance.json with the released ResNet-50 indicators")
    parser.add_argument("--json", type=Path, help="writes the figures")
    parser.add_argument("--svg", type=Path, help="draws the growth with the number of layers")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--synthetic", type=int, help=argparse.SUPPRESS)  # one size in a process of its own, for its memory
    options = parser.parse_args()
    if options.synthetic:
        print(json.dumps(synthetic(options.synthetic)))
        return
    instance = json.loads(options.instance.read_text(encoding="utf-8"))
    figures = against_cbc(instance, options.repeats)
    figures |= frontier_of(instance, figures["cbc_seconds_median"])
    rows = growth(options.instance)
    of = {row["layers"]: row for row in rows}
    figures |= {"synthetic2000_seconds": of[2000]["seconds"], "synthetic2000_peak_mb": of[2000]["peak_mb"]}
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    if options.svg:
        options.svg.write_text(drawn(rows), encoding="utf-8")


def problem_of(instance: dict[str, Any], budgets: dict[str, str | int | float]) -> Problem:
    layers, space = model(instance, "macs")
    erased, _ = indicators(instance).erased()
    return Problem(space, erased.table(ALPHA, space), tuple(resolve_budgets(budgets, layers, space)))


def against_cbc(instance: dict[str, Any], repeats: int) -> dict[str, Any]:
    print(f"{'budgets':14}{'CBC s':>9}{'unbuilt':>9}{'exact s':>9}{'x':>7}{'0.1 % s':>9}{'x':>7}{'objective':>12}{'CBC - ours':>12}")
    exact_speedups, gap_speedups, cbc_times, worse = [], [], [], 0
    for name, budgets in CASES.items():
        problem = problem_of(instance, budgets)
        times: dict[str, list[float]] = {"cbc": [], "built": [], "exact": [], "gap": []}
        for _ in range(repeats):
            start = time.perf_counter()
            reference = Reference(problem)
            times["built"].append(time.perf_counter() - start)
            times["cbc"].append(times["built"][-1] + timed(reference.solve))
            times["exact"].append(timed(lambda: solve(problem)))  # noqa: B023
            times["gap"].append(timed(lambda: solve(problem, gap=1e-3)))  # noqa: B023
        cbc, built, exact, gap = (statistics.median(times[key]) for key in times)
        ours, theirs = solve(problem), reference.objective()
        assert ours.status == "optimal"
        worse += ours.objective > theirs + WORSE * abs(theirs) and problem.fits(reference.bits())
        exact_speedups.append(cbc / exact)
        gap_speedups.append(cbc / gap)
        cbc_times.append(cbc)
        row = f"{name:14}{cbc:9.4f}{cbc - built:9.4f}{exact:9.4f}{cbc / exact:7.1f}{gap:9.4f}{cbc / gap:7.1f}{ours.objective:12.6f}"
        print(f"{row}{theirs - ours.objective:12.1e}{'' if problem.fits(reference.bits()) else '  CBC is above a limit'}", flush=True)
    return {
        "exact_speedup_median": statistics.median(exact_speedups),
        "exact_speedup_min": min(exact_speedups),
        "gap_0001_speedup_median": statistics.median(gap_speedups),
        "objective_worse": int(worse),
        "cbc_seconds_median": statistics.median(cbc_times),
    }


def frontier_of(instance: dict[str, Any], cbc: float) -> dict[str, float]:
    """So many BitOps limits from the least to the largest of use, each proven to 0.1 %."""
    problem = problem_of(instance, {"bitops": "w6a6"})
    start = time.perf_counter()
    found = frontier(problem, "bitops", points=FRONTIER, gap=1e-3)
    seconds = time.perf_counter() - start
    assert all(point.gap <= 1e-3 for point in found.points)
    print(f"frontier of {FRONTIER} BitOps limits, each to 0.1 %, {len(found.points)} policies: {seconds:.3f} s; 10 CBC: {10 * cbc:.3f} s")
    return {"frontier200_seconds": seconds}


def growth(instance: Path) -> list[dict[str, float]]:
    """Each size in a process of its own: problem, solve to 0.01 %, peak memory of the process."""
    rows = []
    for size in SIZES:
        command = [sys.executable, __file__, "--instance", str(instance), "--synthetic", str(size)]
        rows.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
        row = rows[-1]
        print(f"{size:5} layers x 25 pairs, two budgets: {row['seconds']:.3f} s to {row['gap']:.1e}, {row['peak_mb']:.0f} MB", flush=True)
    return rows


def synthetic(size: int) -> dict[str, float]:
    """Blocks like a transformer's: four attention and two feed-forward matrices; scores fall geometrically with the bits."""
    draw = random.Random(size)
    space = SearchSpace({f"block{i // 6}.matrix{i % 6}": Candidates(WIDTHS, WIDTHS) for i in range(size)})
    weights = {name: (1 if i % 6 < 4 else 4) * 512**2 * draw.choice((1, 2, 4)) for i, name in enumerate(space.candidates)}
    pairs = next(iter(space.candidates.values())).pairs
    score = {}
    for name in space.candidates:
        a, w = draw.lognormvariate(0, 1), draw.lognormvariate(0, 1)
        score[name] = {p: (a * 2.0**-p.act + w * 2.0**-p.weight) * draw.uniform(0.95, 1.05) for p in pairs}
    bitops = Table({name: {p: 128.0 * count * p.weight * p.act for p in pairs} for name, count in weights.items()}, "bitops")
    size_table = Table({name: {p: count * p.weight / 8 for p in pairs} for name, count in weights.items()}, "weight_bytes")
    total = sum(weights.values())
    budgets = (Budget("bitops", 128.0 * total * 16, bitops), Budget("size", total * 3.7 / 8, size_table))
    problem = Problem(space, Table(score, "importance"), budgets)
    start = time.perf_counter()
    found = solve(problem, gap=1e-4)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"layers": size, "seconds": seconds, "gap": found.gap, "peak_mb": peak}


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def drawn(rows: list[dict[str, float]]) -> str:
    """Seconds over layers on two linear axes."""
    width, height, edge = 640, 400, 60
    most_layers, most = max(row["layers"] for row in rows), max(row["seconds"] for row in rows)
    points = [
        (edge + (width - 2 * edge) * row["layers"] / most_layers, height - edge - (height - 2 * edge) * row["seconds"] / most)
        for row in rows
    ]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    marks = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in points)
    labels = "".join(
        f'<text x="{x:.1f}" y="{y - 8:.1f}" text-anchor="end">{row["layers"]:.0f}: {row["seconds"]:.2f} s</text>'
        for (x, y), row in zip(points, rows, strict=True)
        if row["layers"] >= most_layers / 10
    )
    axes = f'<path d="M{edge},{edge} V{height - edge} H{width - edge}" fill="none" stroke="black"/>'
    title = f'<text x="{width / 2}" y="{height - 20}" text-anchor="middle">layers (25 pairs each, two budgets, proven 0.01 %)</text>'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" font-size="12">'
        f'{axes}<polyline points="{line}" fill="none" stroke="steelblue"/>{marks}{labels}{title}</svg>\n'
    )


if __name__ == "__main__":
    main()
