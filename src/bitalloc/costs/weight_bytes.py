"""Bytes of the packed weights."""

from typing import ClassVar, final

from bitalloc.costs.base import Cost
from bitalloc.layers import LayerInfo
from bitalloc.policy import Bits


@final
class WeightBytes(Cost):
    """ceil(weights x weight bits / 8) bytes a layer: its weights packed without gaps; 4 bytes a weight in floating point.

    Only weights are counted, as in published compression ratios; :class:`ModelBytes` adds step sizes and biases. A tensor that several
    layers hold, such as a tied embedding, counts once, with the first of them.
    """

    unit: ClassVar[str] = "weight_bytes"

    def _value(self, layer: LayerInfo, bits: Bits) -> float:
        return 0.0 if layer.same_weight_as else float(-(-layer.weight_numel * bits.weight // 8))
