"""BitOps: multiply-accumulates weighted by the product of the operands' widths."""

from collections.abc import Sequence
from typing import ClassVar, final

from bitalloc.costs.base import Cost
from bitalloc.layers import LayerInfo
from bitalloc.policy import FLOAT, Bits
from bitalloc.space import SearchSpace


@final
class BitOps(Cost):
    """MACs x weight bits x activation bits of one sample; a side that is not quantized counts as 32 bits.

    The measure of Tang et al., "Mixed-Precision Neural Network Quantization via Learned Layer-wise Importance", ECCV 2022.
    Publications differ in which layers they count: print :meth:`convention` beside every figure.
    """

    unit: ClassVar[str] = "bitops"

    def _value(self, layer: LayerInfo, bits: Bits) -> float:
        return float(layer.macs * bits.weight * bits.act)

    @staticmethod
    def convention(space: SearchSpace, layers: Sequence[LayerInfo]) -> str:
        """One sentence that says which layers are counted at which widths.

        For example ``BitOps = sum over 54 layers of MACs x weight bits x activation bits; pinned: conv1 at w8a8, linear at
        w8a8; left in floating point: none``.
        """
        pins = space.pinned
        floating = Bits(FLOAT, FLOAT)
        names = [layer.name for layer in layers if layer.name in pins]
        pinned = [f"{name} at {pins[name]}" for name in names if pins[name] != floating]
        left = [name for name in names if pins[name] == floating]
        counted = " (counted at 32 x 32)" if left else ""
        return (
            f"BitOps = sum over {len(layers)} layers of MACs x weight bits x activation bits; "
            f"pinned: {', '.join(pinned) or 'none'}; left in floating point: {', '.join(left) or 'none'}{counted}"
        )
