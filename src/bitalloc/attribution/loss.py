"""The attribution term of the search: a student that keeps the order of what a teacher looks at."""

import math
from collections.abc import Callable
from typing import Any, final

import torch
from torch import Tensor, nn

from bitalloc.attribution.base import Attribution, about
from bitalloc.attribution.ranking import Ranking
from bitalloc.errors import TrainingError
from bitalloc.training import LossFunction
from bitalloc.training.batches import inputs_of

SHOWN = 3
"""Weights that an error lists."""


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
        The first call looks whether both have the same layers and whether the term is finite. Later, a student whose weights are broken
        gives a term that is not finite, as any loss does: the training's guards find the layer.

        Args:
            student: the teacher's architecture with other quantizers, in the mode that it trains in.
            batch: images, or a tuple that begins with them.

        Raises:
            TrainingError: teacher and student have different layers or give maps of different shapes, there is no feature map or no
                logits, or a map of the teacher, or in the first call of the student, is not finite. It says of which network and where.
        """
        inputs = inputs_of(batch)
        attribution = self._found or self._first(student, inputs)
        # The teacher first: what it needs is gone before the student's pass begins.
        with about("the float model"):
            wanted = attribution.explain(self._teacher, inputs).maps
        with about("the student"):
            found = attribution.attribute(student, inputs)
            if self._found is None:
                found.check_finite()
        distances = []
        for place, teacher_map, student_map in zip(found.places, wanted, found.maps, strict=True):
            with about(place):
                distances.append(self._ranking.distance(teacher_map, student_map, student).mean())
        term = self._weight * torch.stack(distances).mean()
        if self._found is None and not bool(term.detach().isfinite()):
            raise TrainingError(f"the attribution term is {term.item()}, although the maps at {', '.join(found.places)} are finite.")
        self._found = attribution
        return found.logits, term

    def _first(self, student: nn.Module, inputs: Any) -> Attribution:
        check_layers(self._teacher, student)
        with about("the float model"):
            return self._attribution.resolved(self._teacher, inputs)

    def with_task(self, task: Callable[[Tensor, Any], Tensor]) -> LossFunction:
        """A ``loss_fn(student, batch)`` that is ``task(logits, batch)`` plus the term, from one forward pass of the student."""

        def loss(student: nn.Module, batch: Any) -> Tensor:
            logits, term = self(student, batch)
            return task(logits, batch) + term

        return loss


def check_layers(teacher: nn.Module, student: nn.Module) -> None:
    """Raises TrainingError, naming the first few, if a weight of the teacher is not in the student by the same name and shape.

    Of the parameters with two dimensions or more, which quantizing keeps: batch norms may be switchable in the student, or folded.
    """
    there = {name: tuple(parameter.shape) for name, parameter in student.named_parameters(remove_duplicate=False)}
    weights = {name: tuple(parameter.shape) for name, parameter in teacher.named_parameters(remove_duplicate=False)}
    different = [
        f"{name} (teacher {shape}, student {there.get(name, 'has none')})"
        for name, shape in weights.items()
        if len(shape) > 1 and there.get(name) != shape
    ]
    if different:
        more = f" and {len(different) - SHOWN} more" if len(different) > SHOWN else ""
        raise TrainingError(
            f"teacher and student have different layers: {', '.join(different[:SHOWN])}{more}. Give both the same architecture, "
            "with the same names."
        )
