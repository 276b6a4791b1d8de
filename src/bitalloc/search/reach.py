"""How far the sums of a budget can be lowered."""

import math
from collections.abc import Mapping, Sequence

from bitalloc.budget import Budget
from bitalloc.errors import InfeasibleError
from bitalloc.policy import Bits
from bitalloc.search.instance import instance_of
from bitalloc.search.minimax import minimax
from bitalloc.search.problem import Problem
from bitalloc.space import SearchSpace, Table

Group = tuple[Budget, ...]
"""The budgets of one name: a peak is limited at several moments, and counts as the largest of their sums."""


def grouped(budgets: Sequence[Budget]) -> dict[str, Group]:
    """The budgets by name, in their order."""
    found: dict[str, Group] = {}
    for budget in budgets:
        found[budget.name] = (*found.get(budget.name, ()), budget)
    return found


def used(group: Group, bits: Mapping[str, Bits]) -> float:
    """The largest sum of the group at the given widths, measured by the first one's limit where the limits differ."""
    return max(budget.table.total(bits) * (group[0].limit / budget.limit) for budget in group)


def possible(space: SearchSpace, kept: Sequence[Budget]) -> bool:
    """Whether any policy is inside the budgets."""
    nothing = Table({name: dict.fromkeys(choices.pairs, 0.0) for name, choices in space.candidates.items()}, "nothing")
    return _cheapest(space, kept[0].table if kept else nothing, kept) is not None


def least(space: SearchSpace, group: Group, kept: Sequence[Budget]) -> float | None:
    """The smallest :func:`used` of any policy inside the kept budgets, ``None`` if there is none."""
    bits = lowest(space, group, kept)
    return None if bits is None else used(group, bits)


def lowest(space: SearchSpace, budgets: Sequence[Budget], kept: Sequence[Budget]) -> Mapping[str, Bits] | None:
    """The policy inside the kept budgets whose largest sum / limit of ``budgets`` is least, ``None`` if there is no policy."""
    if len(budgets) == 1:
        return _cheapest(space, budgets[0].table, kept)
    shares = [{n: {b: v / budget.limit for b, v in row.items()} for n, row in budget.table.values.items()} for budget in budgets]
    return minimax(space, shares, kept).bits


def _cheapest(space: SearchSpace, table: Table, kept: Sequence[Budget]) -> Mapping[str, Bits] | None:
    problem = Problem(space, table, tuple(kept))
    try:
        found = instance_of(problem).best(problem, 0.0, math.inf)
    except InfeasibleError:  # the ties leave no policy
        return None
    return None if found is None else found.bits
