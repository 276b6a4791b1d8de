"""The numbers that a deployed layer is made of: integer codes, scales, and the levels of its input."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from bitalloc.policy import FLOAT
from bitalloc.quantizers import WeightLSQ
from bitalloc.wrap.fold import is_grouped_transposed
from bitalloc.wrap.layers import QuantizedLayer, channel_axis

LARGEST_BIAS = 2**30
"""Largest bias code; as much again is left to the sum of products, which 33000 inputs a channel cannot fill at 8 bits."""
TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True, slots=True)
class Grid:
    """The levels ``low .. high`` of a quantized input, and their step.

    Attributes:
        scale: the step, a float32 scalar.
        low: smallest level.
        high: largest level.
    """

    scale: Tensor
    low: int
    high: int

    @property
    def zero_point(self) -> int:
        """Where level 0 lies in an unsigned byte whose value 0 is the smallest level: at 8 bits 0 if unsigned, 128 if signed."""
        return -self.low


@dataclass(frozen=True, slots=True)
class Weights:
    """Integer weights of one layer.

    Attributes:
        codes: int8, the shape of the weight.
        scale: float32, positive, one for each entry of ``axis``: ``weight = codes * scale``.
        bias: float32 of shape (output channels,), or None.
        axis: the axis of ``codes`` that ``scale`` runs along.
    """

    codes: Tensor
    scale: Tensor
    bias: Tensor | None
    axis: int


def grid_of(layer: QuantizedLayer) -> Grid | None:
    """The levels of the layer's input; None where it is not quantized. Raises QuantizerError if it is not calibrated."""
    quantizer = layer.input_quantizer
    if quantizer.bits == FLOAT:
        return None
    low, high = quantizer.levels
    return Grid(quantizer.step.detach().float().reshape(()).clone(), low, high)


def weights_of(layer: QuantizedLayer) -> Weights | None:
    """The layer's weights as the integers that its weight quantizer maps them to; None where it passes them through."""
    quantizer = layer.weight_quantizer
    if quantizer.bits == FLOAT:
        return None
    axis = channel_axis(layer)
    scale = quantizer.step.detach().float().expand(layer.weight.shape[axis]).clone()
    codes = weight_codes(layer.weight, along(scale, axis, layer.weight.dim()), quantizer)
    bias = None if layer.bias is None else layer.bias.detach().float().clone()
    return _usable(Weights(codes, scale, bias, axis), grid_of(layer))


def weight_codes(weight: Tensor, scale: Tensor, quantizer: WeightLSQ) -> Tensor:
    """The integers that a quantizer maps a weight to, int8; ``scale`` broadcasts against the weight."""
    return (weight.detach() / scale).clamp(*quantizer.levels).round().to(torch.int8)


def along(values: Tensor, axis: int, dims: int) -> Tensor:
    """A vector as a tensor of so many dimensions, that runs along one of them."""
    return values.reshape([-1 if index == axis else 1 for index in range(dims)])


def scaled(weights: Weights, factor: Tensor, shift: Tensor, grid: Grid | None) -> Weights | None:
    """The weights of ``factor * layer(x) + shift``: the sign goes to the codes, the magnitude to the scale.

    Args:
        weights: of a layer whose ``scale`` runs over the output channels.
        factor: float64 of shape (output channels,), any sign.
        shift: float64 of shape (output channels,).
        grid: of the layer's input, None where that is not quantized.

    Returns:
        None if a negative factor meets the code -128, whose opposite is no 8-bit integer.
    """
    sign = torch.sign(factor).to(torch.int16)
    codes = weights.codes.to(torch.int16) * along(sign, weights.axis, weights.codes.dim())
    if int(codes.max()) > torch.iinfo(torch.int8).max:
        return None
    bias = shift if weights.bias is None else weights.bias.double() * factor + shift
    scale = weights.scale.double() * factor.abs()
    return _usable(replace(weights, codes=codes.to(torch.int8), scale=scale, bias=bias.float()), grid)


def _usable(weights: Weights, grid: Grid | None) -> Weights:
    """The same weights, with scales that can hold the bias on the grid of the products.

    In a channel with a vanishing scale (batch norms with a factor near 0 give such) the bias would need more than 32 bits. There the
    scale is raised just enough and the codes are rounded to it: the error is below ``2^-31 |bias|`` a product. A channel
    whose codes are all 0 takes its bias as the step.
    """
    size = weights.scale.numel()
    step = 1.0 if grid is None else grid.scale.double()
    reach = weights.scale.new_zeros(size).double() if weights.bias is None else weights.bias.double().abs().reshape(-1, size).amax(0)
    least = torch.zeros_like(reach) if grid is None else reach / step / LARGEST_BIAS
    scale = torch.maximum(weights.scale.double(), least.clamp_min(TINY))
    ratio = along(weights.scale.double() / scale, weights.axis, weights.codes.dim())
    codes = (weights.codes * ratio).round().to(torch.int8)
    empty = codes.transpose(0, weights.axis).flatten(1).eq(0).all(1)
    own = torch.where(reach / step < TINY, 1.0, reach / step)
    return replace(weights, codes=codes, scale=torch.where(empty, own, scale).float())


def output_scale(weights: Weights, layer: QuantizedLayer, grid: Grid) -> Tensor:
    """The step of the products of weight and input codes in each output channel, float32."""
    return grid.scale * _per_output(weights.scale, layer)


def largest_sum(weights: Weights, layer: QuantizedLayer, grid: Grid) -> Tensor:
    """The largest magnitude that the sum of products can have in each output channel, float64, without the bias."""
    sums = weights.codes.transpose(0, weights.axis).flatten(1).double().abs().sum(1)
    return _per_output(sums, layer) * max(-grid.low, grid.high)


def bias_codes(weights: Weights, layer: QuantizedLayer, grid: Grid) -> Tensor | None:
    """The bias on the grid of the products, int32; None without a bias."""
    if weights.bias is None:
        return None
    return torch.round(weights.bias.double() / output_scale(weights, layer, grid)).to(torch.int32)


def _per_output(values: Tensor, layer: QuantizedLayer) -> Tensor:
    """``values`` along the channel axis of the weight, repeated to one for each output channel (grouped transposed layers)."""
    return values.repeat(_groups(layer)) if is_grouped_transposed(layer) else values


def _groups(layer: nn.Module) -> int:
    groups = layer.groups
    assert isinstance(groups, int)
    return groups
