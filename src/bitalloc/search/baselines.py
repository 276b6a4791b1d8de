"""What a searched policy has to beat: the same widths everywhere, and the search turned upside down."""

import math
import time
from collections.abc import Mapping

from bitalloc.errors import InfeasibleError
from bitalloc.policy import Bits
from bitalloc.search.highs import solve
from bitalloc.search.problem import Problem
from bitalloc.search.solution import Solution, judged, loose_bound
from bitalloc.space import Table


def uniform(problem: Problem, bits: Bits | None = None) -> Solution:
    """All free layers at one pair of widths, the pinned ones at their pins.

    Args:
        problem: space, score and budgets.
        bits: the pair to use if every free layer has it and it is inside the budgets, for example the pair that a budget was
            written with. Otherwise, and by default, the pair of largest weight width x activation width among the common
            pairs inside the budgets; of several, the one with the widths closest together, then with more activation bits.

    Returns:
        A solution whose bound is that of no budget at all: no search is made, so it is ``optimal`` only where nothing could be
        better.

    Raises:
        InfeasibleError: no pair that all free layers have in common is inside all budgets and keeps the ties.
    """
    start = time.perf_counter()
    fitting = [pair for pair in _common(problem) if problem.fits(_everywhere(problem, pair))]
    if not fitting:
        limits = ", ".join(f"{budget.name} {budget.limit:g} {budget.unit}" for budget in problem.budgets) or "none"
        raise InfeasibleError(
            f"no uniform policy meets all budgets ({limits}): no pair of widths that all free layers have in common fits. "
            "Raise the limits or add narrower candidates."
        )
    best = bits if bits in fitting else max(fitting, key=lambda pair: (pair.weight * pair.act, -abs(pair.weight - pair.act), pair.act))
    return judged(problem, _everywhere(problem, best), loose_bound(problem), time.perf_counter() - start)


def reversed_assignment(problem: Problem) -> Solution:
    """The search with the importance turned upside down: a sanity check of any metric, which should lose clearly.

    The free layers are ranked by their mean score. The most important layer gets the scores of the least important one, and so
    on, among layers with the same candidates; then the same programme is solved under the same budgets. In Tang et al. (ECCV
    2022) this costs 6.6 points of accuracy on ImageNet.

    Returns:
        A solution with the objective in the original score, whose bound is that of no budget at all.

    Raises:
        InfeasibleError: no policy meets the budgets.
    """
    found = solve(Problem(problem.space, _reversed(problem), problem.budgets))
    return judged(problem, found.bits, loose_bound(problem), found.seconds)


def _common(problem: Problem) -> list[Bits]:
    rows = [problem.space.candidates[name].pairs for name in problem.space.free]
    if not rows:  # everything is pinned: there is one policy, and any pair stands for it
        return [next(iter(problem.space.pinned.values()))]
    return [pair for pair in rows[0] if all(pair in row for row in rows)]


def _everywhere(problem: Problem, pair: Bits) -> Mapping[str, Bits]:
    pins = problem.space.pinned
    return {name: pins.get(name, pair) for name in problem.space.candidates}


def _reversed(problem: Problem) -> Table:
    values = dict(problem.score.values)
    groups: dict[tuple[Bits, ...], list[str]] = {}
    for name in problem.space.free:
        groups.setdefault(problem.space.candidates[name].pairs, []).append(name)
    for pairs, names in groups.items():
        scores = problem.score.values
        ranked = sorted(names, key=lambda name: math.fsum(scores[name][pair] for pair in pairs))
        values.update({name: scores[other] for name, other in zip(ranked, reversed(ranked), strict=True)})
    return Table(values, problem.score.unit)
