"""From indicators and budgets to a policy: scores, costs and the exact search in one call."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, final

from bitalloc.budget import Budget
from bitalloc.costs import BitOps, BudgetSpec, Costs, uniform_bits_of
from bitalloc.coupling import requantizations
from bitalloc.errors import InfeasibleError
from bitalloc.layers import Description
from bitalloc.policy import Bits, Policy
from bitalloc.search import BudgetUse, Problem, Solution, reversed_assignment, solve, uniform
from bitalloc.sensitivity import Alpha, Change, Indicators
from bitalloc.space import SearchSpace, Table

Projection = Literal["isotonic", "erase", "none"]


@dataclass(frozen=True, slots=True)
class Allocation:
    """A policy, how it was found, and what it is to be compared with.

    Attributes:
        policy: the best widths inside the budgets.
        solution: status, objective, bound, and use of every budget.
        uses: what the policy uses of every budget, one entry a budget; the solution has one for every moment of a peak.
        costs: how everything is counted, for other budgets and policies too.
        uniform: the uniform policy inside the same budgets.
        alpha: factor between the halves of the score; None where probabilities were searched, which have none.
        changes: indicators that the projection replaced.
        convention: how BitOps are counted, in a sentence.
        problem: what was solved.
    """

    policy: Policy
    solution: Solution
    uses: tuple[BudgetUse, ...]
    costs: Costs
    uniform: Policy
    alpha: Alpha | None
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
    tables: Mapping[str, Table] | None = None,
    per_channel: bool = False,
    provenance: Mapping[str, Any] | None = None,
) -> Allocation:
    """The best policy inside the budgets, and the uniform one beside it.

    Args:
        indicators: importance of every layer at every width, for example from ``measure``.
        description: of the model.
        space: the candidates of every layer.
        budgets: ``bitops``, ``compression``, ``peak_activation_bytes`` and so on to limits, see
            :func:`bitalloc.costs.resolve_budgets`.
        alpha: factor on the weights' half of the score; by default the one that balances the halves.
        projection: ``isotonic`` replaces indicators that grow with the width, ``erase`` forbids them as published, ``none`` takes
            them as they are.
        uniform_bits: widths of the uniform policy; by default those that a budget names, else the largest that fit.
        uniform_space: the space that the uniform policy, and budgets written like one, are from; default ``space``. It may pin layers
            that ``space`` leaves free.
        tables: costs that were measured, by the name that ``budgets`` calls them, see :func:`bitalloc.costs.load_table`.
        per_channel: whether weights have one step size an output channel, for the budget ``model_bytes``; one a tensor by default.
        provenance: JSON values to keep in the policy.

    Raises:
        BudgetError: a budget cannot be understood.
        InfeasibleError: no policy, or no uniform policy, meets the budgets, or ``uniform_bits`` does not; it says what is reachable.
        SpaceError: indicators are missing.
    """
    terms = Terms(description, space, budgets, uniform_bits, uniform_space, tables, per_channel, provenance)
    projected, changes = project(indicators, projection)
    # From the isotonic indicators whatever the projection: an erased point would blow up the range.
    factor = indicators.isotonic()[0].automatic_alpha() if alpha is None else Alpha(alpha, "as requested")
    problem = Problem(space, projected.table(factor.value, space), terms.limits)
    measured = dict(indicators.provenance)
    how = {"method": measured.get("method", "search"), "alpha": factor.value, "projection": projection, "indicators": measured}
    return terms.allocation(problem, solve(problem), how, factor, changes)


@final
class Terms:
    """What policies are held to and compared with, however the choices are scored; the arguments are those of :func:`allocate`.

    Attributes:
        limits: the budgets, resolved.
    """

    def __init__(
        self,
        description: Description,
        space: SearchSpace,
        budgets: BudgetSpec,
        uniform_bits: Bits | None,
        uniform_space: SearchSpace | None,
        tables: Mapping[str, Table] | None,
        per_channel: bool,
        provenance: Mapping[str, Any] | None,
    ) -> None:
        self._description, self._space, self._budgets, self._uniform_bits = description, space, budgets, uniform_bits
        self._even_space = uniform_space or space
        self._costs, self._even_costs = (Costs(description, each, tables, per_channel=per_channel) for each in (space, self._even_space))
        self._common = {"not_counted": [entry.name for entry in description.not_counted], "requested": dict(budgets), **(provenance or {})}
        self.limits = self._costs.budgets(budgets, self._even_space)

    def allocation(
        self, problem: Problem, solution: Solution, how: Mapping[str, Any], alpha: Alpha | None = None, changes: tuple[Change, ...] = ()
    ) -> Allocation:
        """The solution as a policy with ``how`` it was found in its provenance, and the uniform one beside it.

        Raises:
            InfeasibleError: no uniform policy meets the budgets, or the one that was asked for does not.
        """
        description, space, costs = self._description, self._space, self._costs
        even = uniform_policy(self.limits, self._budgets, self._even_costs, self._even_space, self._uniform_bits)
        return Allocation(
            policy=policy_of(solution, description, space, costs, {**self._common, **how}),
            solution=solution,
            uses=budget_uses(solution, costs),
            costs=costs,
            uniform=policy_of(even, description, self._even_space, self._even_costs, {**self._common, "method": "uniform"}),
            alpha=alpha,
            changes=changes,
            convention=bitops_convention(description, space, self._even_space),
            problem=problem,
        )


def uniform_policy(limits: Sequence[Budget], budgets: BudgetSpec, costs: Costs, space: SearchSpace, bits: Bits | None = None) -> Solution:
    """The uniform policy inside ``limits``, from ``space``.

    Args:
        limits: the resolved budgets, over this or another space of the same layers.
        budgets: as they were written; a pair in them is the first choice.
        costs: of the model, over ``space``.
        space: the candidates of every layer.
        bits: the pair that it must have.

    Raises:
        InfeasibleError: no uniform policy, or not the one with ``bits``, is inside the limits.
    """
    even = uniform(Problem(space, flat_score(space), costs.recounted(limits)), bits or uniform_bits_of(budgets))
    if bits is not None and even.bits != space.uniform(bits):
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
    turned = reversed_assignment(allocation.problem)
    return policy_of(turned, description, allocation.problem.space, allocation.costs, {**kept, "method": "reversed"})


def budget_uses(solution: Solution, costs: Costs) -> tuple[BudgetUse, ...]:
    """The use of every budget, one entry a name: a peak is limited at several moments, and used as a whole."""
    first = {use.name: use for use in reversed(solution.budgets)}
    used = {name: costs.used(name, solution.bits) for name in dict.fromkeys(use.name for use in solution.budgets)}
    return tuple(replace(first[name], used=value, slack=max(first[name].limit - value, 0.0)) for name, value in used.items())


def project(indicators: Indicators, projection: Projection) -> tuple[Indicators, tuple[Change, ...]]:
    """The indicators without points that grow with the width, and what was changed for it."""
    if projection == "isotonic":
        return indicators.isotonic()
    return indicators.erased() if projection == "erase" else (indicators, ())


def policy_of(solution: Solution, description: Description, space: SearchSpace, costs: Costs, provenance: Mapping[str, Any]) -> Policy:
    """The policy of a solution, with what it uses of the budgets in its provenance."""
    policy = solution.policy(description.layers, provenance)
    found: dict[str, Any] = {"budgets": [asdict(use) for use in budget_uses(solution, costs)]}
    if description.meetings:
        found["requantizations"] = asdict(requantizations(description, policy.bits))
    return replace(policy, provenance={**policy.provenance, **found})
