"""The training step of a search: loss, attribution, and the price of bits."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bitalloc.budget import Budget
from bitalloc.errors import InfeasibleError
from bitalloc.space import SearchSpace
from bitalloc.supernet.choice import choices, draw, entropy
from bitalloc.supernet.controller import Controller, Reading
from bitalloc.supernet.expectation import ExpectedCost, expected_cost
from bitalloc.supernet.prepare import space_of
from bitalloc.supernet.settings import SearchSettings
from bitalloc.supernet.trace import Trace
from bitalloc.training import LossFunction, Schedule, backward, learn
from bitalloc.training.device import share

Term = Callable[[nn.Module, Any], Tensor]
"""``term(supernet, batch)`` gives what is added to the loss, shape ()."""

_WHOLE = 1e-6


class SearchStep:
    """One step: draw the mixtures, learn from the batch, and add the gradient of the priced expected costs.

        L = loss + term + sum_k price_k * (E[cost_k] / limit_k - 1)

    Where a batch is split into parts, the draw and the prices are those of the whole batch. The state goes into checkpoints.

    Args:
        supernet: on its device, calibrated.
        budgets: what the prices are for.
        loss_fn: ``loss_fn(model, batch)``.
        controller: gives the prices.
        steps: of the search.
        schedule: of the learning rates.
        settings: for the rate of the logits.
        term: is added to the loss, such as the attribution loss.
    """

    def __init__(
        self,
        supernet: nn.Module,
        budgets: Sequence[Budget],
        loss_fn: LossFunction,
        controller: Controller,
        steps: int,
        schedule: Schedule,
        settings: SearchSettings,
        term: Term | None = None,
    ) -> None:
        self._budgets, self._controller, self._steps = tuple(budgets), controller, steps
        self._schedule, self._settings = schedule, settings
        self._supernet = supernet
        self._limits = tuple(budget.limit for budget in budgets)
        self._binding = tuple(budget.limit < _widest(budget, space_of(supernet)) for budget in budgets)
        self._bind(supernet)
        self._objective = loss_fn if term is None else lambda model, batch: loss_fn(model, batch) + term(model, batch)
        self._position = 0.0  # steps done, parts of a batch as fractions
        self._prices: tuple[float, ...] = ()
        self._rows: list[list[float]] = []

    def __call__(self, model: nn.Module, batch: Any) -> float:
        """Leaves the gradients in ``.grad``; returns the loss with the term, without the prices."""
        if model is not self._bound:  # parameters that are spread over ranks are those of a copy
            self._bind(model)
        begins = abs(self._position - round(self._position)) < _WHOLE
        excess = [cost() / limit - 1 for cost, limit in zip(self._costs, self._limits, strict=True)]
        if begins:
            self._position = round(self._position)
            draw(model, self._position / self._steps)
            self._set_prices(model, excess)
        loss = self._learn(model, batch)
        if any(self._prices):
            backward(torch.stack([price * value for price, value in zip(self._prices, excess, strict=True)]).sum())
        self._position += share()
        return float(loss)

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
        """Position, prices, trace and the controller's state."""
        rows = torch.tensor(self._rows, dtype=torch.float64).reshape(len(self._rows), 2 * len(self._budgets) + 1)
        return {
            "position": self._position,
            "prices": list(self._prices),
            "rows": rows,
            "controller": self._controller.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes what :meth:`state_dict` gave."""
        self._position, self._prices, self._rows = state["position"], tuple(state["prices"]), state["rows"].tolist()
        self._controller.load_state_dict(state["controller"])

    def _bind(self, model: nn.Module) -> None:
        self._bound = model
        self._costs = [ExpectedCost(model, budget.table) for budget in self._budgets]
        self._logits = [choice.architecture_logits for choice in choices(model)]

    def _learn(self, model: nn.Module, batch: Any) -> Tensor:
        """As :func:`~bitalloc.training.learn`, with the loss's gradient of the logits clipped; what earlier parts left is not touched."""
        before = [logits.grad for logits in self._logits]
        for logits in self._logits:
            logits.grad = None
        loss = learn(self._objective, model, batch)
        for logits, earlier in zip(self._logits, before, strict=True):
            nn.utils.clip_grad_norm_(logits, self._settings.logit_clip * share())
            if earlier is not None:
                logits.grad = earlier if logits.grad is None else earlier + logits.grad
        return loss

    def _set_prices(self, model: nn.Module, excess: Sequence[Tensor]) -> None:
        slopes = [_squared_norm(torch.autograd.grad(value, self._logits, retain_graph=True, allow_unused=True)) for value in excess]
        # One transfer from the device.
        *numbers, undecided = torch.stack([*excess, *slopes, entropy(model)]).detach().tolist()
        count = len(excess)
        self._prices = self._controller.prices(
            Reading(
                excess=tuple(numbers[:count]),
                slope=tuple(numbers[count:]),
                binding=self._binding,
                limit=self._limits,
                rate=self._settings.logit_rate * self._schedule.factor(round(self._position)) / (1 - self._settings.momentum),
                delay=1 / (1 - self._settings.momentum),
                steps=self._steps,
            )
        )
        costs = [(value + 1) * limit for value, limit in zip(numbers[:count], self._limits, strict=True)]
        self._rows.append([*costs, *self._prices, undecided])


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


def _squared_norm(gradients: Sequence[Tensor | None]) -> Tensor:
    return torch.stack([gradient.double().square().sum() for gradient in gradients if gradient is not None]).sum()
