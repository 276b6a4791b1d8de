"""Checks of what a training step gave, and the sentence about what is broken. Each names the step and the tensors."""

import math
from collections.abc import Iterable, Sequence
from statistics import median
from typing import Final, final

import torch
from torch import Tensor, nn

from bitalloc.errors import TrainingError
from bitalloc.training.sharding import total_norm, whole

_NAMES_SHOWN: Final = 3
_REMEDY: Final = "Lower the learning rate, clip the gradients or check the data."
WINDOW: Final = 100
"""So many losses are in the running median that a loss is compared with."""


@final
class DivergenceError(TrainingError):
    """Loss, gradients or weights are not finite, or the loss exploded. It may go well at a lower learning rate.

    Attributes:
        step: that failed, counted from 1.
    """

    def __init__(self, message: str, step: int) -> None:
        super().__init__(message)
        self.step = step


def loss_problem(loss: float, before: Sequence[float], limit: float) -> str | None:
    """What is wrong with a loss: it is not finite, or it exploded. None if nothing is.

    It exploded if it is more than ``limit`` times the median magnitude of the last :data:`WINDOW` losses, and more than ``limit``.
    The second half keeps trainings quiet whose losses are tiny: one that knows its data by heart has a loss of 1e-6 and may well meet
    an image with a loss of 1. The first step has nothing to be compared with.

    Args:
        loss: of this step.
        before: of the steps before, the newest last.
        limit: 0 looks only whether the loss is finite.
    """
    if not math.isfinite(loss):
        return f"the loss is {loss}"
    if not limit or not before or abs(loss) <= limit:
        return None
    usual = median(map(abs, before[-WINDOW:]))
    if abs(loss) <= limit * usual:
        return None
    return f"the loss exploded to {loss:.4g}, more than {limit:g} times {max(usual, 1):.4g} (the median of the last losses, at least 1)"


def gradient_problem(model: nn.Module) -> str | None:
    """Says that a gradient is not finite; None if all are.

    One norm over all gradients and one transfer from the device. The largest magnitude, as a sum of squares may overflow.
    """
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    if not gradients or bool(total_norm(gradients, math.inf).isfinite()):
        return None
    return "a gradient is not finite"


def diverged(problem: str, model: nn.Module, *, step: int, details: Iterable[str] = ()) -> DivergenceError:
    """The error for a ``problem`` at ``step``, counted from 1, with the parameters and gradients that are not finite by name.

    Args:
        problem: from :func:`loss_problem` or :func:`gradient_problem`.
        model: with the gradients of the step.
        step: counted from 1.
        details: what else is known.
    """
    weights = not_finite(model.named_parameters())
    gradients = not_finite((name, parameter.grad) for name, parameter in model.named_parameters() if parameter.grad is not None)
    found = [f"{kind} not finite: {_shorten(names)}" for kind, names in (("parameters", weights), ("gradients", gradients)) if names]
    known = "; ".join([*details, *found]) or "all parameters and gradients are finite"
    return DivergenceError(f"{problem} at step {step} ({known}). {_REMEDY}", step)


def check_weights(model: nn.Module, *, step: int) -> None:
    """Raises DivergenceError if a parameter is not finite or a buffer is NaN after ``step``. Infinity is fair in a buffer (a mask)."""
    bad = not_finite(model.named_parameters())
    bad += [name for name, buffer in model.named_buffers() if buffer.is_floating_point() and bool(buffer.isnan().any())]
    if bad:
        raise DivergenceError(
            f"the weights are not finite after step {step}: {_shorten(bad)}. Nothing was saved over the last checkpoint. "
            "Lower the learning rate or clip the gradients.",
            step,
        )


def check_gradients_exist(model: nn.Module, *, step: int) -> None:
    """Raises TrainingError if no parameter has a gradient."""
    if all(parameter.grad is None for parameter in model.parameters()):
        raise TrainingError(
            f"no parameter got a gradient in step {step}: the training step must call bitalloc.training.backward on a loss "
            "that depends on the model's parameters."
        )


def not_finite(tensors: Iterable[tuple[str, Tensor]]) -> list[str]:
    """The names of the tensors that hold a value that is not finite."""
    named = list(tensors)
    if not named:
        return []
    # One transfer from the device, not one a tensor.
    target = named[0][1].device
    flags: Sequence[bool] = torch.stack([whole(tensor.detach().isfinite().all()).to(target) for _, tensor in named]).tolist()
    return [name for (name, _), finite in zip(named, flags, strict=True) if not finite]


def _shorten(names: Sequence[str]) -> str:
    rest = len(names) - _NAMES_SHOWN
    return ", ".join(names[:_NAMES_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
