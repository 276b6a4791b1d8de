"""Fake quantization as two operations of PyTorch, each one pass over memory: ``bitalloc::fake_quantize`` and its gradient.

What is computed is what :mod:`bitalloc.quantizers.reference` computes: the same values and the same gradient of ``x`` bit for bit, and
the same gradient of the step up to the order of its sum, which is fixed and does not depend on the number of threads. The operations
are opaque to ``torch.compile``, which therefore takes them into any graph. Without a compiled kernel they run the reference.

Why a kernel in C: forward and backward of 8 MB and 256 MB on one AVX2 core took 0.9 to 1.3 times a ``relu``'s over several runs on a
machine with other work, since both are bound by memory. Beside it in one run, the reference through ``torch.compile`` took 1.1 and 1.0
times as long, after 48 s of first compilation instead of 0.3 s. ``torch._fake_quantize_learnable_per_tensor_affine`` took 5 to 6 times
as long and multiplies by the reciprocal of the step, which gives other levels than ONNX QuantizeLinear.
``benchmarks/training.py`` measures the chosen one.
"""

import ctypes
from typing import Any

import torch
from torch import Tensor

from bitalloc.errors import QuantizerError
from bitalloc.quantizers import kernel, reference
from bitalloc.quantizers.choice import mode

GRAIN = 32768
"""Elements below which one thread is as fast as several, as in PyTorch's own element-wise operations."""

PLAIN = (Tensor, torch.nn.Parameter)


def fits(x: Tensor, step: Tensor) -> bool:
    """Whether the operations take the tensors: float32 on the CPU, no subclass of a tensor, and a step that broadcasts against ``x``."""
    if type(x) not in PLAIN or type(step) not in PLAIN or x.layout is not torch.strided or step.dim() > x.dim():
        return False
    if x.dtype is not torch.float32 or step.dtype is not torch.float32 or x.device.type != "cpu" or step.device.type != "cpu":
        return False
    return all(size in (1, whole) for size, whole in zip(step.shape[::-1], x.shape[::-1], strict=False))


@torch.library.custom_op("bitalloc::fake_quantize", mutates_args=(), device_types="cpu")
def fake_quantize(x: Tensor, step: Tensor, low: int, high: int, scale: float) -> Tensor:
    """The values of :func:`bitalloc.quantizers.fake_quantize`, with the strides of ``x`` where it is dense."""
    library, out = kernel.load(), torch.empty_like(x)
    if mode() == "fused" and isinstance(library, kernel.KernelUnavailable):
        raise QuantizerError(f"fused fake quantization was asked for, but {library}. Install a C compiler such as gcc, or use mode auto.")
    sizes = _sizes(out, step)
    if sizes is None or not isinstance(library, ctypes.CDLL):
        return out.copy_(reference.values(x, step, low, high))
    x, step = _laid_out_as(out, x), step.contiguous()
    library.forward(x.data_ptr(), step.data_ptr(), out.data_ptr(), *sizes, low, high, _threads(x))
    return out


@torch.library.custom_op("bitalloc::fake_quantize_backward", mutates_args=(), device_types="cpu")
def fake_quantize_backward(
    grad: Tensor, x: Tensor, step: Tensor, low: int, high: int, scale: float, wanted_x: bool, wanted_step: bool
) -> tuple[Tensor, Tensor]:
    """The gradients with respect to ``x`` and ``step``; one that is not wanted holds anything."""
    library, grad_x, grad_step = kernel.load(), torch.empty_like(x), torch.empty(step.shape)
    sizes = _sizes(grad_x, step)
    if sizes is None or not isinstance(library, ctypes.CDLL):
        found = reference.gradients(grad, x, step, low, high, scale, wanted_x, wanted_step)
        for gradient, value in zip((grad_x, grad_step), found, strict=True):
            if value is not None:
                gradient.copy_(value)
        return grad_x, grad_step
    x, grad, step = _laid_out_as(grad_x, x), _laid_out_as(grad_x, grad), step.contiguous()
    partial = torch.empty(library.partial_sums(*sizes) if wanted_step else 0)
    inputs = (grad.data_ptr(), x.data_ptr(), step.data_ptr())
    outputs = (grad_x.data_ptr() if wanted_x else None, grad_step.data_ptr() if wanted_step else None, partial.data_ptr())
    library.backward(*inputs, *outputs, *sizes, low, high, scale, _threads(x))
    return grad_x, grad_step


@fake_quantize.register_fake
def _(x: Tensor, step: Tensor, low: int, high: int, scale: float) -> Tensor:
    return torch.empty_like(x)


@fake_quantize_backward.register_fake
def _(grad: Tensor, x: Tensor, step: Tensor, low: int, high: int, scale: float, wanted_x: bool, wanted_step: bool) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), step.new_empty(step.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, step, *ctx.constants = inputs
    ctx.save_for_backward(x, step)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
    x, step = ctx.saved_tensors
    low, high, scale = ctx.constants
    wanted_x, wanted_step = ctx.needs_input_grad[:2]
    if torch.is_grad_enabled():  # a gradient of the gradient was asked for: plain operations have one
        return *reference.gradients(grad, x, step, low, high, scale, wanted_x, wanted_step), None, None, None
    grad_x, grad_step = fake_quantize_backward(grad, x, step, low, high, scale, wanted_x, wanted_step)
    return grad_x if wanted_x else None, grad_step if wanted_step else None, None, None, None


fake_quantize.register_autograd(_backward, setup_context=_save)


def _sizes(dense: Tensor, step: Tensor) -> tuple[int, int, int] | None:
    """``dense`` in the order of its memory as (outer, channels, inner), one step a channel; None where channels are not a run of axes."""
    if step.numel() == 1:
        return 1, 1, dense.numel()
    steps = (1,) * (dense.dim() - step.dim()) + tuple(step.shape)
    axes = sorted((axis for axis, size in enumerate(dense.shape) if size != 1), key=dense.stride, reverse=True)
    places = [place for place, axis in enumerate(axes) if steps[axis] != 1]
    first, end = places[0], places[-1] + 1
    channels = axes[first:end]
    if len(channels) != len(places) or channels != sorted(channels):
        return None
    outer = 1
    for axis in axes[:first]:
        outer *= dense.shape[axis]
    return outer, step.numel(), dense.numel() // max(outer * step.numel(), 1)


def _laid_out_as(form: Tensor, tensor: Tensor) -> Tensor:
    return tensor if tensor.stride() == form.stride() else torch.empty_like(form).copy_(tensor)


def _threads(x: Tensor) -> int:
    return 1 if x.numel() < GRAIN else torch.get_num_threads()
