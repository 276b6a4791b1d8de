"""How far the sums of a budget can be lowered."""

from collections.abc import Mapping, Sequence

from bitalloc.budget import Budget
from bitalloc.policy import Bits
from bitalloc.search.minimax import minimax
from bitalloc.search.model import Model
from bitalloc.space import SearchSpace

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
    model = Model(space)
    for budget in kept:
        model.limit(budget)
    return model.minimise().bits is not None


def least(space: SearchSpace, group: Group, kept: Sequence[Budget]) -> float | None:
    """The smallest :func:`used` of any policy inside the kept budgets, ``None`` if there is none."""
    bits = lowest(space, group, kept)
    return None if bits is None else used(group, bits)


def lowest(space: SearchSpace, budgets: Sequence[Budget], kept: Sequence[Budget]) -> Mapping[str, Bits] | None:
    """The policy inside the kept budgets whose largest sum / limit of ``budgets`` is least, ``None`` if there is no policy."""
    if len(budgets) == 1:
        model = Model(space)
        for budget in kept:
            model.limit(budget)
        model.add(budgets[0].table.values)
        return model.minimise().bits
    shares = [{n: {b: v / budget.limit for b, v in row.items()} for n, row in budget.table.values.items()} for budget in budgets]
    return minimax(space, shares, kept).bits
