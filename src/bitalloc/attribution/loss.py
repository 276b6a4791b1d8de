"""The attribution term of the search: a student that keeps the order of what a teacher looks at."""

import math
from collections.abc import Callable
from typing import Any, final

import torch
from torch import Tensor, nn

from bitalloc.attribution.base import Attribution
from bitalloc.attribution.ranking import Ranking
from bitalloc.errors import TrainingError
from bitalloc.training import LossFunction
from bitalloc.training.batches import inputs_of


@final
class AttributionLoss:
    """``weight * mean over samples and layers of the ranking's distance`` between the maps of a teacher and a student.

    One forward pass of the student gives the logits of the task's loss and its maps. The teacher runs in evaluation mode without
    keeping gradients. Where the maps are taken is found once, in the teacher, and is the same place in the student.

    Args:
        teacher: the float network, on the student's device; it stays as it is.
        attribution: of teacher and student alike.
        ranking: the distance.
        weight: eta, default 40 as published.

    Raises:
        TrainingError: the weight is negative or not finite.
    """

    def __init__(self, teacher: nn.Module, attribution: Attribution, ranking: Ranking, weight: float = 40.0) -> None:
        if not (math.isfinite(weight) and weight >= 0):
            raise TrainingError(f"the weight of the attribution loss is {weight}, expected a number that is not negative.")
        self._teacher, self._attribution, self._ranking, self._weight = teacher, attribution, ranking, weight
        self._found: Attribution | None = None

    def __call__(self, student: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        """The student's logits (N, classes), and the weighted term, without dimensions.

        Both have gradients with respect to the student's parameters; call backward once, on their sum.
        A student whose weights are broken gives a term that is not finite, as any loss does: the training's guards find the layer.

        Args:
            student: the teacher's architecture with other quantizers, in the mode that it trains in.
            batch: images, or a tuple that begins with them.

        Raises:
            TrainingError: teacher and student give maps of different shapes or lack a layer, there is no feature map or no logits, or a
                map of the teacher is not finite.
        """
        inputs = inputs_of(batch)
        if self._found is None:
            self._found = self._attribution.resolved(self._teacher, inputs)
        # The teacher first: what it needs is gone before the student's pass begins.
        wanted = self._found.explain(self._teacher, inputs).maps
        found = self._found.attribute(student, inputs)
        distances = [self._ranking.distance(a, b, student).mean() for a, b in zip(wanted, found.maps, strict=True)]
        term = self._weight * torch.stack(distances).mean()
        return found.logits, term

    def with_task(self, task: Callable[[Tensor, Any], Tensor]) -> LossFunction:
        """A ``loss_fn(student, batch)`` that is ``task(logits, batch)`` plus the term, from one forward pass of the student."""

        def loss(student: nn.Module, batch: Any) -> Tensor:
            logits, term = self(student, batch)
            return task(logits, batch) + term

        return loss
