"""Where the numbers are computed. The only file that knows Hugging Face Accelerate.

The device is the first accelerator of the machine, else the processor; ``ACCELERATE_USE_CPU=1`` forces the processor.
"""

from functools import cache
from itertools import chain
from typing import Any

import torch
from accelerate import Accelerator  # type: ignore[import-untyped]
from torch import Tensor, nn

from bitalloc.errors import TrainingError


@cache
def _accelerator() -> Accelerator:
    return Accelerator()


def device() -> torch.device:
    """The device that :func:`bitalloc.training.fit` trains on."""
    return torch.device(_accelerator().device)


def backward(loss: Tensor) -> None:
    """Adds the gradients of ``loss`` (a tensor with one element) to ``.grad``. A training step of your own calls this."""
    _accelerator().backward(loss)


def module_device(model: nn.Module) -> torch.device:
    """The device of the first parameter or buffer of ``model``; :func:`device` for a model without any."""
    first = next(chain(model.parameters(), model.buffers()), None)
    return device() if first is None else first.device


def to_device(batch: Any, target: torch.device) -> Any:
    """``batch`` with every tensor on ``target``. Goes into tuples (named ones too), lists and dicts; the rest stays as it is."""
    if isinstance(batch, Tensor):
        return batch.to(target, non_blocking=True)
    if isinstance(batch, dict):
        return {key: to_device(value, target) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(to_device(value, target) for value in batch))
    if isinstance(batch, tuple | list):
        return type(batch)(to_device(value, target) for value in batch)
    return batch


def require_single_process() -> None:
    """Raises TrainingError in a distributed launch: several processes would write the same checkpoint."""
    count = _accelerator().num_processes
    if count > 1:
        raise TrainingError(f"training was launched in {count} processes, expected one: start it without a distributed launcher.")
