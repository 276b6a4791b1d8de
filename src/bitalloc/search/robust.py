"""One policy for several score tables: best in the mean, or in the worst of them."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, final, get_args

from bitalloc.errors import BitallocError, SpaceError
from bitalloc.search.minimax import minimax
from bitalloc.search.problem import Problem
from bitalloc.search.solution import Solution, judged
from bitalloc.search.solver import solve
from bitalloc.search.tables import mean, scaled
from bitalloc.space import Table

Criterion = Literal["mean", "worst"]
Scale = Literal["none", "range"]


@final
@dataclass(frozen=True, slots=True)
class Robust:
    """A policy for several tables.

    Attributes:
        solution: its objective and bound are the mean or the largest of the totals in ``totals``.
        totals: the total score in every table, in the order given, on the chosen scale.
    """

    solution: Solution
    totals: tuple[float, ...]


def solve_robust(
    problem: Problem,
    tables: Sequence[Table],
    criterion: Criterion = "worst",
    *,
    scale: Scale = "none",
    gap: float = 0.0,
    time_limit: float | None = None,
) -> Robust:
    """The policy inside the budgets with the least mean, or the least largest, total over several score tables.

    The mean is additive, so it is :func:`solve` on the mean table. The worst case is

        min z   s.t.   sum over layers of score_t[l, p] x[l, p] <= z   for every table t,

    an integer programme with one continuous variable, exact through HiGHS (robust optimisation over scenarios, Kouvelis and
    Yu, "Robust Discrete Optimization and Its Applications", 1997).

    Args:
        problem: the space and the budgets; its own score is not used.
        tables: one for each seed, data set or metric.
        criterion: ``worst``, the default, or ``mean``.
        scale: ``none``, the default, compares totals as they are, right for one metric under several seeds. ``range`` shifts and
            divides every table so that the sum of the layers' best choices is 0 and that of their worst choices 1: for tables of
            different metrics, whose units cannot be compared.
        gap: the search may stop at a solution proven to be within this share of the optimum.
        time_limit: seconds after which the best solution found so far is returned.

    Raises:
        InfeasibleError: no policy meets the budgets.
        SpaceError: a table lacks a choice, or tables in different units are compared without a scale.
        BitallocError: there is no table, an option is unknown, or the time is over before any solution is found.
    """
    _check(problem, tables, criterion, scale)
    start = time.perf_counter()
    compared = [scaled(table, problem.space) for table in tables] if scale == "range" else list(tables)
    middle = Problem(problem.space, mean(compared, problem.space), problem.budgets)
    found = solve(middle, gap=gap, time_limit=time_limit)
    solution = (
        found if criterion == "mean" else _worst(middle, compared, found, gap, math.inf if time_limit is None else start + time_limit)
    )
    return Robust(solution, tuple(table.total(solution.bits) for table in compared))


def _worst(middle: Problem, tables: Sequence[Table], start: Solution, gap: float, deadline: float) -> Solution:
    """The policy of the best mean is where the search starts: its worst case is a ceiling, its bound a bound of the worst case."""
    begun = time.perf_counter()
    values = [table.values for table in tables]
    found = minimax(middle.space, values, middle.budgets, gap, deadline, start.bits)
    policies = [bits for bits in (start.bits, found.bits) if bits is not None]
    worst = {i: max(table.total(bits) for table in tables) for i, bits in enumerate(policies)}
    best = min(worst, key=worst.__getitem__)
    bound = min(max(found.bound, start.bound), worst[best])
    return judged(middle, policies[best], bound, start.seconds + time.perf_counter() - begun, objective=worst[best])


def _check(problem: Problem, tables: Sequence[Table], criterion: str, scale: str) -> None:
    for name, value, kinds in (("criterion", criterion, get_args(Criterion)), ("scale", scale, get_args(Scale))):
        if value not in kinds:
            raise BitallocError(f"{name} is {value!r}, expected one of {', '.join(kinds)}.")
    if not tables:
        raise BitallocError("there is no score table: give at least one, for example one for each seed.")
    for table in tables:
        table.check(problem.space)
    units = list(dict.fromkeys(table.unit for table in tables))
    if scale == "none" and len(units) > 1:
        raise SpaceError(f"the tables are in {', '.join(units)}, which cannot be compared: choose scale='range'.")
