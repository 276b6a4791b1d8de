"""Where the numbers are computed. The only file that knows Hugging Face Accelerate.

The device is the first CUDA device, else the processor; ``ACCELERATE_USE_CPU=1`` forces the processor. Other accelerators are
left alone: they lack the float64 that statistics are accumulated in.
"""

from functools import cache

import torch
from accelerate import Accelerator  # type: ignore[import-untyped]
from torch import Tensor

from bitalloc.errors import TrainingError


@cache
def _accelerator() -> Accelerator:
    # No mixed precision from the environment: it would scale losses for an optimiser that is not Accelerate's.
    return Accelerator(cpu=not torch.cuda.is_available(), mixed_precision="no")


def device() -> torch.device:
    """The device that :func:`bitalloc.training.fit` trains on."""
    return torch.device(_accelerator().device)


def backward(loss: Tensor) -> None:
    """Adds the gradients of ``loss`` (a tensor with one element) to ``.grad``. A training step of your own calls this."""
    _accelerator().backward(loss)


def require_single_process() -> None:
    """Raises TrainingError in a distributed launch: several processes would write the same checkpoint."""
    count = _accelerator().num_processes
    if count > 1:
        raise TrainingError(f"training was launched in {count} processes, expected one: start it without a distributed launcher.")
