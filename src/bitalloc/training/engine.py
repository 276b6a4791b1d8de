"""How a training run computes: arithmetic, memory layout, compilation."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import nn

from bitalloc.errors import TrainingError
from bitalloc.training.device import device

Precision = Literal["float32", "bfloat16"]

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

    Raises:
        TrainingError: an unknown precision.
    """

    precision: Precision = "float32"
    channels_last: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        if self.precision not in get_args(Precision):
            raise TrainingError(f"there is no precision {self.precision!r}, expected one of {', '.join(get_args(Precision))}.")

    @contextmanager
    def prepared(self, model: nn.Module) -> Iterator[None]:
        """Within the block ``model`` is laid out and compiled as asked for; afterwards it is as it was, with its trained weights."""
        if self.precision == "bfloat16" and emulates_bfloat16(device()):
            _log.warning("this processor has no bfloat16 arithmetic and emulates it, which is slower than float32: use precision float32.")
        if self.channels_last:
            _lay_out(model, torch.channels_last)
        before: Callable[..., Any] | None = model._compiled_call_impl
        if self.compile:
            model.compile()
        try:
            yield
        finally:
            model._compiled_call_impl = before
            if self.channels_last:
                _lay_out(model, torch.contiguous_format)

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


def _lay_out(model: nn.Module, layout: torch.memory_format) -> None:
    model.to(memory_format=layout)  # type: ignore[call-overload]  # an overload that PyTorch's types forgot
