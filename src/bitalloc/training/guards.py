"""Checks for numbers that are not finite. Each names the tensors."""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from bitalloc.errors import TrainingError

_NAMES_SHOWN = 3


def check_loss(loss: float, model: nn.Module, *, step: int) -> None:
    """Raises TrainingError if ``loss`` is not finite. ``step`` is counted from 1."""
    if math.isfinite(loss):
        return
    weights = _not_finite(model.named_parameters())
    gradients = _not_finite((name, parameter.grad) for name, parameter in model.named_parameters() if parameter.grad is not None)
    found = [f"{kind} not finite: {_shorten(names)}" for kind, names in (("parameters", weights), ("gradients", gradients)) if names]
    details = "; ".join(found) or "all parameters and gradients are finite"
    raise TrainingError(f"the loss is {loss} at step {step} ({details}). Lower the learning rate, clip the gradients or check the data.")


def check_weights(model: nn.Module, *, step: int) -> None:
    """Raises TrainingError if a parameter is not finite or a buffer is NaN after ``step``. Infinity is fair in a buffer (a mask)."""
    bad = _not_finite(model.named_parameters())
    bad += [name for name, buffer in model.named_buffers() if buffer.is_floating_point() and bool(buffer.isnan().any())]
    if bad:
        raise TrainingError(
            f"the weights are not finite after step {step}: {_shorten(bad)}. Nothing was saved over the last checkpoint. "
            "Lower the learning rate or clip the gradients."
        )


def check_gradients_exist(model: nn.Module, *, step: int) -> None:
    """Raises TrainingError if no parameter has a gradient."""
    if all(parameter.grad is None for parameter in model.parameters()):
        raise TrainingError(
            f"no parameter got a gradient in step {step}: the training step must call bitalloc.training.backward on a loss "
            "that depends on the model's parameters."
        )


def _not_finite(tensors: Iterable[tuple[str, Tensor]]) -> list[str]:
    named = list(tensors)
    if not named:
        return []
    # One transfer from the device, not one a tensor.
    target = named[0][1].device
    flags: Sequence[bool] = torch.stack([tensor.detach().isfinite().all().to(target) for _, tensor in named]).tolist()
    return [name for (name, _), finite in zip(named, flags, strict=True) if not finite]


def _shorten(names: Sequence[str]) -> str:
    rest = len(names) - _NAMES_SHOWN
    return ", ".join(names[:_NAMES_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
