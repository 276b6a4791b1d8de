"""The three operations of a quantize-dequantize graph, as PyTorch operators that the ONNX exporter keeps whole.

A deployed layer calls them only while it is exported. Each is one node of the exported program, and :func:`translations`
says which ONNX nodes it becomes (ONNX operator set 21, QuantizeLinear and DequantizeLinear).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

OPSET = 21
"""ONNX operator set of the exported files; the newest one that IR version 10, and so every ONNX Runtime since 1.19, can hold."""


@torch.library.custom_op("bitalloc::quantize_input", mutates_args=())
def quantize_input(x: Tensor, scale: Tensor, zero_point: int, low: int, high: int) -> Tensor:
    """``scale * clip(round(x / scale), low, high)``; ``zero_point`` is where the level 0 lies in the unsigned byte."""
    return (x / scale).round().clamp(low, high) * scale


@quantize_input.register_fake
def _(x: Tensor, scale: Tensor, zero_point: int, low: int, high: int) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("bitalloc::dequantize_weight", mutates_args=())
def dequantize_weight(codes: Tensor, scale: Tensor, axis: int) -> Tensor:
    """Integer codes times one scale for each entry of ``axis``, or one for all, in float32."""
    return codes.float() * scale.reshape([-1 if index == axis else 1 for index in range(codes.dim())])


@dequantize_weight.register_fake
def _(codes: Tensor, scale: Tensor, axis: int) -> Tensor:
    return torch.empty(codes.shape, dtype=torch.float32, device=codes.device)


@torch.library.custom_op("bitalloc::dequantize_bias", mutates_args=())
def dequantize_bias(codes: Tensor, scale: Tensor) -> Tensor:
    """32-bit integer codes of shape (channels,) times the scale of their channel, in float32."""
    return codes.float() * scale


@dequantize_bias.register_fake
def _(codes: Tensor, scale: Tensor) -> Tensor:
    return torch.empty(codes.shape, dtype=torch.float32, device=codes.device)


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """The ONNX form of each operation, for ``torch.onnx.export(custom_translation_table=...)``; needs onnx and onnxscript.

    Activations are unsigned bytes, because the integer kernels of ONNX Runtime take those. Fewer than 256 levels are a Clip
    of the bytes, between quantize and dequantize, where it does not hinder the fusion into an integer convolution.
    """
    from onnx import TensorProto, helper
    from onnxscript import opset21 as op

    def byte(value: int) -> Any:
        return op.Constant(value=helper.make_tensor("byte", TensorProto.UINT8, (), [value]))

    def quantize(x: Any, scale: Any, zero_point: int, low: int, high: int) -> Any:
        levels = op.QuantizeLinear(x, scale, byte(zero_point))
        if (low + zero_point, high + zero_point) != (0, 255):
            levels = op.Clip(levels, byte(low + zero_point), byte(high + zero_point))
        return op.DequantizeLinear(levels, scale, byte(zero_point))

    def weight(codes: Any, scale: Any, axis: int) -> Any:
        return op.DequantizeLinear(codes, scale, axis=axis)

    def bias(codes: Any, scale: Any) -> Any:
        return op.DequantizeLinear(codes, scale, axis=0)

    library = torch.ops.bitalloc
    return {
        library.quantize_input.default: quantize,
        library.dequantize_weight.default: weight,
        library.dequantize_bias.default: bias,
    }
