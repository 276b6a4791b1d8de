"""The deployed layers: integers in the weights and the input, in the weights only, in the input only."""

from typing import final

import torch
from torch import Tensor

from bitalloc.export import ops
from bitalloc.export.base import DeployedLayer
from bitalloc.export.parts import Grid, Weights, bias_codes, largest_sum, output_scale
from bitalloc.wrap.layers import QuantizedLayer

EXACT = 2**24
"""Integers below this are exact in float32."""


@final
class IntegerLayer(DeployedLayer):
    """Integer weights and integer input: ``y = (conv(x_codes, w_codes) + bias_codes) * s_x * s_w[channel]``.

    The bias is rounded to the grid of the products, ``s_x * s_w[channel]``, as 32-bit integers.

    Args:
        layer: the quantized layer.
        weights: codes, scale and bias, of :func:`bitalloc.export.parts.weights_of`.
        grid: the levels of the input.
    """

    codes: Tensor
    scale: Tensor
    input_scale: Tensor
    output_scale: Tensor
    bias_codes: Tensor | None

    def __init__(self, layer: QuantizedLayer, weights: Weights, grid: Grid) -> None:
        super().__init__(layer)
        self.grid, self.axis = grid, weights.axis
        codes = bias_codes(weights, layer, grid)
        self.register_buffer("codes", weights.codes)
        self.register_buffer("scale", weights.scale)
        self.register_buffer("input_scale", grid.scale)
        self.register_buffer("output_scale", output_scale(weights, layer, grid))
        self.register_buffer("bias_codes", codes)
        bound = largest_sum(weights, layer, grid)
        if codes is not None:
            bound = bound + codes.double().abs()
        self._type = torch.float32 if float(bound.max()) < EXACT else torch.float64

    def _integers(self, x: Tensor, output_size: list[int] | None) -> Tensor:
        levels = (x / self.input_scale).round_().clamp_(self.grid.low, self.grid.high).to(self._type)
        # Rounded, because some convolution algorithms (Winograd) are not exact on integers.
        sums = self._compute(levels, self.codes.to(self._type), None, output_size).round_()
        if self.bias_codes is not None:
            sums = sums + self._along_channels(self.bias_codes.to(self._type))
        return sums.float() * self._along_channels(self.output_scale)

    def _nodes(self, x: Tensor, output_size: list[int] | None) -> Tensor:
        x = ops.quantize_input(x, self.input_scale, self.grid.zero_point, self.grid.low, self.grid.high)
        weight = ops.dequantize_weight(self.codes, self.scale, self.axis)
        bias = None if self.bias_codes is None else ops.dequantize_bias(self.bias_codes, self.output_scale)
        return self._compute(x, weight, bias, output_size)


@final
class IntegerWeightLayer(DeployedLayer):
    """Integer weights and a float input: ``y = conv(x, w_codes * s_w[channel]) + bias``.

    Args:
        layer: the quantized layer.
        weights: codes, scale and bias.
    """

    codes: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, layer: QuantizedLayer, weights: Weights) -> None:
        super().__init__(layer)
        self.axis = weights.axis
        self.register_buffer("codes", weights.codes)
        self.register_buffer("scale", weights.scale)
        self.register_buffer("bias", weights.bias)

    def _integers(self, x: Tensor, output_size: list[int] | None) -> Tensor:
        return self._nodes(x, output_size)

    def _nodes(self, x: Tensor, output_size: list[int] | None) -> Tensor:
        return self._compute(x, ops.dequantize_weight(self.codes, self.scale, self.axis), self.bias, output_size)


@final
class IntegerInputLayer(DeployedLayer):
    """Float weights and an integer input: ``y = conv(x_codes * s_x, w) + bias``.

    It is exported with plain arithmetic, not as quantize and dequantize nodes: behind those, ONNX Runtime quantizes float
    weights to 8 bits on its own, which the policy did not ask for.

    Args:
        layer: the quantized layer.
        grid: the levels of the input.
    """

    weight: Tensor
    bias: Tensor | None
    input_scale: Tensor

    def __init__(self, layer: QuantizedLayer, grid: Grid) -> None:
        super().__init__(layer)
        self.grid = grid
        self.register_buffer("weight", layer.weight.detach().clone())
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach().clone())
        self.register_buffer("input_scale", grid.scale)

    def _integers(self, x: Tensor, output_size: list[int] | None) -> Tensor:
        return self._nodes(x, output_size)

    def _nodes(self, x: Tensor, output_size: list[int] | None) -> Tensor:
        levels = (x / self.input_scale).round().clamp(self.grid.low, self.grid.high)
        return self._compute(levels * self.input_scale, self.weight, self.bias, output_size)
