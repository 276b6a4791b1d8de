"""Many budgets with few layers each: the peak of the activation memory of a long residual network."""

from random import Random

import pytest

from bitalloc.budget import Budget
from bitalloc.choices import search_space
from bitalloc.costs import peak_activation_bytes
from bitalloc.layers import Description, LayerInfo, Meeting, Site
from bitalloc.search import Problem, frontier, solve, solve_with_highs
from bitalloc.space import Table

BLOCKS = 30
OPERATIONS = ("conv2d", "relu", "conv2d", "mul", "hardtanh", "add")


def residual_network(draw: Random) -> Description:
    """Two layers a block of six operations: only the block's input and what its relu gives are read by layers."""
    layers, meetings = [], []
    sites = [Site("x0", "input", 400, ("block0.conv1",), 0, len(OPERATIONS))]
    for i in range(BLOCKS):
        start = i * len(OPERATIONS)
        readers = {1: (f"block{i}.conv2",), 5: (f"block{i + 1}.conv1",) if i < BLOCKS - 1 else ()}
        for k, operation in enumerate(OPERATIONS):
            born = start + k + 1
            dies = born + 1 if k < 5 else born + (len(OPERATIONS) if i < BLOCKS - 1 else 0)
            name = f"x{i + 1}" if k == 5 else f"block{i}.{k}"
            sites.append(
                Site(name, operation, draw.randint(20, 60) if k in (0, 2, 3) else 100 * draw.randint(2, 6), readers.get(k, ()), born, dies)
            )
        meetings.append(Meeting(f"x{i + 1}", "add", (f"x{i}", f"block{i}.4"), f"x{i + 1}"))
        for k, site in ((1, f"x{i}"), (2, f"block{i}.1")):
            layers.append(LayerInfo(f"block{i}.conv{k}", "conv2d", (8, 8, 3, 3), 1000 * draw.randint(10, 90), 8, 8, site=site))
    return Description(tuple(layers), (), {}, ("block0.conv1",), (f"block{BLOCKS - 1}.conv2",), tuple(sites), tuple(meetings))


@pytest.mark.parametrize("coupling", ["free", "strict"])
def test_a_peak_of_150_moments_beside_a_sum(coupling: str) -> None:
    draw = Random(3)
    network = residual_network(draw)
    space = search_space(network, (8, 4, 2), (8, 6, 4, 2), coupling=coupling)
    pairs = {name: choices.pairs for name, choices in space.candidates.items()}
    harm = {name: (draw.lognormvariate(0, 1), draw.lognormvariate(0, 1)) for name in pairs}
    score = Table({n: {p: w * 2.0**-p.weight + a * 2.0**-p.act for p in pairs[n]} for n, (w, a) in harm.items()}, "importance")
    macs = {layer.name: layer.macs for layer in network.layers}
    bitops = Table({n: {p: float(macs[n] * p.weight * p.act) for p in pairs[n]} for n in pairs}, "bitops")
    moments = [cost.table(network.layers, space) for cost in peak_activation_bytes(network, space)]
    assert len(pairs) == 60
    assert len(moments) >= 150
    widest, narrowest = ({name: of(options) for name, options in pairs.items()} for of in (max, min))
    peaks = [max(moment.total(policy) for moment in moments) for policy in (narrowest, widest)]
    limits = 0.6 * peaks[0] + 0.4 * peaks[1], 0.3 * bitops.total(widest)
    problem = Problem(space, score, (*(Budget("peak", limits[0], moment) for moment in moments), Budget("bitops", limits[1], bitops)))
    ours = solve(problem)
    assert ours.status == "optimal"
    assert problem.fits(ours.bits)
    assert ours.objective == pytest.approx(solve_with_highs(problem).objective, rel=1e-9)
    assert [use.name for use in ours.budgets] == ["peak", "bitops"]
    assert ours.budgets[0].used == max(moment.total(ours.bits) for moment in moments) <= limits[0]
    points = frontier(problem, "peak", points=4, gap=1e-3).points
    assert [point.objective for point in points] == sorted((point.objective for point in points), reverse=True)
