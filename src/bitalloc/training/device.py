"""Where the numbers are computed, and in how many processes. With ``trackers.py`` the only file that knows Hugging Face Accelerate.

The device is the first CUDA device, in a distributed launch the one of the process; else the processor. ``ACCELERATE_USE_CPU=1``
forces the processor. Other accelerators are left alone: they lack the float64 that statistics are accumulated in.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from functools import cache

import torch
from accelerate import Accelerator, DistributedType  # type: ignore[import-untyped]
from accelerate.utils import InitProcessGroupKwargs, parse_flag_from_env  # type: ignore[import-untyped]
from torch import Tensor

from bitalloc.errors import TrainingError

_SHARE: ContextVar[float] = ContextVar("share", default=1.0)
_RANK_WEIGHT: ContextVar[float] = ContextVar("rank weight", default=1.0)

_LAUNCHES = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)

_PATIENCE = timedelta(hours=2)
"""How long ranks wait for one another: rank 0 alone searches, exports and runs the exported model over the test data meanwhile. A rank
that dies is noticed at once, by the launcher or by its closed connection."""


@cache
def _accelerator() -> Accelerator:
    # No mixed precision from the environment: it would scale losses for an optimiser that is not Accelerate's.
    cpu = not torch.cuda.is_available() or parse_flag_from_env("ACCELERATE_USE_CPU")
    found = Accelerator(cpu=cpu, mixed_precision="no", kwargs_handlers=[InitProcessGroupKwargs(timeout=_PATIENCE)])
    if found.distributed_type not in _LAUNCHES:
        raise TrainingError(
            f"training was launched as {found.distributed_type.value}, expected plain data parallelism: use torchrun, or a configuration "
            "of accelerate launch with several processes on GPUs or the processor and without DeepSpeed, FSDP and Megatron."
        )
    return found


def device() -> torch.device:
    """The device that :func:`bitalloc.training.fit` trains on."""
    return torch.device(_accelerator().device)


def backward(loss: Tensor) -> None:
    """Adds the gradients of ``loss`` (a tensor with one element) to ``.grad``. A training step of your own calls this."""
    factor = _SHARE.get() * _RANK_WEIGHT.get()
    _accelerator().backward(loss if factor == 1 else loss * factor)


@contextmanager
def weighted(share: float) -> Iterator[None]:
    """Within the block :func:`backward` adds ``share`` times the gradients: a part of a batch counts as much as it has images."""
    token = _SHARE.set(_SHARE.get() * share)
    try:
        yield
    finally:
        _SHARE.reset(token)


@contextmanager
def rank_weighted(weight: float) -> Iterator[None]:
    """Within the block :func:`backward` adds ``weight`` times the gradients: a rank counts as much as it has images. No part of a batch."""
    token = _RANK_WEIGHT.set(weight)
    try:
        yield
    finally:
        _RANK_WEIGHT.reset(token)


def share() -> float:
    """The share of a batch that the training step works on: 1, and less where the batch is split into parts, see :func:`weighted`."""
    return _SHARE.get()


def processes() -> tuple[int, int]:
    """The number of this process, and how many a launcher (``torchrun``, ``accelerate launch``) has started: (0, 1) without one."""
    accelerator = _accelerator()
    return int(accelerator.process_index), int(accelerator.num_processes)
