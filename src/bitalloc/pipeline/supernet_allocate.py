"""From the log-probabilities of a search to a policy: the exact solve under the hard budgets."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bitalloc.budget import Budget
from bitalloc.costs import BudgetSpec
from bitalloc.layers import Description
from bitalloc.pipeline.allocate import Allocation, Terms, policy_of
from bitalloc.policy import Bits, Policy
from bitalloc.search import Problem, Solution, solve
from bitalloc.space import SearchSpace, Table
from bitalloc.supernet import LogProbabilities, fillings

LEAST_USE = 0.98
"""Share of the nearest budget that is used well enough, as near as the expected cost of a search comes to it."""


@dataclass(frozen=True, slots=True)
class Filled:
    """The solution that uses the budgets well enough.

    Attributes:
        problem: with the score that it is the best for.
        solution: of ``problem``.
        use: share that it uses of the budget which is nearest to its limit.
    """

    problem: Problem
    solution: Solution
    use: float


def allocate_probabilities(
    found: LogProbabilities,
    description: Description,
    space: SearchSpace,
    budgets: BudgetSpec,
    *,
    least_use: float = LEAST_USE,
    uniform_bits: Bits | None = None,
    uniform_space: SearchSpace | None = None,
    tables: Mapping[str, Table] | None = None,
    per_channel: bool = False,
    provenance: Mapping[str, Any] | None = None,
) -> Allocation:
    """The most probable policy inside the budgets that uses them, and the uniform one beside it.

    Args:
        found: what a search learned about the layers of ``description``; see :meth:`LogProbabilities.transferred` for another network's.
        description: of the model.
        space: the candidates of every layer.
        budgets: see :func:`bitalloc.pipeline.allocate.allocate`.
        least_use: share of the nearest budget that the policy must use, or else the one that uses most of it is taken, see
            :func:`bitalloc.supernet.fillings`. 0 takes the most probable policy.
        uniform_bits: see :func:`bitalloc.pipeline.allocate.allocate`, as all that follow.
        uniform_space: see there.
        tables: see there.
        per_channel: see there.
        provenance: JSON values to keep in the policy.

    Raises:
        BudgetError: a budget cannot be understood.
        InfeasibleError: no policy, or no uniform policy, meets the budgets, or ``uniform_bits`` does not; it says what is reachable.
        SpaceError: a layer or width that can be chosen was not searched.
    """
    terms = Terms(description, space, budgets, uniform_bits, uniform_space, tables, per_channel, provenance)
    score = found.scores(space)
    filled = fill(score, space, terms.limits, least_use)
    how = {
        "method": found.provenance.get("method", "supernet"),
        "log_probability": -score.total(filled.solution.bits),
        "least_use": least_use,
        "search": {key: value for key, value in found.provenance.items() if key != "seconds"},
    }
    return terms.allocation(filled.problem, filled.solution, how)


def fill(score: Table, space: SearchSpace, budgets: Sequence[Budget], least_use: float) -> Filled:
    """The first of :func:`bitalloc.supernet.fillings` that uses ``least_use`` of the nearest budget, else the one that uses most.

    Raises:
        InfeasibleError: no policy meets the budgets.
    """
    best: Filled | None = None
    for table in fillings(score, space, budgets):
        problem = Problem(space, table, tuple(budgets))
        solution = solve(problem)
        use = max((entry.used / entry.limit for entry in solution.budgets), default=1.0)
        if best is None or use > best.use:
            best = Filled(problem, solution, use)
        if use >= least_use:
            break
    assert best is not None  # the score itself comes first
    return best


def reversed_search(allocation: Allocation, found: LogProbabilities, description: Description, least_use: float) -> Policy:
    """The policy that :func:`reversed_probabilities` give inside the same budgets, used as well; it should lose clearly."""
    space = allocation.problem.space
    turned = fill(reversed_probabilities(found, space), space, allocation.problem.budgets, least_use)
    kept = {key: allocation.policy.provenance[key] for key in ("not_counted", "requested")}
    return policy_of(turned.solution, description, space, allocation.costs, {**kept, "method": "reversed"})


def reversed_probabilities(found: LogProbabilities, space: SearchSpace) -> Table:
    """The scores turned upside down: the layer that would have the most bits gets the row of the one that would have the fewest.

    Layers are ranked by ``E[b_w] * E[b_a]``, among those with the same candidates; see
    :func:`bitalloc.search.reversed_assignment` for the same with importances.
    """
    score = found.scores(space)
    values = dict(score.values)
    groups: dict[tuple[Bits, ...], list[str]] = {}
    for name in space.free:
        groups.setdefault(space.candidates[name].pairs, []).append(name)
    for names in groups.values():
        ranked = sorted(names, key=lambda name: _expected_product(found, space, name))
        values.update({name: score.values[other] for name, other in zip(ranked, reversed(ranked), strict=True)})
    return Table(values, score.unit)


def _expected_product(found: LogProbabilities, space: SearchSpace, name: str) -> float:
    """From the numbers of both sides; a side that was not searched has its one width."""
    pairs = space.candidates[name].pairs
    halves = []
    for rows, width in ((found.weight, pairs[0].weight), (found.act, pairs[0].act)):
        row = rows.get(name)
        halves.append(float(width) if row is None else sum(math.exp(value) * bits for bits, value in row.items()))
    return halves[0] * halves[1]
