"""From indicators and budgets to a policy: scores, costs and the exact search in one call."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from bitalloc.budget import Budget
from bitalloc.costs import BitOps, WeightBytes, resolve_budgets, uniform_bits_of
from bitalloc.errors import InfeasibleError
from bitalloc.layers import Description
from bitalloc.policy import Bits, Policy
from bitalloc.search import Problem, Solution, reversed_assignment, solve, uniform
from bitalloc.sensitivity import Alpha, Change, Indicators
from bitalloc.space import SearchSpace, Table

Projection = Literal["isotonic", "erase", "none"]
BudgetSpec = Mapping[str, str | float]


@dataclass(frozen=True, slots=True)
class Allocation:
    """A policy, how it was found, and what it is to be compared with.

    Attributes:
        policy: the best widths inside the budgets.
        solution: status, objective, bound, and use of every budget.
        uniform: the uniform policy inside the same budgets.
        alpha: factor between the halves of the score.
        changes: indicators that the projection replaced.
        convention: how BitOps are counted, in a sentence.
        problem: what was solved.
    """

    policy: Policy
    solution: Solution
    uniform: Policy
    alpha: Alpha
    changes: tuple[Change, ...]
    convention: str
    problem: Problem


def allocate(
    indicators: Indicators,
    description: Description,
    space: SearchSpace,
    budgets: BudgetSpec,
    *,
    alpha: float | None = None,
    projection: Projection = "isotonic",
    uniform_bits: Bits | None = None,
    uniform_space: SearchSpace | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> Allocation:
    """The best policy inside the budgets, and the uniform one beside it.

    Args:
        indicators: importance of every layer at every width, for example from ``measure``.
        description: of the model.
        space: the candidates of every layer.
        budgets: ``bitops``, ``weight_bytes``, ``compression`` to limits, see :func:`bitalloc.costs.resolve_budgets`.
        alpha: factor on the weights' half of the score; by default the one that balances the halves.
        projection: ``isotonic`` replaces indicators that grow with the width, ``erase`` forbids them as published, ``none`` takes
            them as they are.
        uniform_bits: widths of the uniform policy; by default those that a budget names, else the largest that fit.
        uniform_space: the space that the uniform policy, and budgets written like one, are from; default ``space``. It may pin layers
            that ``space`` leaves free.
        provenance: JSON values to keep in the policy.

    Raises:
        BudgetError: a budget cannot be understood.
        InfeasibleError: no policy, or no uniform policy, meets the budgets, or ``uniform_bits`` does not; it says what is reachable.
        SpaceError: indicators are missing.
    """
    even_space = uniform_space or space
    limits = resolve_budgets(budgets, description.layers, space, even_space.pinned)
    projected, changes = project(indicators, projection)
    # From the isotonic indicators whatever the projection: an erased point would blow up the range.
    factor = indicators.isotonic()[0].automatic_alpha() if alpha is None else Alpha(alpha, "as requested")
    problem = Problem(space, projected.table(factor.value, space), limits)
    solution = solve(problem)
    even = uniform_policy(limits, budgets, description, even_space, uniform_bits)
    common = {"not_counted": [entry.name for entry in description.not_counted], "requested": dict(budgets), **(provenance or {})}
    measured = dict(indicators.provenance)
    how = {"method": measured.get("method", "search"), "alpha": factor.value, "projection": projection, "indicators": measured}
    return Allocation(
        policy=solution.policy(description.layers, {**common, **how}),
        solution=solution,
        uniform=even.policy(description.layers, {**common, "method": "uniform"}),
        alpha=factor,
        changes=changes,
        convention=bitops_convention(description, space, even_space),
        problem=problem,
    )


def uniform_policy(
    limits: Sequence[Budget], budgets: BudgetSpec, description: Description, space: SearchSpace, bits: Bits | None = None
) -> Solution:
    """The uniform policy inside ``limits``, from ``space``.

    Args:
        limits: the resolved budgets, over this or another space of the same layers.
        budgets: as they were written; a pair in them is the first choice.
        description: of the model.
        space: the candidates of every layer.
        bits: the pair that it must have.

    Raises:
        InfeasibleError: no uniform policy, or not the one with ``bits``, is inside the limits.
    """
    costs = {cost.unit: cost.table(description.layers, space) for cost in (BitOps(), WeightBytes())}
    problem = Problem(space, flat_score(space), tuple(Budget(b.name, b.limit, costs[b.unit]) for b in limits))
    even = uniform(problem, bits or uniform_bits_of(budgets))
    if bits is not None and any(even.bits[name] != bits for name in space.free):
        raise InfeasibleError(
            f"the uniform policy {bits} is not inside the budgets, or not among the candidates of all layers; "
            f"the largest that is: {even.bits[space.free[0]]}."
        )
    return even


def bitops_convention(description: Description, space: SearchSpace, uniform_space: SearchSpace) -> str:
    """How BitOps are counted, and which layers only the mixed policy may change, in a sentence or two."""
    sentence = BitOps().convention(uniform_space, description.layers)
    freed = [name for name in uniform_space.pinned if name in set(space.free)]
    if not freed:
        return sentence
    return f"{sentence}. So the budgets and the uniform policy; the mixed policy's widths of {', '.join(freed)} are searched"


def flat_score(space: SearchSpace) -> Table:
    """A score of 0 for every choice, where only the budgets matter."""
    return Table({name: dict.fromkeys(choices.pairs, 0.0) for name, choices in space.candidates.items()}, "importance")


def reversed_policy(allocation: Allocation, description: Description) -> Policy:
    """LIMPQ's sanity check: inside the same budgets the most important layers get the fewest bits."""
    kept = {key: allocation.policy.provenance[key] for key in ("not_counted", "requested")}
    return reversed_assignment(allocation.problem).policy(description.layers, {**kept, "method": "reversed"})


def project(indicators: Indicators, projection: Projection) -> tuple[Indicators, tuple[Change, ...]]:
    """The indicators without points that grow with the width, and what was changed for it."""
    if projection == "isotonic":
        return indicators.isotonic()
    return indicators.erased() if projection == "erase" else (indicators, ())
