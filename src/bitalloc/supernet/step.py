"""The training step of a search: loss, attribution, and the price of bits."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from bitalloc.budget import Budget
from bitalloc.errors import InfeasibleError
from bitalloc.space import SearchSpace
from bitalloc.supernet.choice import choices, draw, entropy
from bitalloc.supernet.controller import Controller, Reading
from bitalloc.supernet.expectation import ExpectedCost, expected_cost
from bitalloc.supernet.prepare import space_of
from bitalloc.supernet.trace import Trace
from bitalloc.training import DivergenceError, LossFunction, learn
from bitalloc.training.device import share

Term = Callable[[nn.Module, Any], Tensor]
"""``term(supernet, batch)`` gives what is added to the loss, shape ()."""

_WHOLE = 1e-6


class SearchStep:
    """One step: draw the mixtures, learn from the batch, and add the gradient of the priced expected costs.

        L = loss + term + sum_k price_k * (E[cost_k] / limit_k - 1)

    Calls make the gradients of the loss and the term, for a batch or a part of it; all parts of a batch have one draw. The prices follow
    in :meth:`steer`, once an optimiser step, when the gradients are those of the whole batch, from all parts and all ranks. The state
    goes into checkpoints.

    Args:
        supernet: on its device, calibrated.
        budgets: what the prices are for.
        loss_fn: ``loss_fn(model, batch)``.
        controller: gives the prices.
        steps: of the search.
        clip: largest 2-norm of the gradient of one logit vector, without the prices.
        term: is added to the loss, such as the attribution loss.
    """

    def __init__(
        self,
        supernet: nn.Module,
        budgets: Sequence[Budget],
        loss_fn: LossFunction,
        controller: Controller,
        steps: int,
        clip: float,
        term: Term | None = None,
    ) -> None:
        self._budgets, self._controller, self._steps, self._clip = tuple(budgets), controller, steps, clip
        self._supernet = supernet
        self._limits = tuple(budget.limit for budget in budgets)
        self._binding = tuple(budget.limit < _widest(budget, space_of(supernet)) for budget in budgets)
        self._bind(supernet)
        self._objective = loss_fn if term is None else lambda model, batch: loss_fn(model, batch) + term(model, batch)
        self._seen = 0.0  # share of the present batch
        self._rows: list[list[float]] = []

    def __call__(self, model: nn.Module, batch: Any) -> float:
        """Leaves the gradients in ``.grad``; returns the loss with the term, without the prices."""
        if model is not self._bound:  # parameters that are spread over ranks are those of a copy
            self._bind(model)
        if self._seen == 0:
            draw(model, len(self._rows) / self._steps)
        loss = learn(self._objective, model, batch)
        seen = self._seen + share()
        self._seen = seen if seen < 1 - _WHOLE else 0.0
        return float(loss)

    def steer(self, optimizer: Optimizer, *_: object) -> None:
        """Clips the loss's gradients of the logits and adds those of the prices; to be registered to run before ``optimizer``'s step.

        The controller reads the rate of the logits there: as it is in this step, lowered by the schedule and by retries.

        Raises:
            DivergenceError: the controller gave a price that is not finite; it names the budget.
        """
        excess = [cost() / limit - 1 for cost, limit in zip(self._costs, self._limits, strict=True)]
        slopes = [torch.autograd.grad(value, self._logits, allow_unused=True) for value in excess]
        prices = self._prices(optimizer, excess, slopes)
        for logits, *parts in zip(self._logits, *slopes, strict=True):
            nn.utils.clip_grad_norm_(logits, self._clip)
            for price, slope in zip(prices, parts, strict=True):
                if price and slope is not None:
                    logits.grad = price * slope if logits.grad is None else logits.grad + price * slope

    def trace(self) -> Trace:
        """What the steps so far went through."""
        count = len(self._budgets)
        return Trace(
            tuple(budget.name for budget in self._budgets),
            tuple(budget.unit for budget in self._budgets),
            self._limits,
            tuple(tuple(row[:count]) for row in self._rows),
            tuple(tuple(row[count : 2 * count]) for row in self._rows),
            tuple(row[-1] for row in self._rows),
        )

    def expected(self) -> tuple[float, ...]:
        """The expected cost of every budget now, in its unit."""
        return tuple(float(expected_cost(self._supernet, budget.table).detach()) for budget in self._budgets)

    def state_dict(self) -> dict[str, Any]:
        """The trace and the controller's state."""
        rows = torch.tensor(self._rows, dtype=torch.float64).reshape(len(self._rows), 2 * len(self._budgets) + 1)
        return {"rows": rows, "controller": self._controller.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes what :meth:`state_dict` gave; goes on with a new batch."""
        self._seen, self._rows = 0.0, state["rows"].tolist()
        self._controller.load_state_dict(state["controller"])

    def _bind(self, model: nn.Module) -> None:
        self._bound = model
        self._costs = [ExpectedCost(model, budget.table) for budget in self._budgets]
        self._logits = [choice.architecture_logits for choice in choices(model)]

    def _prices(self, optimizer: Optimizer, excess: Sequence[Tensor], slopes: Sequence[Sequence[Tensor | None]]) -> tuple[float, ...]:
        """The prices of this step, noted in the trace."""
        # One transfer from the device.
        *numbers, undecided = torch.stack([*excess, *map(_squared_norm, slopes), entropy(self._bound)]).detach().tolist()
        count = len(excess)
        rate, momentum = _rate_and_momentum(optimizer, self._logits[0])
        prices = self._controller.prices(
            Reading(
                excess=tuple(numbers[:count]),
                slope=tuple(numbers[count:]),
                binding=self._binding,
                limit=self._limits,
                rate=rate / (1 - momentum),
                delay=1 / (1 - momentum),
                steps=self._steps,
            )
        )
        costs = [(value + 1) * limit for value, limit in zip(numbers[:count], self._limits, strict=True)]
        self._check(prices, costs)
        self._rows.append([*costs, *prices, undecided])
        return prices

    def _check(self, prices: Sequence[float], costs: Sequence[float]) -> None:
        """The guards of the training have seen the gradients by now, so a price that is not finite would reach the logits."""
        for budget, price, cost in zip(self._budgets, prices, costs, strict=True):
            if not math.isfinite(price):
                number = len(self._rows) + 1
                raise DivergenceError(
                    f"the price of the budget {budget.name!r} is {price} at step {number}, at an expected cost of {cost:.6g} {budget.unit} "
                    f"of {budget.limit:.6g}: {type(self._controller).__name__}.prices must give a finite number for every budget. Mend it "
                    "if it is your own, or lower the learning rate of the logits.",
                    number,
                )


def check_reachable(budgets: Sequence[Budget], space: SearchSpace) -> None:
    """Raises InfeasibleError for a budget below the smallest policy, with the smallest value."""
    for budget in budgets:
        budget.table.check(space)
        smallest = sum(min(budget.table.values[name][bits] for bits in c.pairs) for name, c in space.candidates.items())
        if smallest > budget.limit * (1 + 1e-12):
            raise InfeasibleError(
                f"the budget {budget.name!r} is {budget.limit:.6g} {budget.unit}, but the smallest policy of the search space costs "
                f"{smallest:.6g}: raise the budget or add smaller candidates."
            )


def _widest(budget: Budget, space: SearchSpace) -> float:
    return sum(max(budget.table.values[name][bits] for bits in c.pairs) for name, c in space.candidates.items())


def _rate_and_momentum(optimizer: Optimizer, parameter: Tensor) -> tuple[float, float]:
    group = next(group for group in optimizer.param_groups if any(each is parameter for each in group["params"]))
    return float(group["lr"]), float(group["momentum"])


def _squared_norm(gradients: Sequence[Tensor | None]) -> Tensor:
    return torch.stack([gradient.double().square().sum() for gradient in gradients if gradient is not None]).sum()
