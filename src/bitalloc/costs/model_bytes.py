"""Bytes that a quantized model needs on disk or in flash: packed weights, step sizes and biases."""

from typing import ClassVar, Final, final

from bitalloc.costs.base import Cost
from bitalloc.costs.weight_bytes import WeightBytes
from bitalloc.layers import Description, LayerInfo
from bitalloc.policy import FLOAT, Bits
from bitalloc.space import SearchSpace

_NUMBER: Final = 4
"""Bytes of a step size and of a bias: float32, and int32 where a runtime adds biases in the accumulator."""


@final
class ModelBytes(Cost):
    """:class:`WeightBytes`, and 4 bytes for every step size and every bias.

    A step size is counted for every quantized weight tensor (or each of its output channels) and for every input quantizer; layers
    that share one count it once, with the first of them. A tensor in floating point has none, so 8 bits can take 4 bytes more than 32
    on the smallest tensors. Biases are those of the layers, and those that folded batch norms leave in layers without. Other normalisation
    layers, and parameters that :attr:`Description.not_counted` lists, are not counted: they are the same at every choice.
    """

    unit: ClassVar[str] = "model_bytes"

    def __init__(self, description: Description, space: SearchSpace, *, per_channel: bool = False) -> None:
        """Takes what step sizes and biases depend on.

        Args:
            description: of the model; its batch norms tell which layers get a bias.
            space: says which layers share an input quantizer.
            per_channel: whether weights have one step size an output channel; one a tensor by default.
        """
        self._normalised = frozenset(description.producers.values())
        self._followers = frozenset(name for group in space.shared_inputs for name in group[1:])
        self._per_channel = per_channel

    def _value(self, layer: LayerInfo, bits: Bits) -> float:
        channels = layer.weight_shape[_channel_axis(layer)]
        biases = layer.bias_numel or (channels * _groups(layer) if layer.name in self._normalised else 0)
        weight_steps = channels if self._per_channel else 1
        if bits.weight == FLOAT or layer.same_weight_as:
            weight_steps = 0
        act_steps = int(bits.act != FLOAT and layer.name not in self._followers)
        return WeightBytes().value(layer, bits) + _NUMBER * (biases + weight_steps + act_steps)


def _channel_axis(layer: LayerInfo) -> int:
    if layer.kind.startswith("conv_transpose"):
        return 1
    return -1 if layer.kind == "matmul" else 0


def _groups(layer: LayerInfo) -> int:
    """A transposed convolution's weight counts the output channels of one group."""
    return layer.groups if layer.kind.startswith("conv_transpose") else 1
