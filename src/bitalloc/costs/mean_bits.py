"""Mean bit-widths of a network's weights and activations."""

from collections.abc import Sequence
from typing import ClassVar, final

from bitalloc.costs.base import Cost
from bitalloc.errors import SpaceError
from bitalloc.layers import LayerInfo
from bitalloc.policy import Bits


@final
class MeanBits(Cost):
    """Mean width of all weights of the described layers; a layer's share is weights x weight bits / all weights.

    Pinned layers are counted, and layers left in floating point as 32 bits. A tensor that several layers hold counts once.
    """

    unit: ClassVar[str] = "bits"

    def __init__(self, layers: Sequence[LayerInfo]) -> None:
        """Takes all layers of the model. Raises SpaceError if they have no weight."""
        self._all = _positive(sum(layer.weight_numel for layer in layers if not layer.same_weight_as), "weights")

    def _value(self, layer: LayerInfo, bits: Bits) -> float:
        return 0.0 if layer.same_weight_as else layer.weight_numel * bits.weight / self._all


@final
class MeanActBits(Cost):
    """Mean width of what the described layers read; a layer's share is input elements x activation bits / all input elements.

    Pinned layers are counted, and layers left in floating point as 32 bits; layers that read no activation are not.
    """

    unit: ClassVar[str] = "bits"

    def __init__(self, layers: Sequence[LayerInfo]) -> None:
        """Takes all layers of the model. Raises SpaceError if they read no activation."""
        self._all = _positive(sum(layer.input_numel for layer in layers if not layer.weight_only), "activations")

    def _value(self, layer: LayerInfo, bits: Bits) -> float:
        return 0.0 if layer.weight_only else layer.input_numel * bits.act / self._all


def _positive(total: int, what: str) -> int:
    if total <= 0:
        raise SpaceError(f"the layers have no {what}, so these have no mean width. Describe the model on an example input.")
    return total
