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


def to_device(batch: Any, target: torch.device, images: torch.memory_format | None = None) -> Any:
    """``batch`` with every tensor on ``target``, and tensors of four dimensions in the layout ``images`` if one is given.

    Goes into tuples (named ones too), lists, dataclasses and mappings; a mapping of another class becomes a dict. Other objects that
    know how to move themselves (``batch.to(device)``) do so, the rest stays as it is.
    """
    if isinstance(batch, Tensor):
        moved = batch.to(target, non_blocking=True)
        return moved if images is None or moved.dim() != 4 else moved.contiguous(memory_format=images)
    if isinstance(batch, Mapping):
        return {key: to_device(value, target, images) for key, value in batch.items()}
    if isinstance(batch, tuple | list):
        items = [to_device(value, target, images) for value in batch]
        return type(batch)(*items) if hasattr(batch, "_fields") else type(batch)(items)
    if is_dataclass(batch) and not isinstance(batch, type):
        return replace(
            batch, **{entry.name: to_device(getattr(batch, entry.name), target, images) for entry in fields(batch) if entry.init}
        )
    movable = hasattr(batch, "to") and not isinstance(batch, type | nn.Module)
    return batch.to(target) if movable else batch
