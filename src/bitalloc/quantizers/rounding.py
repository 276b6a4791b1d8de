"""The rounding primitive: uniform fake quantization with a learned step size, in one place.

Source: Esser et al., "Learned Step Size Quantization", ICLR 2020, equations 1 to 3.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from bitalloc.quantizers import fused
from bitalloc.quantizers.choice import mode
from bitalloc.quantizers.recompute import computable
from bitalloc.quantizers.reference import Reference, values

MIN_STEP = 2.0**-23
"""Smallest step size in use. Far below any trained step, large enough that ``x / step`` does not overflow in float32."""


def bounds(bits: int, signed: bool) -> tuple[int, int]:
    """Smallest and largest integer level: ``[-2^(b-1), 2^(b-1) - 1]`` signed, ``[0, 2^b - 1]`` unsigned."""
    if signed:
        return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    return 0, 2**bits - 1


def fake_quantize(x: Tensor, step: Tensor, low: int, high: int, step_gradient_scale: float) -> Tensor:
    """``step * round(clip(x / step, low, high))`` with straight-through gradients.

    The division is a true division and ties go to the even level, as ONNX QuantizeLinear does it, so that an exported
    model computes the same levels.

    Levels, rounding and sums are computed in float32 at least, also for half-precision ``x`` and under ``torch.autocast``. Float32 and
    bfloat16 tensors with a float32 step take a fused kernel where there is one, everything else plain tensor operations; see
    :func:`bitalloc.quantizers.use_fake_quantize`. Only ``x`` and ``step`` are saved for the backward pass.

    Gradients (LSQ, equations 2 and 3)::

        d x_hat / d x    = 1 for low < x / step < high, else 0
        d x_hat / d step = scale * { low below, high above, round(x / step) - x / step inside }

    Args:
        x: any shape.
        step: positive; shape (1,), or a shape that broadcasts against ``x`` with one entry a channel. See :func:`positive`.
        low: smallest level, see :func:`bounds`.
        high: largest level.
        step_gradient_scale: the LSQ gradient scale ``g = 1 / sqrt(high * numel)``.

    Returns:
        The fake-quantized tensor, same shape and type as ``x``.

    Raises:
        QuantizerError: the fused kernel was asked for and there is none.
    """
    exporting = torch.compiler.is_exporting() or torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]
    out: Tensor
    if mode() != "reference" and not exporting and fused.fits(x, step):
        out = fused.apply(x, step, low, high, step_gradient_scale)
        return computable(out, partial(fused.values, x, step, low, high), x, step)
    out = Reference.apply(x, step, low, high, step_gradient_scale)  # type: ignore[no-untyped-call]
    return computable(out, partial(values, x, step, low, high), x, step)


def positive(step: Tensor) -> Tensor:
    """``max(step, MIN_STEP)``, whose gradient still lets a step grow again once it has reached the floor.

    Below the floor only a gradient that would increase the step passes, so the raw parameter cannot drift away either.
    """
    out: Tensor = _Positive.apply(step)  # type: ignore[no-untyped-call]
    return out


class _Positive(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, step: Tensor) -> Tensor:
        ctx.save_for_backward(step)
        return step.clamp_min(MIN_STEP)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (step,) = ctx.saved_tensors
        return grad.masked_fill((step <= MIN_STEP) & (grad > 0), 0.0)
