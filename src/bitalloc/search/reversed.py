"""The search turned upside down."""

import math

from bitalloc.policy import Bits
from bitalloc.search.problem import Problem
from bitalloc.search.solution import Solution, judged, loose_bound
from bitalloc.search.solver import solve
from bitalloc.space import Table


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
