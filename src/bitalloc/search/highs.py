"""The reference solver: the whole integer programme, handed to HiGHS."""

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Final

from bitalloc.budget import Budget
from bitalloc.errors import BitallocError, InfeasibleError
from bitalloc.policy import Bits
from bitalloc.search.model import Model
from bitalloc.search.problem import Problem
from bitalloc.search.solution import Solution, judged
from bitalloc.space import SearchSpace, Table

_WIDE: Final = 1e4
"""A score that many times above the usual ones drowns them in the solver's tolerance."""
_LOOSE: Final = 0.1
"""The gap of a first look, which only has to show which scores are too large to matter."""


def solve_with_highs(problem: Problem, *, gap: float = 0.0, time_limit: float | None = None) -> Solution:
    """The best policy inside all budgets, proven by a general solver: what :func:`bitalloc.search.solve` is tested against.

    One binary for every layer and pair of widths, solved with HiGHS (Huangfu and Hall, "Parallelizing the dual revised simplex
    method", 2018) on one thread, with the same result at every call. What HiGHS returns is counted anew: a policy above a
    limit, which its tolerances would let through, is excluded and the programme solved again. There are no shadow prices.

    Arguments and errors are those of :func:`bitalloc.search.solve`.
    """
    deadline = deadline_of(gap, time_limit)
    start = time.perf_counter()
    found = minimise(problem.space, problem.score, problem.budgets, gap, deadline)
    if found is None:
        raise InfeasibleError("no policy of the search space keeps the ties and meets all budgets: raise the limits or add candidates.")
    bits, bound = found
    return judged(problem, bits, bound, time.perf_counter() - start)


def deadline_of(gap: float, time_limit: float | None) -> float:
    """When a search that starts now must end, on ``time.perf_counter``. Raises BitallocError for options out of range."""
    if not 0 <= gap < math.inf:
        raise BitallocError(f"gap is {gap}, expected a share of the objective that is 0 or more, for example 0.01.")
    if time_limit is not None and not time_limit > 0:
        raise BitallocError(f"time_limit is {time_limit}, expected a positive number of seconds or None.")
    return math.inf if time_limit is None else time.perf_counter() + time_limit


def minimise(
    space: SearchSpace,
    objective: Table,
    budgets: Sequence[Budget],
    gap: float,
    deadline: float,
    known: Mapping[str, Bits] | None = None,
) -> tuple[Mapping[str, Bits], float] | None:
    """The best assignment and a bound on the objective, or ``None`` if there is no assignment inside the budgets.

    Args:
        space: what may be chosen.
        objective: the score of every choice.
        budgets: the limits.
        gap: the search may stop within this share of the optimum.
        deadline: of ``time.perf_counter``.
        known: an assignment inside the budgets, to be returned if nothing better is found.

    Raises:
        BitallocError: the time is over and no assignment is known.
    """
    best, ceiling = known, math.inf if known is None else objective.total(known)
    while True:
        model = Model(space)
        for budget in budgets:
            model.limit(budget)
        model.add(objective.values)
        model.under(ceiling)
        loose = best is None and _wide(model.costs())
        answer = model.minimise(max(gap, _LOOSE) if loose else gap, deadline, best)
        if answer.infeasible:
            return None if best is None else (best, ceiling)
        if answer.bits is not None and (best is None or objective.total(answer.bits) < ceiling):
            best, ceiling = answer.bits, objective.total(answer.bits)
        if best is None:
            raise BitallocError("the time limit passed before any policy inside the budgets was found: give the search more time.")
        # Whether the widest score is so far above all that a better policy can hold that the tolerance hides what is left.
        blurred = 0 < _WIDE * (ceiling - model.offset) < max(model.costs(), default=0.0)
        if not answer.complete or not (loose or blurred):
            return best, min(answer.bound, ceiling)
        # The ceiling closes the scores that no better policy can hold: solve again at the scale of the rest. It ends, because a
        # programme is blurred only if its widest score is far above the ceiling, which the next one has nothing above.


def _wide(costs: Sequence[float]) -> bool:
    spans = [span for span in costs if span > 0]
    return bool(spans) and max(spans) > _WIDE * statistics.median(spans)
