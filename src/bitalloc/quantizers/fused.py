"""Fake quantization in one pass over memory forward and one backward, as PyTorch operations ``bitalloc::fake_quantize`` and its gradient.

What is computed is what :mod:`bitalloc.quantizers.reference` computes: the same values and the same gradient of ``x`` bit for bit, and
the same gradient of the step up to the order of its sum, which is fixed and does not depend on the number of threads. A kernel in C
runs on the CPU (:mod:`bitalloc.quantizers.cpu`), one in Triton on CUDA devices (:mod:`bitalloc.quantizers.triton_kernel`); without one,
and for steps that do not lie in a run of axes, the operations run the reference.

``torch.compile`` sees two opaque operations, which it takes into any graph. Eager code calls the same functions through an
``autograd.Function``, because the checks around a registered operation take several times as long as a small tensor:
forward and backward of 64 elements took 160 instead of 500 microseconds on one core of a busy machine.

Why a kernel in C: forward and backward of 8 MB and 256 MB on one AVX2 core took 0.9 to 1.8 times a ``relu``'s over several runs on a
machine with other work, since both are bound by memory. Beside it in one run, the reference through ``torch.compile`` took 1.1 and 1.0
times as long, after 48 s of first compilation instead of 0.3 s. ``torch._fake_quantize_learnable_per_tensor_affine`` took 5 to 6 times
as long and multiplies by the reciprocal of the step, which gives other levels than ONNX QuantizeLinear.
``benchmarks/training.py`` measures the chosen one.
"""

import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from bitalloc.errors import QuantizerError
from bitalloc.quantizers import cpu, reference
from bitalloc.quantizers.choice import mode

PLAIN = (Tensor, torch.nn.Parameter)
DEVICES = ("cpu", "cuda")


def fits(x: Tensor, step: Tensor) -> bool:
    """Whether the operations take the tensors.

    True for ``x`` in float32 or bfloat16 and ``step`` in float32, both on the CPU or on one CUDA device, no subclasses of a tensor, and a
    step that broadcasts against ``x``.
    """
    if type(x) not in PLAIN or type(step) not in PLAIN or x.layout is not torch.strided or step.dim() > x.dim():
        return False
    if x.dtype not in (torch.float32, torch.bfloat16) or step.dtype is not torch.float32:
        return False
    if x.device != step.device or x.device.type not in DEVICES:
        return False
    return all(size in (1, whole) for size, whole in zip(step.shape[::-1], x.shape[::-1], strict=False))


def apply(x: Tensor, step: Tensor, low: int, high: int, scale: float) -> Tensor:
    """:func:`bitalloc.quantizers.fake_quantize` of tensors that fit."""
    if torch.compiler.is_compiling():
        out: Tensor = fake_quantize(x, step, low, high, scale)
    else:
        out = _Eager.apply(x, step, low, high, scale)  # type: ignore[no-untyped-call]
    return out


def values(x: Tensor, step: Tensor, low: int, high: int) -> Tensor:
    """The values alone, without a derivative."""
    out = None
    if (kernels := _kernels(x)) is not None:
        out = kernels.values(x, step, low, high)
    return torch.empty_like(x).copy_(reference.values(x, step, low, high)) if out is None else out


def _values(x: Tensor, step: Tensor, low: int, high: int, scale: float) -> Tensor:
    return values(x, step, low, high)


def _gradients(
    grad: Tensor, x: Tensor, step: Tensor, low: int, high: int, scale: float, wanted_x: bool, wanted_step: bool
) -> tuple[Tensor, Tensor]:
    found = None
    if (kernels := _kernels(x)) is not None:
        found = kernels.gradients(grad, x, step, low, high, scale, wanted_x, wanted_step)
    if found is not None:
        return found[0], found[1]
    grad_x, grad_step = torch.empty_like(x), torch.empty_like(step, memory_format=torch.contiguous_format)
    plain = reference.gradients(grad, x, step, low, high, scale, wanted_x, wanted_step)
    for gradient, value in zip((grad_x, grad_step), plain, strict=True):
        if value is not None:
            gradient.copy_(value)
    return grad_x, grad_step


def _kernels(x: Tensor) -> ModuleType | None:
    """The module with the kernels of the tensor's device, None where there are none. Raises QuantizerError for that in mode ``fused``."""
    kernels, reason = (cpu, cpu.unavailable()) if x.device.type == "cpu" else _cuda(x.device)
    if reason is None:
        return kernels
    if mode() == "fused":
        raise QuantizerError(f"fused fake quantization was asked for, but {reason}")
    return None


@functools.cache
def _cuda(device: torch.device) -> tuple[ModuleType | None, str | None]:
    try:
        from bitalloc.quantizers import triton_kernel
    except ImportError:
        return None, "Triton is not installed. Install the triton that your PyTorch asks for (pip install triton), or use mode auto."
    return triton_kernel, triton_kernel.unavailable(device)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor | None) -> None:
    x, step, *ctx.constants = inputs
    ctx.save_for_backward(x, step)


def _derivative(operation: Callable[..., tuple[Tensor, Tensor]], ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, step = ctx.saved_tensors
    low, high, scale = ctx.constants
    wanted_x, wanted_step = ctx.needs_input_grad[:2]
    if torch.is_grad_enabled():  # a gradient of the gradient was asked for: plain operations have one
        return *reference.gradients(grad, x, step, low, high, scale, wanted_x, wanted_step), None, None, None
    grad_x, grad_step = operation(grad, x, step, low, high, scale, wanted_x, wanted_step)
    return grad_x if wanted_x else None, grad_step if wanted_step else None, None, None, None


class _Eager(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        _save(ctx, inputs, None)
        return _values(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _derivative(_gradients, ctx, grad)


fake_quantize = torch.library.custom_op("bitalloc::fake_quantize", _values, mutates_args=(), device_types=DEVICES)
fake_quantize_backward = torch.library.custom_op("bitalloc::fake_quantize_backward", _gradients, mutates_args=(), device_types=DEVICES)


@fake_quantize.register_fake
def _(x: Tensor, step: Tensor, low: int, high: int, scale: float) -> Tensor:
    return torch.empty_like(x)


@fake_quantize_backward.register_fake
def _(grad: Tensor, x: Tensor, step: Tensor, low: int, high: int, scale: float, wanted_x: bool, wanted_step: bool) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), step.new_empty(step.shape)


def _registered_derivative(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return _derivative(fake_quantize_backward, ctx, grad)


fake_quantize.register_autograd(_registered_derivative, setup_context=_save)
