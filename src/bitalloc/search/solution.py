"""What a solver answers."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, final

from bitalloc.layers import LayerInfo
from bitalloc.policy import Bits, Policy
from bitalloc.search.problem import ROUNDING, Problem

Status = Literal["optimal", "feasible"]

_EXACT = 1e-9
"""A relative gap up to this is the solver's rounding, not a worse solution."""
_CANCELLED = 1e-4
"""Scores whose sum is less than that share of their sizes cancel: the gap is measured by that share of the sizes then."""


@final
@dataclass(frozen=True, slots=True)
class BudgetUse:
    """How much of a budget a solution uses.

    Attributes:
        name: what the user called the budget.
        limit: the largest allowed sum, in ``unit``.
        unit: what is limited, for example ``bitops``.
        used: the sum at the chosen widths.
        slack: what is left, never negative.
        price: the shadow price: by how much the score would fall for each further ``unit``, at the optimum of the linear relaxation
            over the choices that fit into the budgets at all (its Lagrange multiplier). Never negative, and 0 where the budget does
            not bind there. ``None`` where the search was made without it.
    """

    name: str
    limit: float
    unit: str
    used: float
    slack: float
    price: float | None = None


@final
@dataclass(frozen=True, slots=True)
class Solution:
    """Widths of every layer, and how good they are.

    Attributes:
        bits: layer name to widths, in the order of the space.
        status: ``optimal`` if nothing better exists inside the budgets, ``feasible`` if that was not proven.
        objective: the total score.
        bound: no choice inside the budgets has a lower score than this.
        gap: (objective - bound) / abs(objective), 0 when optimal. Where positive and negative scores cancel, the divisor is at least
            1e-4 of the sum of the absolute values of the chosen scores and of the bound.
        budgets: what is used of every budget, in the order of the problem; of several with one name the one of which most is used,
            at the sum of their prices.
        seconds: wall-clock time of the search.
        shared_inputs: groups of layers that read one tensor through one quantizer, from the space.
    """

    bits: Mapping[str, Bits]
    status: Status
    objective: float
    bound: float
    gap: float
    budgets: tuple[BudgetUse, ...]
    seconds: float
    shared_inputs: tuple[tuple[str, ...], ...] = ()

    def policy(self, layers: Sequence[LayerInfo], provenance: Mapping[str, Any]) -> Policy:
        """The widths as a policy of the model with these layers.

        Its provenance is ``provenance`` and ``status``, ``objective``, ``bound``, ``gap`` and ``budgets`` of this solution. The
        seconds are left out, so that the same search writes the same file.

        Raises:
            PolicyError: the solution is for other layers, or layers that share an input differ in width; the message names them.
        """
        shapes = {layer.name: layer.weight_shape for layer in layers}
        found = {
            "status": self.status,
            "objective": self.objective,
            "bound": self.bound,
            "gap": self.gap,
            "budgets": [asdict(use) for use in self.budgets],
        }
        policy = Policy(self.bits, {name: shapes.get(name, ()) for name in self.bits}, {**provenance, **found}, self.shared_inputs)
        policy.check(layers)
        return policy


def judged(
    problem: Problem,
    bits: Mapping[str, Bits],
    bound: float,
    seconds: float,
    *,
    prices: Sequence[float] | None = None,
    objective: float | None = None,
) -> Solution:
    """The solution with these widths: everything but ``bound`` and ``prices`` is counted anew from the problem's own tables.

    ``objective`` is given where it is not the sum of the problem's score.
    """
    sizes = math.fsum(abs(problem.score.values[name][choice]) for name, choice in bits.items())
    objective = problem.score.total(bits) if objective is None else objective
    gap = (objective - bound) / max(abs(objective), _CANCELLED * (sizes + abs(bound))) if objective > bound else 0.0
    # The last digit of a large score that was not chosen can be more than all that was.
    optimal = gap <= _EXACT or objective - bound <= ROUNDING * _largest(problem)
    ordered = {name: bits[name] for name in problem.space.candidates}
    return Solution(
        bits=ordered,
        status="optimal" if optimal else "feasible",
        objective=objective,
        bound=objective if optimal else bound,
        gap=0.0 if optimal else gap,
        budgets=_uses(problem, ordered, prices),
        seconds=seconds,
        shared_inputs=problem.space.shared_inputs,
    )


def _largest(problem: Problem) -> float:
    """The largest score that a policy could add up to, by size; choices that the space leaves out are taken in, which is quicker."""
    rows = (problem.score.values[name].values() for name in problem.space.candidates)
    return math.fsum(max(*row, -min(row)) for row in rows)


def _uses(problem: Problem, bits: Mapping[str, Bits], prices: Sequence[float] | None) -> tuple[BudgetUse, ...]:
    uses: dict[str, BudgetUse] = {}
    for k, budget in enumerate(problem.budgets):
        used = budget.table.total(bits)
        price = None if prices is None else prices[k]
        before = uses.get(budget.name)
        if before is not None and before.price is not None and price is not None:
            price += before.price
        if before is not None and before.used / before.limit >= used / budget.limit:
            uses[budget.name] = replace(before, price=price)
        else:
            uses[budget.name] = BudgetUse(budget.name, budget.limit, budget.unit, used, max(budget.limit - used, 0.0), price)
    return tuple(uses.values())


def loose_bound(problem: Problem) -> float:
    """The total score if every layer had its best choice: a bound that needs no search."""
    rows = ((problem.score.values[name][bits] for bits in choices.pairs) for name, choices in problem.space.candidates.items())
    return math.fsum(min(row) for row in rows)
