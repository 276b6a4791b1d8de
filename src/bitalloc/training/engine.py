"""How a training run computes: arithmetic, memory layout, compilation."""

import logging
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import nn

from bitalloc.errors import TrainingError
from bitalloc.training.allocator import keep_freed_memory
from bitalloc.training.device import device

Precision = Literal["float32", "bfloat16"]
Sharding = Literal["none", "full"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Engine:
    """How :func:`bitalloc.training.fit` computes. The defaults are the ones with the most exact result.

    Attributes:
        precision: ``bfloat16`` runs matrix products and convolutions in bfloat16 (automatic mixed precision); weights, step sizes,
            rounding, batch-norm statistics, loss and optimiser stay in float32. It pays on GPUs and on processors with AMX or
            AVX512-BF16; others emulate it, which is said in the log.
        channels_last: images and convolution weights lie in memory with the channels innermost, which most bfloat16 kernels want.
            The values are the same up to the order of sums.
        compile: the model's forward and backward go through ``torch.compile``. Worth it where a run lasts for minutes after some tens
            of seconds of compilation. A training that switches bit-widths at every pass is never compiled.
        accumulate: parts that every batch is split into; their gradients add up, so the result is that of the whole batch but for batch
            norms, which see a part at a time. Saves memory. Default 1, the whole batch at once.
        split_on_memory: where the memory is full, the step begins again with twice as many parts, down to one image, and the run goes on
            so. Default False: it ends with a sentence that says which batch size to try. Not together with ``sharding``.
        retries: how often a run whose loss, gradients or weights are not finite, or whose loss explodes, goes back to its last checkpoint
            (to its start if there is none) and on at a lower learning rate. Default 0: it ends with a sentence that names step and layer.
        retry_rate: what the learning rates of all parameters, step sizes too, are multiplied by for the rest of the run at each retry;
            the schedule is the same otherwise. Default 0.5.
        loss_limit: a loss explodes when it is more than so many times the running median of the losses, and than so many; see
            :func:`bitalloc.training.guards.loss_problem`. Default 100, beyond the worst batch of a training that goes well. 0 looks
            only whether the loss is finite.
        sharding: ``full`` spreads weights, gradients and optimiser states over the ranks of a distributed launch (PyTorch's FSDP2), for
            models that a device does not hold; every pass then gathers the weights anew, so the default ``none``, a copy of the model on
            every rank, is faster where it fits. Not together with ``compile``, ``channels_last`` or
            ``split_on_memory``. One process spreads nothing.
        keep_freed_memory: the process keeps what one step frees for the next, see :func:`bitalloc.training.keep_freed_memory`; until it
            ends, therefore not by default. On Linux it pays where tensors have more than 32 MB.

    Raises:
        TrainingError: an unknown precision or sharding, options that do not go together, or a number out of range.
    """

    precision: Precision = "float32"
    channels_last: bool = False
    compile: bool = False
    accumulate: int = 1
    split_on_memory: bool = False
    retries: int = 0
    retry_rate: float = 0.5
    loss_limit: float = 100.0
    sharding: Sharding = "none"
    keep_freed_memory: bool = False

    def __post_init__(self) -> None:
        for name, fits, expected in (
            ("accumulate", self.accumulate >= 1, "at least 1"),
            ("retries", self.retries >= 0, "0 or more"),
            ("retry_rate", 0 < self.retry_rate < 1, "a number between 0 and 1"),
            ("loss_limit", self.loss_limit == 0 or 1 <= self.loss_limit < math.inf, "0, or a number from 1 up"),
        ):
            if not fits:
                raise TrainingError(f"engine: {name} is {getattr(self, name)}, expected {expected}.")
        if self.precision not in get_args(Precision):
            raise TrainingError(f"there is no precision {self.precision!r}, expected one of {', '.join(get_args(Precision))}.")
        if self.sharding not in get_args(Sharding):
            raise TrainingError(f"there is no sharding {self.sharding!r}, expected one of {', '.join(get_args(Sharding))}.")
        if self.sharding == "full" and (self.compile or self.channels_last):
            raise TrainingError("sharding full does not go together with compile or channels_last: leave those off.")
        if self.sharding == "full" and self.split_on_memory:
            raise TrainingError(
                "sharding full does not go together with split_on_memory: a rank cannot begin a step again alone. Set accumulate instead."
            )

    @contextmanager
    def prepared(self, model: nn.Module) -> Iterator[None]:
        """Within the block ``model`` is laid out and compiled as asked for; afterwards it is as it was, with its trained weights."""
        if self.precision == "bfloat16" and emulates_bfloat16(device()):
            _log.warning("this processor has no bfloat16 arithmetic and emulates it, which is slower than float32: use precision float32.")
        if self.keep_freed_memory:
            keep_freed_memory()
        tensors = (*model.parameters(), *model.buffers()) if self.channels_last else ()
        turned = [tensor for tensor in tensors if tensor.dim() == 4 and tensor.is_contiguous()]
        _lay_out(turned, torch.channels_last)
        before: Callable[..., Any] | None = model._compiled_call_impl
        if self.compile:
            model.compile()
        try:
            yield
        finally:
            model._compiled_call_impl = before
            _lay_out(turned, torch.contiguous_format)

    @contextmanager
    def arithmetic(self) -> Iterator[None]:
        """Within the block forward passes run in the precision asked for."""
        half = self.precision == "bfloat16"
        with torch.autocast(device().type, torch.bfloat16) if half else nullcontext():
            yield

    @property
    def images(self) -> torch.memory_format | None:
        """The layout of images, None to leave them as they come."""
        return torch.channels_last if self.channels_last else None


ENGINE = Engine()
"""Float32, nothing changed."""


def emulates_bfloat16(where: torch.device) -> bool:
    """Whether bfloat16 products are computed with float32 instructions there."""
    if where.type == "cuda":
        return torch.cuda.get_device_capability(where) < (8, 0)
    return not (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def _lay_out(tensors: Iterable[torch.Tensor], layout: torch.memory_format) -> None:
    for tensor in tensors:  # not Module.to, which turns weights of five dimensions too, and fails
        tensor.data = tensor.data.contiguous(memory_format=layout)
