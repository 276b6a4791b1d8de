"""How far a student's attribution map is from the order of a teacher's, as something to learn from."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor, nn

from bitalloc.attribution.distance import correlation, ranks
from bitalloc.attribution.power import FixedPower, Power
from bitalloc.attribution.soft_rank import soft_rank
from bitalloc.errors import TrainingError

FLOOR = 1e-6
"""Norm below which a map counts as empty: it is divided by this, so that a gradient stays finite."""


class Ranking(ABC):
    """A distance between maps, differentiable twice with respect to the student's."""

    def distance(self, teacher: Tensor, student: Tensor, network: nn.Module | None = None) -> Tensor:
        """The distance of every sample, (N,), in float32 or wider; not finite where the student's map is not.

        Args:
            teacher: non-negative maps (N, ...); no gradient flows to them.
            student: maps of the same shape.
            network: the student, where the distance depends on its widths.

        Raises:
            TrainingError: the shapes differ, or a network is needed.
        """
        if teacher.shape != student.shape:
            raise TrainingError(
                f"the teacher's attribution map has shape {tuple(teacher.shape)}, the student's {tuple(student.shape)}: "
                "expected the same layer of the same architecture."
            )
        wide = torch.promote_types(student.dtype, torch.float32)
        return self._distance(teacher.detach().to(wide).flatten(1), student.to(wide).flatten(1), network)

    @abstractmethod
    def _distance(self, teacher: Tensor, student: Tensor, network: nn.Module | None) -> Tensor:
        """See :meth:`distance`; both (N, positions)."""


@final
@dataclass(frozen=True, slots=True)
class PowerRanking(Ranking):
    """The published loss: the squared difference to the teacher's map, sharpened by a power p that keeps its order.

    The distance is::

        mean over positions of ( N(M_teacher ^ p) - N(M_student) )^2          N(v) = v / ||v||_2

    Wang et al., ICCV 2021. An all-zero map has ``N(v) = 0`` and a finite gradient.

    Attributes:
        power: p; by default the published fixed one. :class:`~bitalloc.attribution.CapacityAwarePower` is the paper's method.
    """

    power: Power = field(default_factory=FixedPower)

    def _distance(self, teacher: Tensor, student: Tensor, network: nn.Module | None) -> Tensor:
        # Of the map over its largest value, as the power of a small number has no digits left; N does not see the factor.
        sharpened = (teacher / teacher.amax(1, keepdim=True).clamp_min(FLOOR)) ** self.power.value(network)
        return (normalised(sharpened) - normalised(student)).square().mean(1)


@final
@dataclass(frozen=True, slots=True)
class SoftSpearman(Ranking):
    """``1 - rho``, Spearman's correlation of the teacher's ranks with soft ranks of the student's map.

    The ranks are those of Blondel et al., see :func:`~bitalloc.attribution.soft_rank`, of the map in units of its largest value over its
    number of positions. Found on the processor, one sample after the other: for comparison with the published loss rather than for
    speed. A map whose values are all equal has correlation 0.

    Attributes:
        strength: of the regularisation. Values nearer than this share their ranks and have a gradient; others keep theirs and have none,
            in the wrong order too. Evenly spread values are 1 apart, so the default of 4 leaves few positions without a gradient.

    Raises:
        TrainingError: the strength is not positive.
    """

    strength: float = 4.0

    def __post_init__(self) -> None:
        if not self.strength > 0:
            raise TrainingError(f"the strength of soft ranks is {self.strength}, expected a positive number.")

    def _distance(self, teacher: Tensor, student: Tensor, network: nn.Module | None) -> Tensor:
        if not bool(student.isfinite().all()):  # it has no ranks
            return student.sum(1) * math.nan
        largest = student.abs().amax(1, keepdim=True).clamp_min(FLOOR)
        return 1 - correlation(ranks(teacher), soft_rank(student / largest * student.shape[1], self.strength))


def normalised(maps: Tensor) -> Tensor:
    """``v / ||v||_2`` of every row of (N, positions); ``v / 1e-6`` where no value exceeds that, so zeros stay zeros."""
    # N(v) = N(v / c): with c the largest value no square underflows, and as a constant it changes no gradient.
    largest = maps.detach().abs().amax(1, keepdim=True)
    scaled = maps / largest.clamp_min(FLOOR)
    squared = scaled.square().sum(1, keepdim=True)
    # The root of 1 in the place of an empty map's norm has no infinite gradient.
    return scaled / torch.where(largest > FLOOR, squared, torch.ones_like(squared)).sqrt()
