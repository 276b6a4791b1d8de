"""What a budget counts: the sum of a cost, the largest of several sums, or the sum of a table that the user measured."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, final

from bitalloc.costs.activation_bytes import ActivationBytes, activation_bytes, peak_activation_bytes
from bitalloc.costs.base import Cost, check_same
from bitalloc.costs.bitops import BitOps
from bitalloc.costs.mean_bits import MeanActBits, MeanBits
from bitalloc.costs.model_bytes import ModelBytes
from bitalloc.costs.weight_bytes import WeightBytes
from bitalloc.errors import BudgetError, SpaceError
from bitalloc.layers import Description, LayerInfo, by_name
from bitalloc.policy import FLOAT, Bits
from bitalloc.space import Candidates, SearchSpace, Table


class Measure(ABC):
    """A number for every policy of one model, written as the largest of one or more sums over the layers."""

    @abstractmethod
    def total(self, bits: Mapping[str, Bits]) -> float:
        """The number of a policy."""

    @abstractmethod
    def tables(self, space: SearchSpace, limit: float) -> Iterable[Table]:
        """The sums that keep every policy of ``space`` inside ``limit``, at least one."""

    def floating(self, layers: Sequence[LayerInfo]) -> float:
        """The number of the network in floating point."""
        return self.total(_floating(layers))


@final
class Sum(Measure):
    """A cost summed over the layers."""

    def __init__(self, cost: Cost, layers: Sequence[LayerInfo]) -> None:
        self._cost = cost
        self._layers = layers

    def total(self, bits: Mapping[str, Bits]) -> float:
        """See :class:`Measure`."""
        return self._cost.total(self._layers, bits)

    def tables(self, space: SearchSpace, limit: float) -> Iterable[Table]:
        """See :class:`Measure`."""
        return (self._cost.table(self._layers, space),)


@final
class Activations(Measure):
    """The largest of several sums over activation sites."""

    def __init__(self, costs: Sequence[ActivationBytes], unquantized: Sequence[ActivationBytes], layers: Sequence[LayerInfo]) -> None:
        """Takes two ways to count the same.

        Args:
            costs: of the quantized network.
            unquantized: of the network in floating point, the same where every tensor exists once, whatever the quantizers of its readers.
            layers: all layers.
        """
        self._costs = costs
        self._unquantized = unquantized
        self._layers = layers

    def total(self, bits: Mapping[str, Bits]) -> float:
        """See :class:`Measure`."""
        return max(cost.total(self._layers, bits) for cost in self._costs)

    def floating(self, layers: Sequence[LayerInfo]) -> float:
        """See :class:`Measure`."""
        bits = _floating(layers)
        return max(cost.total(layers, bits) for cost in self._unquantized)

    def tables(self, space: SearchSpace, limit: float) -> Iterable[Table]:
        """See :class:`Measure`; sums that no policy can bring above the limit are left out, and those that another one exceeds."""
        layers = by_name(self._layers)
        check_same(layers, space)
        ordered = sorted(self._costs, key=lambda cost: cost.largest(space), reverse=True)
        kept: list[ActivationBytes] = []
        for cost in ordered:
            if not kept or (cost.largest(space) > limit and not any(other.dominates(cost) for other in kept)):
                kept.append(cost)
        rows = {name: dict.fromkeys(choices.pairs, 0.0) for name, choices in space.candidates.items()}
        return (cost.over(rows, layers) for cost in kept)


@final
class Measured(Measure):
    """The sum of a table that the user hands over."""

    def __init__(self, name: str, table: Table, layers: Sequence[LayerInfo]) -> None:
        self._name = name
        self._table = table
        known = {layer.name for layer in layers}
        unknown = [name for name in table.values if name not in known]
        if unknown:
            raise BudgetError(f"the table of the budget {name} has layers that the model does not have: {', '.join(unknown)}.")

    def total(self, bits: Mapping[str, Bits]) -> float:
        """See :class:`Measure`."""
        for layer, pair in bits.items():
            if pair not in self._table.values.get(layer, {}):
                raise BudgetError(
                    f"the table of the budget {self._name} has no value for layer {layer} at {pair}: "
                    "add it, or write the limit as a plain number."
                )
        return self._table.total(bits)

    def tables(self, space: SearchSpace, limit: float) -> Iterable[Table]:
        """See :class:`Measure`."""
        try:
            self._table.check(space)
        except SpaceError as error:
            raise BudgetError(f"the budget {self._name}: {error} Add what is missing, one row for every pair of widths.") from error
        rows = {name: {bits: self._table.values[name][bits] for bits in choices.pairs} for name, choices in space.candidates.items()}
        return (Table(rows, self._table.unit),)


def measure_of(key: str, model: Description | Sequence[LayerInfo], space: SearchSpace, per_channel: bool) -> Measure:
    """What the budget ``key`` counts. Raises BudgetError if it needs the graph and only layers are given."""
    layers = model.layers if isinstance(model, Description) else model
    if key in _OF_LAYERS:
        return Sum(_OF_LAYERS[key](layers), layers)
    if not isinstance(model, Description):
        raise BudgetError(f"the budget {key} needs the graph of the model: pass the description that describe() returned, not its layers.")
    if key == "model_bytes":
        return Sum(ModelBytes(model, space, per_channel=per_channel), layers)
    if not model.sites:
        raise BudgetError(f"the budget {key} needs the activation sites of the model, and the description has none: describe it again.")
    counted = _OF_SITES[key]
    unquantized = SearchSpace({name: Candidates.pinned(bits) for name, bits in _floating(layers).items()})
    return Activations(counted(model, space), counted(model, unquantized), layers)


def _floating(layers: Sequence[LayerInfo]) -> dict[str, Bits]:
    return {layer.name: Bits(FLOAT, FLOAT) for layer in layers}


_OF_LAYERS: Final[Mapping[str, Callable[[Sequence[LayerInfo]], Cost]]] = {
    "bitops": lambda _: BitOps(),
    "weight_bytes": lambda _: WeightBytes(),
    "compression": lambda _: WeightBytes(),
    "mean_bits": MeanBits,
    "mean_act_bits": MeanActBits,
}
_OF_SITES: Final[Mapping[str, Callable[[Description, SearchSpace], Sequence[ActivationBytes]]]] = {
    "activation_bytes": lambda model, space: (activation_bytes(model, space),),
    "peak_activation_bytes": peak_activation_bytes,
}
