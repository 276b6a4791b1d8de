"""The exact solver: the integer programme, handed to HiGHS."""

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Final

from bitalloc.budget import Budget
from bitalloc.errors import BitallocError, InfeasibleError
from bitalloc.policy import Bits
from bitalloc.search.problem import Problem, within
from bitalloc.search.programme import Programme, build
from bitalloc.search.session import run
from bitalloc.search.solution import Solution, judged
from bitalloc.space import SearchSpace, Table

_WIDE: Final = 1e4
"""A score that many times above the usual ones drowns them in the solver's tolerance."""
_LOOSE: Final = 0.1
"""The gap of a first look, which only has to show which scores are too large to matter."""


def solve(problem: Problem, *, gap: float = 0.0, time_limit: float | None = None) -> Solution:
    """The best policy inside all budgets, proven.

    One binary for every layer and pair of widths, solved with HiGHS (Huangfu and Hall, "Parallelizing the dual revised simplex
    method", 2018) on one thread, with the same result at every call. What HiGHS returns is counted anew: a policy above a
    limit, which its tolerances would let through, is excluded and the programme solved again.

    Args:
        problem: space, score and budgets.
        gap: the search may stop at a solution proven to be within this share of the optimum; 0, the default, means the optimum,
            which takes milliseconds to seconds for networks of a hundred layers.
        time_limit: seconds after which the best solution found so far is returned with status ``feasible``; no limit by default.

    Raises:
        InfeasibleError: no policy meets the budgets; the message gives every limit and the smallest reachable value.
        BitallocError: ``gap`` is negative, ``time_limit`` is not positive, or the time is over before any solution is found.
    """
    if not 0 <= gap < math.inf:
        raise BitallocError(f"gap is {gap}, expected a share of the objective that is 0 or more, for example 0.01.")
    if time_limit is not None and not time_limit > 0:
        raise BitallocError(f"time_limit is {time_limit}, expected a positive number of seconds or None.")
    start = time.perf_counter()
    deadline = math.inf if time_limit is None else start + time_limit
    found = _minimise(problem.space, problem.score, problem.budgets, gap, deadline)
    if found is None:
        raise InfeasibleError(_explained(problem))
    bits, bound = found
    return judged(problem, bits, bound, time.perf_counter() - start)


def _minimise(
    space: SearchSpace, objective: Table, budgets: Sequence[Budget], gap: float, deadline: float
) -> tuple[Mapping[str, Bits], float] | None:
    """The best assignment and a bound on the objective, or ``None`` if there is no assignment inside the budgets."""
    excluded: list[Mapping[str, Bits]] = []
    best: Mapping[str, Bits] | None = None
    ceiling = math.inf
    while (programme := build(space, objective, budgets, excluded, ceiling)) is not None:
        loose = best is None and _wide(programme)
        answer = run(programme, max(gap, _LOOSE) if loose else gap, deadline)
        if answer.infeasible:
            break
        bits = answer.bits
        if bits is not None and not all(within(budget, bits) for budget in budgets):
            excluded.append(bits)
            continue
        if bits is not None and (best is None or objective.total(bits) < ceiling):
            best, ceiling = bits, objective.total(bits)
        if best is None:
            raise BitallocError("the time limit passed before any policy inside the budgets was found: give the search more time.")
        if not answer.complete or not (loose or _blurred(programme, ceiling)):
            return best, min(answer.bound, ceiling)
        # The ceiling closes the scores that no better solution can hold: solve again at the scale of the rest. It ends, because a
        # programme is blurred only if its widest score is far above the ceiling, which the next one has nothing above.
    return None if best is None else (best, ceiling)


def _wide(programme: Programme) -> bool:
    spans = [span for span in programme.objective if span > 0]
    return bool(spans) and max(spans) > _WIDE * statistics.median(spans)


def _blurred(programme: Programme, ceiling: float) -> bool:
    """Whether the widest score is so far above all that a better solution can hold that the tolerance hides what is left."""
    room = ceiling / programme.scale - programme.offset
    return room > 0 and max(programme.objective) > _WIDE * room


def _explained(problem: Problem) -> str:
    parts: list[str] = []
    for k, budget in enumerate(problem.budgets):
        alone = _smallest(problem, budget, ())
        if alone is None:
            break
        text = f"{budget.name}: limit {_written(budget.limit)} {budget.unit}, smallest reachable {_written(alone)}"
        held = _smallest(problem, budget, (*problem.budgets[:k], *problem.budgets[k + 1 :])) if len(problem.budgets) > 1 else None
        if held is not None and held != alone:
            text += f" alone and {_written(held)} with the other budgets held"
        parts.append(text)
    if len(parts) < len(problem.budgets) or not parts:
        return "no policy keeps the ties: the tied layers have no widths in common, whatever the budgets. Give them the same candidates."
    return f"no policy of the search space meets all budgets. {'; '.join(parts)}. Raise the limits or add narrower candidates."


def _smallest(problem: Problem, budget: Budget, others: Sequence[Budget]) -> float | None:
    found = _minimise(problem.space, budget.table, others, 0.0, math.inf)
    return None if found is None else budget.table.total(found[0])


def _written(value: float) -> str:
    """All digits, so that the number can be pasted back as a limit."""
    return str(int(value)) if value.is_integer() else repr(value)
