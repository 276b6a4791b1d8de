"""The same problem under other limits, and score and budget with their roles exchanged.

A budget is what has one name: mostly one sum, for a peak several sums with the same limit, of which the largest counts.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from bitalloc.budget import Budget
from bitalloc.errors import BudgetError, InfeasibleError
from bitalloc.policy import Bits
from bitalloc.search.infeasible import explain_infeasible
from bitalloc.search.problem import Problem
from bitalloc.search.reach import least
from bitalloc.space import Table

_EQUAL: Final = 1e-14
"""Two sums that differ by less than this share of their terms are equal but for float rounding."""
_APART: Final = 4e-15
"""A limit that much below a sum excludes the sum, with what a solver lets through for rounding."""
_NOTHING: Final = 1e-100
"""A budget's limit has to be positive; this is 0 for all purposes."""


def budgets_named(problem: Problem, name: str) -> tuple[Budget, ...]:
    """The sums of the budget called ``name``. Raises BudgetError, with the names there are, if there is none."""
    found = tuple(budget for budget in problem.budgets if budget.name == name)
    if not found:
        known = ", ".join(dict.fromkeys(budget.name for budget in problem.budgets)) or "none"
        raise BudgetError(f"{name!r} is no budget of this problem: expected one of {known}.")
    return found


def total(problem: Problem, name: str, bits: Mapping[str, Bits]) -> float:
    """What a policy takes of the budget."""
    return max(budget.table.total(bits) for budget in budgets_named(problem, name))


def without(problem: Problem, *names: str) -> Problem:
    """The problem without the named budgets."""
    return replace(problem, budgets=tuple(budget for budget in problem.budgets if budget.name not in names))


def smallest(problem: Problem, name: str) -> float:
    """The least that a policy can take of the budget with the others held. Raises InfeasibleError if those cannot be."""
    found = least(problem.space, _sums(problem, name), without(problem, name).budgets)
    if found is None:
        raise InfeasibleError(explain_infeasible(without(problem, name)).text())
    return found


def cheapest(problem: Problem, name: str, score: float) -> float:
    """The least that a policy with at most this score, but for float rounding, can take of the budget, the others held.

    Raises:
        InfeasibleError: no policy inside the other budgets has such a score.
    """
    shifted, offset = _from_zero(problem)
    held = Budget("score", max(score - offset + rounding(score, sizes(problem)), _NOTHING), shifted)
    found = least(problem.space, _sums(problem, name), (*without(problem, name).budgets, held))
    if found is None:
        raise InfeasibleError(f"no policy inside the other budgets has a score of {score:.17g}: ask for one that can be reached.")
    return found


def _sums(problem: Problem, name: str) -> tuple[Budget, ...]:
    """The sums of a budget, all with the same limit: of a varied budget the limits do not count."""
    return tuple(Budget(budget.name, 1.0, budget.table) for budget in budgets_named(problem, name))


def sizes(problem: Problem) -> float:
    """The sum over layers of the smallest absolute score: what :func:`rounding` measures by."""
    return math.fsum(min(abs(problem.score.values[name][b]) for b in c.pairs) for name, c in problem.space.candidates.items())


def rounding(score: float, sizes: float) -> float:
    """Total scores closer than this to ``score`` cannot be told from it: the rounding of the sum of the layers' scores."""
    return _EQUAL * (abs(score) + sizes)


def below(problem: Problem, name: str, used: float) -> float:
    """A limit that ``used``, the use of a policy, exceeds and every smaller use of another policy keeps.

    Sums of whole numbers are multiples of the greatest common divisor. Other uses are taken for equal if they differ by less than 4e-15
    of themselves.
    """
    if used <= 0:  # costs are not negative
        return -math.inf
    values = [float(b.table.values[layer][bits]) for b in budgets_named(problem, name) for layer, bits in _choices(problem)]
    if all(value.is_integer() for value in values):
        step = math.gcd(*map(int, values))
        if step > _APART * used:
            return used - step / 2
    return used * (1 - _APART)


def _choices(problem: Problem) -> list[tuple[str, Bits]]:
    return [(name, bits) for name, choices in problem.space.candidates.items() for bits in choices.pairs]


def _from_zero(problem: Problem) -> tuple[Table, float]:
    """The score with every layer's least value taken out, and the sum of what was taken out."""
    rows = {name: {bits: problem.score.values[name][bits] for bits in c.pairs} for name, c in problem.space.candidates.items()}
    least = {name: min(row.values()) for name, row in rows.items()}
    table = Table({name: {bits: value - least[name] for bits, value in row.items()} for name, row in rows.items()}, problem.score.unit)
    return table, math.fsum(least.values())
