"""Putting tensors where a model is."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
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

    Goes into tuples (named ones too), lists, dataclasses and mappings; a mapping of another class becomes a dict. Other objects that
    know how to move themselves (``batch.to(device)``) do so, the rest stays as it is.
    """
    if isinstance(batch, Tensor):
        return batch.to(target, non_blocking=True)
    if isinstance(batch, Mapping):
        return {key: to_device(value, target) for key, value in batch.items()}
    if isinstance(batch, tuple | list):
        moved = [to_device(value, target) for value in batch]
        return type(batch)(*moved) if hasattr(batch, "_fields") else type(batch)(moved)
    if is_dataclass(batch) and not isinstance(batch, type):
        return replace(batch, **{entry.name: to_device(getattr(batch, entry.name), target) for entry in fields(batch) if entry.init})
    movable = hasattr(batch, "to") and not isinstance(batch, type | nn.Module)
    return batch.to(target) if movable else batch
