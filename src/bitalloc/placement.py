"""Putting tensors where a model is."""

from collections.abc import Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn


def module_device(model: nn.Module) -> torch.device:
    """The device of the first parameter or buffer of ``model``; the processor for a model without any."""
    first = next(chain(model.parameters(), model.buffers()), None)
    return torch.device("cpu") if first is None else first.device


def to_device(batch: Any, target: torch.device) -> Any:
    """``batch`` with every tensor on ``target``.

    Goes into tuples (named ones too), lists and mappings; a mapping of another class becomes a dict; the rest stays as it is.
    """
    if isinstance(batch, Tensor):
        return batch.to(target, non_blocking=True)
    if isinstance(batch, Mapping):
        return {key: to_device(value, target) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(to_device(value, target) for value in batch))
    if isinstance(batch, tuple | list):
        return type(batch)(to_device(value, target) for value in batch)
    return batch
