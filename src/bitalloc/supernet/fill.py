"""Scores whose best policy uses more of a budget, where the most probable policy leaves a part of it unused."""

from collections.abc import Iterator, Mapping, Sequence

from bitalloc.budget import Budget
from bitalloc.policy import Bits
from bitalloc.space import SearchSpace, Table

STEPS = 8
_DOUBLINGS, _HALVINGS = 60, 40


def fillings(score: Table, space: SearchSpace, budgets: Sequence[Budget]) -> Iterator[Table]:
    """``score - nu * sum_k cost_k / limit_k``, for nu = 0 and then growing: solve one after the other until the budget is used well enough.

    The expected cost of a search meets the budget, but as long as the choices are undecided its most probable policy may cost half of that:
    a price lowers the logit of a width by about a multiple of its cost, in all layers at once. The added term takes that back. On the
    policies of one cost it is constant, so the most probable of those that use the budget up stays the best of them; the larger nu, the
    less a policy may leave unused for being more probable. nu starts at the size of the price that brings the layers' best choices to a
    limit, and doubles seven times. Where the most probable policy exceeds a limit that is the price that lowers its cost: nu of this
    size then decides between policies inside the limits that differ little in probability.

    Args:
        score: of every choice, from :meth:`LogProbabilities.scores`.
        space: the candidates of every layer.
        budgets: of the final solve. Where even the widest policy is inside all of them there is nothing to fill: the score comes alone.

    Yields:
        The score as it is, then tables whose unit is ``tilted_`` and that of the score: their sums order policies, and are no logarithms
        of probabilities.
    """
    use = {
        name: {bits: sum(budget.table.values[name][bits] / budget.limit for budget in budgets) for bits in candidates.pairs}
        for name, candidates in space.candidates.items()
    }

    def tilted(nu: float) -> dict[str, dict[Bits, float]]:
        return {name: {bits: score.values[name][bits] - nu * value for bits, value in row.items()} for name, row in use.items()}

    def reached(rows: Mapping[str, Mapping[Bits, float]]) -> bool:
        best = {name: min(row, key=row.__getitem__) for name, row in rows.items()}
        return any(budget.table.total(best) >= budget.limit for budget in budgets)

    yield score
    unit = f"tilted_{score.unit}"
    exceeds = reached(tilted(0.0))
    sign = -1.0 if exceeds else 1.0
    high = next((2.0**power for power in range(-10, _DOUBLINGS) if reached(tilted(sign * 2.0**power)) != exceeds), None)
    if high is None:
        return
    low = 0.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if reached(tilted(sign * middle)) != exceeds else (middle, high)
    for power in range(STEPS):
        yield Table(tilted(high * 2**power), unit)
