"""Fake quantization by two Triton kernels: float32 and bfloat16 on CUDA devices. Import it only where Triton is installed.

Values and the gradient of ``x`` are those of the reference bit for bit: a division that rounds correctly (Triton's ``/`` does not),
ties to the even level, NaN kept. The step's gradient is summed over blocks, each by one program, and then in float64: no atomics, so
that two runs give the same bits. One step a channel with channels innermost in memory reads it in strides, correct but not fast.
"""

from contextlib import nullcontext
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from bitalloc.quantizers.layout import laid_out_as, sizes

BLOCK = 4096
"""Most elements that a program handles."""

# Triton compiles the annotations too, and knows no type but its own.


@triton.jit
def _level(ratio, low, high):  # type: ignore[no-untyped-def]
    clipped = tl.where(ratio < low, low, ratio)
    clipped = tl.where(clipped > high, high, clipped)
    # 1.5 * 2^23: a float32 of this size has no fraction, so the sum is rounded to a whole number, ties to even.
    rounded = (clipped + 12582912.0) - 12582912.0
    return tl.where(rounded == 0.0, clipped * 0.0, rounded)  # the sign of a zero is lost above


@triton.jit  # type: ignore[untyped-decorator]
def _typed(value, element: tl.constexpr):  # type: ignore[no-untyped-def]
    if element == tl.bfloat16:
        # To the nearest, ties to even, before the conversion: the GPU's rounds so by itself, that of Triton's interpreter cuts off.
        bits = value.to(tl.uint32, bitcast=True)
        bits = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16) << 16
        value = tl.where(value == value, bits.to(tl.float32, bitcast=True), value)  # NaN apart: the carry could make it a number
    return value.to(element)


@triton.jit  # type: ignore[untyped-decorator]
def _forward(x, step, out, numel, channels, inner, low, high, block: tl.constexpr):  # type: ignore[no-untyped-def]
    places = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = places < numel
    s = tl.load(step + places // inner % channels, mask=inside, other=1.0)
    value = tl.load(x + places, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + places, _typed(_level(tl.div_rn(value, s), low, high) * s, out.dtype.element_ty), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _backward(  # type: ignore[no-untyped-def]
    grad,
    x,
    step,
    grad_x,
    partial,
    shared,
    channels,
    inner,
    blocks,
    low,
    high,
    wanted_x: tl.constexpr,
    wanted_step: tl.constexpr,
    block: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    channel = program // blocks
    members = program % blocks * block + tl.arange(0, block)  # of the elements that share the channel's step
    places = (members // inner * channels + channel) * inner + members % inner
    known = members < shared
    s = tl.load(step + channel)
    g = tl.load(grad + places, mask=known, other=0.0).to(tl.float32)
    ratio = tl.div_rn(tl.load(x + places, mask=known, other=0.0).to(tl.float32), tl.zeros([block], tl.float32) + s)
    mask = tl.where((ratio > low) & (ratio < high), 1.0, 0.0)
    if wanted_x:
        tl.store(grad_x + places, _typed(g * mask, grad_x.dtype.element_ty), mask=known)
    if wanted_step:
        slope = (_level(ratio, low, high) - ratio * mask) * g
        tl.store(partial + program, tl.sum(tl.where(known, slope, 0.0), axis=0))


def unavailable(device: torch.device) -> str | None:
    """Why the device cannot run the kernels, as the end of a sentence with what to do; None if it can."""
    major, minor = torch.cuda.get_device_capability(device)
    if major >= 7:
        return None
    name = torch.cuda.get_device_name(device)
    return f"{name} has compute capability {major}.{minor}, and Triton needs 7.0 or higher. Use mode auto on this device."


def values(x: Tensor, step: Tensor, low: int, high: int) -> Tensor | None:
    """As :func:`bitalloc.quantizers.cpu.values`."""
    out = torch.empty_like(x)
    shape = sizes(out, step)
    if shape is None or x.numel() == 0:
        return None
    x, step = laid_out_as(out, x), step.contiguous()
    block = min(1024, triton.next_power_of_2(x.numel()))
    with _on(x.device):
        _forward[(triton.cdiv(x.numel(), block),)](x, step, out, x.numel(), *shape[1:], float(low), float(high), block)
    return out


def gradients(
    grad: Tensor, x: Tensor, step: Tensor, low: int, high: int, scale: float, wanted_x: bool, wanted_step: bool
) -> tuple[Tensor, Tensor] | None:
    """As :func:`bitalloc.quantizers.cpu.gradients`."""
    grad_x, form = torch.empty_like(x), step
    shape = sizes(grad_x, step)
    if shape is None or x.numel() == 0:
        return None
    x, grad, step = laid_out_as(grad_x, x), laid_out_as(grad_x, grad), step.contiguous()
    outer, channels, inner = shape
    block = min(BLOCK, triton.next_power_of_2(outer * inner))
    blocks = triton.cdiv(outer * inner, block)
    partial = torch.empty((channels, blocks), dtype=torch.float32, device=x.device)
    arguments = (grad, x, step, grad_x, partial, outer * inner, channels, inner, blocks, float(low), float(high), wanted_x, wanted_step)
    with _on(x.device):
        _backward[(channels * blocks,)](*arguments, block)
    return grad_x, partial.sum(1, dtype=torch.float64).mul_(scale).float().reshape(form.shape)


def _on(device: torch.device) -> Any:
    # A tensor of the CPU comes here under Triton's interpreter alone.
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
