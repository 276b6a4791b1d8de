"""Bytes of the packed weights."""

from typing import ClassVar, final

from bitalloc.costs.base import Cost
from bitalloc.layers import LayerInfo
from bitalloc.policy import Bits


@final
class WeightBytes(Cost):
    """ceil(weights x weight bits / 8) bytes a layer: its weights packed without gaps; 4 bytes a weight in floating point.

    Only weights are counted. Biases, normalisation layers and the quantizers' step sizes are not: they stay in floating
    point at every choice, so they change no decision, but a file on disk holds them too.
    """

    unit: ClassVar[str] = "weight_bytes"

    def _value(self, layer: LayerInfo, bits: Bits) -> float:
        return float(-(-layer.weight_numel * bits.weight // 8))
