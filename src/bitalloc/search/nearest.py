"""The policy that comes closest to budgets that cannot all be met."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, final

from bitalloc.budget import Budget
from bitalloc.errors import InfeasibleError
from bitalloc.search.infeasible import Infeasibility
from bitalloc.search.problem import Problem
from bitalloc.search.reach import Group, grouped, least, lowest, used
from bitalloc.search.solution import Solution, judged
from bitalloc.search.solver import solve
from bitalloc.search.units import amount
from bitalloc.space import SearchSpace

_EQUAL: Final = 1e-9
"""Shares that differ by less are equal: the tolerance of HiGHS."""


@final
@dataclass(frozen=True, slots=True)
class Nearest:
    """A policy that exceeds its budgets as little as possible.

    Attributes:
        solution: the policy, judged against the budgets as they were asked for; its bound is for policies that exceed them no more.
        excess: budget name to the share of the limit that is exceeded: 0.05 for 5 % above, 0 if met. Of budgets of one name, such as
            a peak's moments, the largest.
    """

    solution: Solution
    excess: Mapping[str, float]

    def text(self) -> str:
        """One line: what every budget takes and by how much it is above its limit."""
        parts = []
        for name, share in self.excess.items():
            use = max((use for use in self.solution.budgets if use.name == name), key=lambda use: use.used / use.limit)
            where = f"{share:.3%} above" if share > 0 else "inside"
            parts.append(f"{name}: {amount(use.used, use.unit)}, {where} the limit of {amount(use.limit, use.unit)}")
        return "; ".join(parts)


def nearest_feasible(problem: Problem) -> Nearest:
    """The best policy among those whose relative excesses over the limits are the least possible, the largest excess first.

        minimise over policies   max over budgets k of   cost_k / limit_k - 1

    exactly, as an integer programme with one continuous variable; to 1e-9, the tolerance of HiGHS. The budgets that cannot do
    with less are raised by that share, and the same is asked for the others, until they can be met: lexicographic
    minimax. Inside the raised limits the score is minimised. Where all budgets can be met, this is :func:`solve`.

    Raises:
        InfeasibleError: the ties leave no policy, whatever the budgets.
    """
    start = time.perf_counter()
    raised: list[Budget] = []
    left = grouped(problem.budgets)
    while left:
        bits = lowest(problem.space, [budget for group in left.values() for budget in group], raised)
        if bits is None:
            raise InfeasibleError(Infeasibility((), ()).text())
        share = max(used(group, bits) / group[0].limit for group in left.values())
        if share <= 1:
            break
        even = {name: tuple(Budget(name, b.limit * share, b.table) for b in group) for name, group in left.items()}
        needy = [name for name in left if not _below(problem.space, even, name, raised)]
        for name in needy or list(left)[:1]:  # where any one of several could do with less, but not all of them
            raised += even[name]
            del left[name]
    kept = [budget for group in left.values() for budget in group]
    found = solve(Problem(problem.space, problem.score, (*raised, *kept)))
    solution = judged(problem, found.bits, found.bound, time.perf_counter() - start)
    groups = grouped(problem.budgets)
    return Nearest(solution, {name: max(used(group, found.bits) / group[0].limit - 1, 0.0) for name, group in groups.items()})


def _below(space: SearchSpace, groups: Mapping[str, Group], name: str, raised: list[Budget]) -> bool:
    """Whether a policy inside the other limits stays below this one."""
    others = [budget for other, group in groups.items() if other != name for budget in group]
    value = least(space, groups[name], [*others, *raised])
    return value is not None and value < groups[name][0].limit * (1 - _EQUAL)
