"""Fake quantization in plain tensor operations: on any device and type, under any tracer, and what the fused kernel is held against."""

from typing import Any

import torch
from torch import Tensor


class Reference(torch.autograd.Function):
    """Saves only its input and the step; everything else is computed again in the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor, low: int, high: int, scale: float) -> Tensor:
        """The values of :func:`bitalloc.quantizers.fake_quantize`."""
        ctx.save_for_backward(x, step)
        ctx.low, ctx.high, ctx.scale = low, high, scale
        return values(x, step, low, high)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        """The gradients of :func:`bitalloc.quantizers.fake_quantize`."""
        x, step = ctx.saved_tensors
        wanted_x, wanted_step = ctx.needs_input_grad[:2]
        return *gradients(grad, x, step, ctx.low, ctx.high, ctx.scale, wanted_x, wanted_step), None, None, None


def values(x: Tensor, step: Tensor, low: int, high: int) -> Tensor:
    """``step * round(clip(x / step, low, high))``, of the type of ``x``."""
    return _ratio(x, step).clamp_(low, high).round_().mul_(step).to(x.dtype)


def gradients(
    grad: Tensor, x: Tensor, step: Tensor, low: int, high: int, scale: float, wanted_x: bool, wanted_step: bool
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients with respect to ``x`` and ``step``, each of its tensor's type; None where one is not wanted."""
    ratio = _ratio(x, step)
    inside = (ratio > low).logical_and_(ratio < high)
    grad_step = None
    if wanted_step:
        level = ratio.clamp(low, high).round_()
        # A gradient of the gradient needs what operations in place would overwrite.
        again = torch.is_grad_enabled()
        slope = (level - ratio * inside) * grad if again else level.sub_(ratio.mul_(inside)).mul_(grad)
        grad_step = slope.sum_to_size(step.shape).mul_(scale).to(step.dtype)
    return grad * inside if wanted_x else None, grad_step


def _ratio(x: Tensor, step: Tensor) -> Tensor:
    # In float32 at least: a level of 8 bits is rounded once in bfloat16 before it would be rounded to a level, and a step without axes
    # would not count in PyTorch's choice of a type.
    wide = torch.promote_types(torch.promote_types(x.dtype, step.dtype), torch.float32)
    return x.to(wide) / step.to(wide)
