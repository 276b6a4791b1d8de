"""The base of all costs."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, final

from bitalloc.errors import SpaceError
from bitalloc.layers import LayerInfo, by_name
from bitalloc.policy import Bits
from bitalloc.space import SearchSpace, Table


class Cost(ABC):
    """What one layer costs at given widths; the cost of a model is the sum over its layers.

    A new cost sets :attr:`unit` and gives :meth:`_value`, which must not fall when a width grows.

    Attributes:
        unit: what the numbers are; it stands in every table and budget made from this cost.
    """

    unit: ClassVar[str]

    @final
    def value(self, layer: LayerInfo, bits: Bits) -> float:
        """The cost of ``layer`` at ``bits``, in :attr:`unit`, for one sample."""
        return self._value(layer, bits)

    @final
    def table(self, layers: Sequence[LayerInfo], space: SearchSpace) -> Table:
        """The cost of every choice of ``space``, pinned layers included.

        Raises:
            SpaceError: ``layers`` and ``space`` are not about the same layers; the message names those that differ.
        """
        known = by_name(layers)
        check_same(known, space)
        rows = {name: {bits: self._value(known[name], bits) for bits in choices.pairs} for name, choices in space.candidates.items()}
        return Table(rows, self.unit)

    @final
    def total(self, layers: Sequence[LayerInfo], bits_by_name: Mapping[str, Bits]) -> float:
        """The sum over ``layers`` at the given widths, which need not be candidates of any space.

        Raises:
            SpaceError: a layer has no widths.
        """
        missing = [layer.name for layer in layers if layer.name not in bits_by_name]
        if missing:
            raise SpaceError(f"there are no bit-widths for {', '.join(missing)}: expected a pair for every layer.")
        return math.fsum(self._value(layer, bits_by_name[layer.name]) for layer in layers)

    @abstractmethod
    def _value(self, layer: LayerInfo, bits: Bits) -> float:
        """The cost of ``layer`` at ``bits``, finite and not negative."""


def check_same(known: Mapping[str, LayerInfo], space: SearchSpace) -> None:
    """Raises SpaceError, naming the layers, unless both are about the same layers."""
    undescribed = [name for name in space.candidates if name not in known]
    if undescribed:
        raise SpaceError(f"the search space has layers that the description lacks: {', '.join(undescribed)}. Describe the model again.")
    uncounted = [name for name in known if name not in space.candidates]
    if uncounted:
        raise SpaceError(f"the search space lacks layers of the model: {', '.join(uncounted)}. Pin them, so that they are counted.")
