"""A problem made ready once, to be solved under many limits."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeVar, final

from bitalloc.budget import Budget
from bitalloc.errors import BitallocError, InfeasibleError
from bitalloc.search.highs import deadline_of
from bitalloc.search.infeasible import explain_infeasible
from bitalloc.search.instance import Instance, instance_of
from bitalloc.search.problem import Problem
from bitalloc.search.solution import Solution, judged

Checked = TypeVar("Checked", Problem, Budget)

_NOTHING: Final = 1e-100
"""A budget's limit has to be positive; this is 0 for all purposes."""


@final
@dataclass(frozen=True, slots=True)
class Prepared:
    """A problem whose arrays and ties, which do not depend on the limits, are worked out; see :func:`prepare`.

    Attributes:
        problem: as given.
        instance: its arrays.
    """

    problem: Problem
    instance: Instance

    def solve(
        self, limits: Sequence[float] | Mapping[str, float] | None = None, *, gap: float = 0.0, time_limit: float | None = None
    ) -> Solution:
        """The best policy inside these limits, as :func:`bitalloc.search.solve` finds it.

        Args:
            limits: one for every budget of the problem, in its order; or by name, then the others keep theirs; those of the problem by
                default. 0 or more.
            gap: see :func:`bitalloc.search.solve`.
            time_limit: see :func:`bitalloc.search.solve`.

        Raises:
            InfeasibleError: no policy meets the limits; the message gives the reasons.
            BudgetError: a limit is below 0 or not finite.
            BitallocError: see :func:`bitalloc.search.solve`.
        """
        start = time.perf_counter()
        deadline = deadline_of(gap, time_limit)
        problem = self.problem if limits is None else limited(self.problem, limits)
        found = self.instance.best(problem, gap, deadline)
        if found is None:
            raise InfeasibleError(explain_infeasible(problem).text())
        return judged(problem, found.bits, found.bound, time.perf_counter() - start, prices=found.prices)


def prepare(problem: Problem) -> Prepared:
    """Makes a problem ready to be solved under many limits: :meth:`Prepared.solve`.

    Raises:
        InfeasibleError: no policy keeps the ties.
    """
    return Prepared(problem, instance_of(problem))


def limited(problem: Problem, limits: Sequence[float] | Mapping[str, float]) -> Problem:
    """The problem with other limits, of 0 or more: one for every budget, or by name.

    Raises:
        BitallocError: the number of limits is another one than that of budgets.
        BudgetError: a limit is below 0 or not finite.
    """
    if isinstance(limits, Mapping):
        limits = [limits.get(budget.name, budget.limit) for budget in problem.budgets]
    if len(limits) != len(problem.budgets):
        raise BitallocError(f"there are {len(limits)} limits for {len(problem.budgets)} budgets: give one for every budget.")
    budgets = tuple(_moved(budget, limit or _NOTHING) for budget, limit in zip(problem.budgets, limits, strict=True))
    return _unchecked(Problem, space=problem.space, score=problem.score, budgets=budgets)


def _moved(budget: Budget, limit: float) -> Budget:
    if not 0 < limit < math.inf:
        return replace(budget, limit=limit)  # raises
    return _unchecked(Budget, name=budget.name, limit=limit, table=budget.table)


def _unchecked(kind: type[Checked], **values: object) -> Checked:
    """An object whose tables were checked when it was first made, which takes longer than a search."""
    made = object.__new__(kind)
    for name, value in values.items():
        object.__setattr__(made, name, value)
    return made
