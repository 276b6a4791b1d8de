"""Learning from a teacher's soft output."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from bitalloc.errors import TrainingError
from bitalloc.training.batches import pair_of
from bitalloc.training.evaluate import cross_entropy
from bitalloc.training.modes import evaluating
from bitalloc.training.steps import LossFunction


def distillation_loss(teacher: nn.Module, *, temperature: float = 1.0, weight: float = 0.5, label_smoothing: float = 0.0) -> LossFunction:
    """A ``loss_fn`` for pairs (inputs, labels) that mixes labels with the output of ``teacher``.

    With logits z of the student, v of the teacher, p = softmax(. / T), averaged over the batch
    (Hinton et al., "Distilling the knowledge in a neural network", 2015, arXiv 1503.02531)::

        (1 - weight) * cross_entropy(z, labels) + weight * T^2 * KL(p(v) || p(z))

    Args:
        teacher: must be on the student's device; runs in evaluation mode without gradients and is not changed.
        temperature: T > 0. Default 1: the teacher's own probabilities.
        weight: share of the teacher, from 0 to 1. Default 0.5: as much as the labels.
        label_smoothing: of the labels. Default 0: the teacher's output is soft already.

    Raises:
        TrainingError: an argument is out of range.
    """
    if not (math.isfinite(temperature) and temperature > 0):
        raise TrainingError(f"the distillation temperature is {temperature}, expected a positive number.")
    if not 0 <= weight <= 1:
        raise TrainingError(f"the distillation weight is {weight}, expected a number from 0 to 1.")
    if not 0 <= label_smoothing < 1:
        raise TrainingError(f"label_smoothing is {label_smoothing}, expected a number from 0 to below 1.")

    def loss(model: nn.Module, batch: Any) -> Tensor:
        inputs, labels = pair_of(batch)
        with torch.no_grad(), evaluating(teacher):
            soft = functional.log_softmax(teacher(inputs) / temperature, dim=1)
        logits = model(inputs)
        hard_loss = cross_entropy(logits, labels, label_smoothing)
        student = functional.log_softmax(logits / temperature, dim=1)
        soft_loss = functional.kl_div(student, soft, reduction="batchmean", log_target=True)
        return (1 - weight) * hard_loss + weight * temperature**2 * soft_loss

    return loss
