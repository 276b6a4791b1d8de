"""The power that sharpens the teacher's map in the rank-preserving loss."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from bitalloc.errors import TrainingError


class Power(ABC):
    """A positive exponent, asked for anew at every step."""

    @abstractmethod
    def value(self, network: nn.Module | None) -> float | Tensor:
        """The exponent for the student now: a number, or a tensor without dimensions and without gradient."""


@final
@dataclass(frozen=True, slots=True)
class FixedPower(Power):
    """The same exponent at every step.

    Attributes:
        exponent: p > 0. Default 3, the published fixed one. 1 imitates the teacher's map as it is.

    Raises:
        TrainingError: the exponent is not positive.
    """

    exponent: float = 3.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.exponent) and self.exponent > 0):
            raise TrainingError(f"the power of the attribution map is {self.exponent}, expected a positive number.")

    def value(self, network: nn.Module | None) -> float:
        """The exponent."""
        return self.exponent


@final
@dataclass(frozen=True, slots=True)
class CapacityAwarePower(Power):
    """The fewer bits the student is expected to have, the sharper the map that it imitates.

    The exponent is::

        p = scale * mean over layers of 1 / (E[b_w] * E[b_a])

    Wang et al., ICCV 2021. No gradient flows through p: the target follows the widths, but the widths are not drawn to where
    the target is easier to meet.

    Attributes:
        expected_bits: gives, of the student, a pair for every searched layer: its expected weight width and activation width, without
            dimensions. For a supernet ``lambda supernet: expected_bits(supernet).values()``.
        scale: default 24, as published.
    """

    expected_bits: Callable[[nn.Module], Iterable[tuple[Tensor, Tensor]]]
    scale: float = 24.0

    def value(self, network: nn.Module | None) -> Tensor:
        """The exponent at the present expected widths.

        Raises:
            TrainingError: there is no network, or it has no searched layer.
        """
        if network is None:
            raise TrainingError("the capacity-aware power needs the student network: pass it to distance(), as AttributionLoss does.")
        with torch.no_grad():
            products = [weight * act for weight, act in self.expected_bits(network)]
            if not products:
                raise TrainingError("no layer has an expected width: the capacity-aware power needs a network with searched layers.")
            return self.scale * (1 / torch.stack(products)).mean()
