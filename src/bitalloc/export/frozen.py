"""Quantizers without what training needs, for layers whose arithmetic is in the user's own code.

That code cannot be exchanged for integer arithmetic. It goes on multiplying with fake-quantized tensors, which an exported file shows as
quantize and dequantize nodes, with the weights as integers.
"""

from typing import final

from torch import Tensor, nn

from bitalloc.export import ops
from bitalloc.export.parts import Grid, along, grid_of, weight_codes
from bitalloc.policy import FLOAT
from bitalloc.wrap import QuantizedLayer


class _Frozen(nn.Module):
    """What is asked of a quantizer besides its work."""

    observing = False

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits


@final
class FrozenInput(_Frozen):
    """Fake-quantizes an input on a fixed grid.

    Args:
        bits: the width.
        grid: the levels; None at 32 bits.
        nodes: whether an exported file has quantize nodes. Where the weights are not quantized it has plain arithmetic instead: behind
            quantize nodes ONNX Runtime would quantize float weights to 8 bits on its own.
    """

    scale: Tensor | None

    def __init__(self, bits: int, grid: Grid | None, nodes: bool) -> None:
        super().__init__(bits)
        self.grid, self.nodes = grid, nodes
        self.register_buffer("scale", None if grid is None else grid.scale)

    def forward(self, x: Tensor) -> Tensor:
        """``x`` on the grid."""
        if self.grid is None or self.scale is None:
            return x
        if not self.nodes:
            return (x / self.scale).round().clamp(self.grid.low, self.grid.high) * self.scale
        out: Tensor = ops.quantize_input(x, self.scale, self.grid.zero_point, self.grid.low, self.grid.high)
        return out


@final
class FrozenWeight(_Frozen):
    """Gives the parameter from its integers; fake-quantizes tensors that the user's code computes from the parameter.

    Args:
        layer: the quantized layer.
    """

    codes: Tensor
    scale: Tensor
    layer: QuantizedLayer

    def __init__(self, layer: QuantizedLayer) -> None:
        quantizer = layer.weight_quantizer
        super().__init__(quantizer.bits)
        self.channel_axis, self.name = quantizer.channel_axis, quantizer.name
        self.__dict__["layer"] = layer  # not as a child: the layer holds this module
        if self.bits == FLOAT:
            return
        self.levels, weight = quantizer.levels, layer.weight.detach()
        self.axis = 0 if self.channel_axis is None else self.channel_axis
        # One scale a tensor stays one number: repeated along an axis it would have to run along the outputs, for ONNX Runtime's
        # integer matrix products, and which axis that is only the user's code knows.
        scale = quantizer.step.detach().float().reshape(() if self.channel_axis is None else -1).clone()
        self.register_buffer("codes", weight_codes(weight, along(scale, self.axis, weight.dim()), quantizer))
        self.register_buffer("scale", scale)

    def forward(self, weight: Tensor) -> Tensor:
        """The fake-quantized weight."""
        if self.bits == FLOAT:
            return weight
        if weight is self.layer.weight:
            out: Tensor = ops.dequantize_weight(self.codes, self.scale, self.axis)
            return out
        scale = self.scale if self.channel_axis is None else along(self.scale, self.axis, weight.dim())
        return (weight / scale).clamp(*self.levels).round() * scale


def freeze(layer: QuantizedLayer) -> None:
    """Puts fixed quantizers into a layer, in place. Raises QuantizerError if the input is not calibrated."""
    nodes = layer.weight_quantizer.bits != FLOAT
    layer.input_quantizer = FrozenInput(layer.input_quantizer.bits, grid_of(layer), nodes)  # type: ignore[assignment]
    layer.weight_quantizer = FrozenWeight(layer)  # type: ignore[assignment]
