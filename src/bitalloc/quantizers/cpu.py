"""Fake quantization by the C kernel: float32 and bfloat16 on the CPU."""

import ctypes

import torch
from torch import Tensor

from bitalloc.quantizers import kernel
from bitalloc.quantizers.layout import laid_out_as, sizes

GRAIN = 32768
"""Elements below which one thread is as fast as several, as in PyTorch's own element-wise operations."""


def unavailable() -> str | None:
    """Why there is no kernel, as the end of a sentence with what to do; None if there is one."""
    library = kernel.load()
    if isinstance(library, ctypes.CDLL):
        return None
    return f"{library}. Install a C compiler such as gcc, or use mode auto."


def values(x: Tensor, step: Tensor, low: int, high: int) -> Tensor | None:
    """As in :mod:`bitalloc.quantizers.reference`, with the strides of ``x`` where it is dense; None for steps that do not lie in a run."""
    library, out = kernel.load(), torch.empty_like(x)
    shape = sizes(out, step)
    if shape is None or not isinstance(library, ctypes.CDLL):
        return None
    x, step = laid_out_as(out, x), step.contiguous()
    library.forward(x.data_ptr(), step.data_ptr(), out.data_ptr(), *shape, low, high, x.dtype is torch.bfloat16, _threads(x))
    return out


def gradients(
    grad: Tensor, x: Tensor, step: Tensor, low: int, high: int, scale: float, wanted_x: bool, wanted_step: bool
) -> tuple[Tensor, Tensor] | None:
    """As in :mod:`bitalloc.quantizers.reference`, but one that is not wanted holds anything; None for steps that do not lie in a run."""
    library, grad_x = kernel.load(), torch.empty_like(x)
    # Type and device are said: the defaults of PyTorch are the user's to set, and the kernel writes float32 into the processor's memory.
    grad_step = step.new_empty(step.shape)
    shape = sizes(grad_x, step)
    if shape is None or not isinstance(library, ctypes.CDLL):
        return None
    x, grad, step = laid_out_as(grad_x, x), laid_out_as(grad_x, grad), step.contiguous()
    partial = step.new_empty(library.partial_sums(*shape) if wanted_step else 0)
    inputs = (grad.data_ptr(), x.data_ptr(), step.data_ptr())
    outputs = (grad_x.data_ptr() if wanted_x else None, grad_step.data_ptr() if wanted_step else None, partial.data_ptr())
    library.backward(*inputs, *outputs, *shape, low, high, scale, x.dtype is torch.bfloat16, _threads(x))
    return grad_x, grad_step


def _threads(x: Tensor) -> int:
    return 1 if x.numel() < GRAIN else torch.get_num_threads()
