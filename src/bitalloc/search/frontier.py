"""The best score that every limit on one budget allows."""

from collections.abc import Sequence
from typing import Final

from bitalloc.errors import BitallocError, InfeasibleError
from bitalloc.search.frontier_points import Frontier, FrontierPoint, point_of, under
from bitalloc.search.limits import below, budgets_named, cheapest, rounding, sizes, smallest, total, without
from bitalloc.search.prepared import Prepared, prepare
from bitalloc.search.problem import ROUNDING, Problem
from bitalloc.search.solution import Solution
from bitalloc.search.solver import solve

_MOST: Final = 1000


def frontier(
    problem: Problem,
    budget: str,
    *,
    points: int | None = None,
    limits: Sequence[float] | None = None,
    gap: float = 0.0,
    at_most: int = _MOST,
) -> Frontier:
    """The best policies over one budget, the other budgets held.

    They lie between the smallest value of the budget that can be reached and the largest that is of use, which is the least cost of
    a policy with the best score of all. The limit that ``problem`` has on this budget plays no part.

    With neither ``points`` nor ``limits`` they are all Pareto-optimal policies, one for every pair of cost and score: the limit is
    set just below the cost of the last policy until there is none (the epsilon-constraint method of Haimes et al., 1971). Of
    policies with equal scores the cheapest is taken.

    Args:
        problem: space, score and budgets.
        budget: name of the budget to vary.
        points: so many limits, evenly spaced from the smallest to the largest. Where several have the same policy it is there once,
            so the frontier may have fewer points.
        limits: the limits themselves, in the budget's unit.
        gap: share of the optimum within which every point is proven; 0, the default, means optimal. All policies cannot be found
            with a gap above 0; the frontier is not ``complete`` then.
        at_most: end the search for all policies after so many, counted from the largest cost; 1000 by default, as their number can
            grow exponentially with the layers. The frontier is not ``complete`` then.

    Raises:
        BudgetError: ``problem`` has no such budget, or a limit is not positive and finite.
        InfeasibleError: the other budgets cannot be met, or one of ``limits`` cannot.
        BitallocError: ``points`` is below 2, ``at_most`` below 1, ``gap`` negative, or points and limits are given both.
    """
    unit = budgets_named(problem, budget)[0].unit
    _check(points, limits, at_most)
    least = smallest(problem, budget)
    prepared = prepare(problem)
    top = _most_useful(prepared, budget, gap)
    if points is None and limits is None:
        found, complete = _all(prepared, budget, least, top, gap, at_most)
    else:
        asked = list(limits) if limits is not None else even_limits(least, top.cost, points or 2)
        _check_reachable(asked, budget, unit, least)
        found, complete = _at(prepared, budget, asked, gap), False
    return Frontier(budget, unit, problem.score.unit, least, top.cost, _undominated(problem, found), complete)


def _check(points: int | None, limits: Sequence[float] | None, at_most: int) -> None:
    if points is not None and limits is not None:
        raise BitallocError("a frontier is asked for with points and with limits: give one of them.")
    if points is not None and points < 2:
        raise BitallocError(f"points is {points}, expected at least 2: the smallest and the largest limit.")
    if limits is not None and not limits:
        raise BitallocError("limits is empty, expected at least one limit.")
    if at_most < 1:
        raise BitallocError(f"at_most is {at_most}, expected at least one point.")


def _check_reachable(limits: Sequence[float], name: str, unit: str, least: float) -> None:
    too_small = [limit for limit in limits if limit * (1 + ROUNDING) < least]
    if too_small:
        raise InfeasibleError(
            f"no policy meets {name} {', '.join(f'{limit:.17g}' for limit in too_small)} {unit} with the other budgets "
            f"held: the smallest reachable value is {least:.17g}. Leave these limits out."
        )


def _most_useful(prepared: Prepared, name: str, gap: float) -> FrontierPoint:
    """The cheapest policy with the best score that the other budgets allow."""
    return _untied(prepared, name, solve(without(prepared.problem, name), gap=gap), gap)


def _all(prepared: Prepared, name: str, least: float, top: FrontierPoint, gap: float, at_most: int) -> tuple[list[FrontierPoint], bool]:
    problem, found, scores = prepared.problem, [top], sizes(prepared.problem)
    while found[-1].cost > least * (1 + ROUNDING) and len(found) < at_most:
        solution = prepared.solve({name: below(problem, name, found[-1].cost)}, gap=gap)
        tied = _as_good(solution.objective, found[-1].objective, scores)
        while found and _as_good(solution.objective, found[-1].objective, scores):
            found.pop()
        cost = total(problem, name, solution.bits)
        found.append(_untied(prepared, name, solution, gap) if tied else point_of(under(solution, {name: cost}), name))
    return found, gap == 0 and found[-1].cost <= least * (1 + ROUNDING)


def _at(prepared: Prepared, name: str, limits: Sequence[float], gap: float) -> list[FrontierPoint]:
    found: list[FrontierPoint] = []
    solution: Solution | None = None
    for limit in sorted(limits, reverse=True):
        # What is best at a larger limit and inside this one is best here.
        if solution is None or total(prepared.problem, name, solution.bits) > limit * (1 + ROUNDING):
            solution = prepared.solve({name: limit}, gap=gap)
        else:
            found.pop()
        found.append(point_of(under(solution, {name: limit}), name))
    return found


def _untied(prepared: Prepared, name: str, solution: Solution, gap: float) -> FrontierPoint:
    """The cheapest policy of this score, where equal scores can be told, with its cost for the limit."""
    problem = prepared.problem
    cost = total(problem, name, solution.bits)
    if gap == 0:
        cost = min(cost, cheapest(problem, name, solution.objective))
    return point_of(prepared.solve({name: cost}, gap=gap), name)


def _as_good(score: float, other: float, scores: float) -> bool:
    return score <= other + rounding(other, scores)


def _undominated(problem: Problem, found: Sequence[FrontierPoint]) -> tuple[FrontierPoint, ...]:
    """By growing cost, without the points that cost more than another and are no better, which a gap lets through."""
    kept: list[FrontierPoint] = []
    scores = sizes(problem)
    for point in sorted(found, key=lambda point: (point.cost, point.objective)):
        if not kept or not _as_good(kept[-1].objective, point.objective, scores):
            kept.append(point)
    return tuple(kept)


def useful_range(problem: Problem, name: str, gap: float) -> tuple[float, float]:
    """The smallest and the largest useful value of a budget, see :class:`Frontier`. Raises as :func:`frontier`."""
    return smallest(problem, name), _most_useful(prepare(problem), name, gap).cost


def even_limits(low: float, high: float, count: int) -> list[float]:
    """So many limits with the same distances, the ends exact; one where the ends are the same."""
    inner = (low + (high - low) * i / (count - 1) for i in range(1, count - 1))
    return list(dict.fromkeys((low, *inner, high)))
