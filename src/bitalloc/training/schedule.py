"""Learning rates as pure functions of the step: nothing to save, nothing to get out of step."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

from torch.optim import Optimizer

from bitalloc.errors import TrainingError


class Schedule(ABC):
    """A factor on the learning rate of every parameter group. Members give :meth:`factor`."""

    @abstractmethod
    def factor(self, step: int) -> float:
        """The factor for the step number ``step``, counted from 0."""

    def apply(self, optimizer: Optimizer, step: int) -> None:
        """Sets the rate of every group to its own base rate times :meth:`factor`.

        The base rate is the group's ``lr`` when a schedule sees it for the first time; it is kept in the group as
        ``initial_lr`` (PyTorch's name for it), so groups with different rates keep their ratio.
        """
        factor = self.factor(step)
        for group in optimizer.param_groups:
            group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor


@final
class Constant(Schedule):
    """Every group stays at its base rate."""

    def factor(self, step: int) -> float:
        """Always 1."""
        return 1.0


@final
@dataclass(frozen=True)
class WarmupCosine(Schedule):
    """Linear warm-up, then half a cosine (Loshchilov and Hutter, "SGDR", ICLR 2017, arXiv 1608.03983, one period).

    With W = ``warmup_steps`` and T = ``total_steps``::

        rate(t) = base * ((t + 1) / W)                                            t < W
        rate(t) = final + (base - final) * (1 + cos(pi * (t - W) / (T - W))) / 2     W <= t < T
        rate(t) = final                                                           t >= T

    Args:
        base: the highest rate; the ``lr`` of the optimiser (of one of its groups, if they differ: the others keep their ratio).
        total_steps: T, warm-up included.
        warmup_steps: W. Default 0, no warm-up.
        final: the rate at the end. Default 0.

    Raises:
        TrainingError: a rate or a number of steps is out of range, or no group of the optimiser has the rate ``base``.
    """

    base: float
    total_steps: int
    warmup_steps: int = 0
    final: float = 0.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.base) and self.base > 0):
            raise TrainingError(f"the base learning rate is {self.base}, expected a positive number.")
        if not 0 <= self.final <= self.base:
            raise TrainingError(f"the final learning rate is {self.final}, expected a number from 0 to the base rate {self.base}.")
        if self.total_steps < 1 or not 0 <= self.warmup_steps <= self.total_steps:
            raise TrainingError(
                f"the schedule has {self.warmup_steps} warm-up steps of {self.total_steps}, expected 0 <= warm-up <= total and total > 0."
            )

    def rate(self, step: int) -> float:
        """The learning rate of the step number ``step``, counted from 0."""
        if step < self.warmup_steps:
            return self.base * ((step + 1) / self.warmup_steps)
        if step >= self.total_steps:
            return self.final
        position = (step - self.warmup_steps) / (self.total_steps - self.warmup_steps)
        return self.final + (self.base - self.final) * (1 + math.cos(math.pi * position)) / 2

    def factor(self, step: int) -> float:
        """:meth:`rate` over ``base``."""
        return self.rate(step) / self.base

    def apply(self, optimizer: Optimizer, step: int) -> None:
        """As in the base class. Raises TrainingError if no group of the optimiser has the rate ``base``."""
        rates = [group.get("initial_lr", group["lr"]) for group in optimizer.param_groups]
        if self.base not in rates:
            raise TrainingError(f"the schedule has the base rate {self.base}, the optimiser has {rates}: give both the same rate.")
        super().apply(optimizer, step)


@final
@dataclass(frozen=True)
class StepDecay(Schedule):
    """``rate(t) = base * by^floor(t / every)`` for every group.

    Args:
        every: steps between two falls.
        by: what the rate is multiplied by at each. Default 0.1, the usual value.

    Raises:
        TrainingError: a number is out of range.
    """

    every: int
    by: float = 0.1

    def __post_init__(self) -> None:
        if self.every < 1 or not 0 < self.by <= 1:
            raise TrainingError(f"the rate falls every {self.every} steps by {self.by}, expected a positive number and a factor up to 1.")

    def factor(self, step: int) -> float:
        """``by`` to the number of falls so far."""
        return float(self.by ** (step // self.every))
