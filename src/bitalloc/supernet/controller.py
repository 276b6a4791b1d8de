"""What bits cost during a search: prices that steer the expected cost to the budgets, or a fixed one as published.

Plain numbers; a price p of a budget adds ``p * (E[cost] / limit - 1)`` to the loss.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

from bitalloc.errors import BudgetError

FLOOR = 1e-3
"""Least slope that gains are computed for, as a share of the largest seen: when all choices are certain nothing moves the cost, and a
price without bound would make them jump."""


@dataclass(frozen=True, slots=True)
class Reading:
    """The state of a search at the start of a step, one entry a budget in every tuple.

    Attributes:
        excess: ``E[cost] / limit - 1``.
        slope: squared norm of the gradient of the excess with respect to all logits.
        binding: whether the widest policy exceeds the limit; a budget that does not bind needs no control.
        limit: in the unit of the cost.
        rate: learning rate of the logits, momentum included: by how much a constant gradient of 1 moves them in a step.
        delay: steps that a gradient takes to act, ``1 / (1 - momentum)``.
        steps: of the whole search.
    """

    excess: tuple[float, ...]
    slope: tuple[float, ...]
    binding: tuple[bool, ...]
    limit: tuple[float, ...]
    rate: float
    delay: float
    steps: int


class Controller(ABC):
    """Gives the price of every budget, step by step."""

    @abstractmethod
    def prices(self, reading: Reading) -> tuple[float, ...]:
        """The prices of this step; called once a step, in order."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: lists and numbers."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: B027 (a fixed price has no state)
        """Takes what :meth:`state_dict` gave."""


@final
class FixedLambda(Controller):
    """The published complexity term: ``lambda * E[cost] / unit``, whatever the budgets.

    GMPQ, section 3.3 (arXiv 2108.02720), has the expected BitOps ``sum_l MAC_l E[b_a] E[b_w]`` over the MACs of the first layer. The
    final solve still keeps the budgets.

    Args:
        weight: lambda.
        unit: what the cost is counted in, for BitOps the first layer's MACs.

    Raises:
        BudgetError: a number is out of range.
    """

    def __init__(self, weight: float, unit: float) -> None:
        if not 0 <= weight < float("inf") or not 0 < unit < float("inf"):
            raise BudgetError(f"lambda is {weight} and its unit {unit}, expected a number of 0 or more and a positive one.")
        self.weight, self.unit = weight, unit

    def prices(self, reading: Reading) -> tuple[float, ...]:
        """``lambda * limit / unit``: a price is per share of the limit."""
        return tuple(self.weight * limit / self.unit for limit in reading.limit)


@final
class DualAscent(Controller):
    """One multiplier a budget, raised while the expected cost is over it and lowered while it is under.

    For the constraint ``g = E[cost] / limit - 1 <= 0``::

        mu    <- max(0, mu + integral * g)          dual ascent on the Lagrangian  loss + mu * g
        price  = max(0, mu + proportional * g)      the gradient of the augmented Lagrangian (Hestenes, 1969; Powell, 1969)

    The step sizes follow from what a price does. A price p moves the logits by ``-rate * p * grad g`` and so g by ``-A p`` with
    ``A = rate * |grad g|^2``. With ``proportional = 2 / (A tau)`` and ``integral = 1 / (A tau^2)`` an excess decays with the time constant
    tau and without overshoot (critical damping), whatever the network, the unit, the loss and the learning rate, which may change.

    A budget is there to be used: the multiplier of the budget that is nearest to its limit may become negative, so that the expected cost
    rises to it. The other multipliers, and that of a budget that the widest policy keeps, stay at 0 or above.

    Args:
        settle: tau as a share of the search. 1/20: the budget is met after a fifth of the search, and the rest moves bits between layers.
        use: whether the expected cost is also raised to the budget; else it may stay under it.

    Raises:
        BudgetError: ``settle`` is out of range.
    """

    def __init__(self, settle: float = 0.05, use: bool = True) -> None:
        if not 0 < settle <= 1:
            raise BudgetError(f"settle is {settle}, expected a share of the search, above 0 and at most 1.")
        self.settle, self.use = settle, use
        self._multipliers: list[float] = []
        self._largest: list[float] = []

    @property
    def multipliers(self) -> tuple[float, ...]:
        """The multiplier of every budget; empty before the first step."""
        return tuple(self._multipliers)

    def prices(self, reading: Reading) -> tuple[float, ...]:
        """The price of every budget in this step; moves the multipliers."""
        count = len(reading.excess)
        before = self._multipliers or [0.0] * count
        self._largest = [max(pair) for pair in zip(self._largest or [0.0] * count, reading.slope, strict=True)]
        tightest = self._tightest(reading)
        # What raises the cost to the budget goes with the budget that is nearest, when another one becomes it.
        moved = sum(mu for index, mu in enumerate(before) if mu < 0 and index != tightest)
        before = [mu + moved if index == tightest else max(mu, 0.0) for index, mu in enumerate(before)]
        tau = max(self.settle * reading.steps, 2 * reading.delay, 2.0)
        prices = []
        for index, excess in enumerate(reading.excess):
            effect = reading.rate * max(reading.slope[index], FLOOR * self._largest[index])
            gain = excess / (effect * tau) if effect > 0 and reading.binding[index] else 0.0
            least = -float("inf") if index == tightest else 0.0
            prices.append(max(least, before[index] + 2 * gain))
            before[index] = max(least, before[index] + gain / tau)
        self._multipliers = before
        return tuple(prices)

    def state_dict(self) -> dict[str, Any]:
        """The multipliers and the largest slopes."""
        return {"multipliers": list(self._multipliers), "largest": list(self._largest)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes what :meth:`state_dict` gave."""
        self._multipliers, self._largest = list(state["multipliers"]), list(state["largest"])

    def _tightest(self, reading: Reading) -> int | None:
        """The budget that may pull the cost up: of those that bind the one with the largest excess."""
        binding = [index for index, binds in enumerate(reading.binding) if binds]
        return max(binding, key=reading.excess.__getitem__) if binding and self.use else None
