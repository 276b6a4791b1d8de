"""What a search learned, as plain numbers: the log-probability of every width of every layer, for any budget and another dataset."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self, final

from bitalloc.errors import FileError, SpaceError
from bitalloc.files import AnyPath, finite, read_json, write_json
from bitalloc.layers import LayerInfo
from bitalloc.space import SearchSpace, Table
from bitalloc.supernet.groups import SIDES, Side, candidates_of, tie_groups
from bitalloc.transfer import moved, same_layers

SCHEMA = "bitalloc.log_probabilities"
VERSION = 1
UNIT = "negative_log_probability"

Rows = Mapping[str, Mapping[int, float]]


@final
@dataclass(frozen=True, slots=True)
class LogProbabilities:
    """``log softmax(alpha)`` of every layer and width that was searched, weights and activations apart.

    Attributes:
        weight: layer name to weight width to natural logarithm; a side without a choice has no row.
        act: the same for activation widths.
        weight_shapes: of all layers of the network: which one was searched.
        heads: layers that give the network's output; their shapes depend on the dataset and may differ elsewhere.
        provenance: where the numbers come from; JSON values.
    """

    weight: Rows
    act: Rows
    weight_shapes: Mapping[str, tuple[int, ...]]
    heads: tuple[str, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def scores(self, space: SearchSpace) -> Table:
        """``-(log p_w + log p_a)`` of every choice of ``space``, lower is better: the objective of the exact solve under budgets.

        The sum over layers is minus the logarithm of the probability that the search's distribution gives a policy. Tied layers are one
        choice: each has an equal share of its logarithm, so that their sum counts it once. A side without a choice adds 0. The most
        probable policy may leave a part of the budget unused, see :func:`~bitalloc.supernet.fillings`.

        Raises:
            SpaceError: a layer or width that can be chosen was not searched.
        """
        gaps = [
            f"{name} ({side} at {', '.join(map(str, missing))} bits)"
            for name in space.free
            for side in SIDES
            if (missing := [w for w in _choice(space, side, name) if w not in self._rows(side).get(name, {})])
        ]
        if gaps:
            raise SpaceError(f"the search has no probability for {'; '.join(gaps)}: search again with these candidates, or pin the layers.")
        weight, act = (self._halves(space, side) for side in SIDES)
        rows = {
            name: {bits: weight[name][bits.weight] + act[name][bits.act] for bits in candidates.pairs}
            for name, candidates in space.candidates.items()
        }
        return Table(rows, UNIT)

    def transferred(self, layers: Sequence[LayerInfo], names: Mapping[str, str] | None = None) -> Self:
        """The same numbers for the same architecture on another dataset, by layer name.

        Args:
            layers: of the target network. Its head may have another shape; costs are counted by tables of its own.
            names: layer of the target to layer of the network that was searched, where they differ. With a map only the shapes of
                layers that both have are compared, and :meth:`scores` tells what is missing.

        Raises:
            PolicyError: the networks have different layers or shapes, or the map sends two layers to one; it names them.
        """
        known = same_layers(layers, self.weight_shapes, self.heads, names)
        shapes = {layer.name: layer.weight_shape for layer in layers}
        heads = tuple(target for target, source in known.items() if source in self.heads)
        return replace(self, weight=moved(self.weight, known), act=moved(self.act, known), weight_shapes=shapes, heads=heads)

    def to_json(self) -> dict[str, Any]:
        """A JSON object with schema and version."""
        return {
            "schema": SCHEMA,
            "version": VERSION,
            "weight": _rows_to_json(self.weight),
            "act": _rows_to_json(self.act),
            "weight_shapes": {name: list(shape) for name, shape in self.weight_shapes.items()},
            "heads": list(self.heads),
            "provenance": dict(self.provenance),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any], origin: str = "log-probabilities") -> Self:
        """The inverse of :meth:`to_json`. Raises FileError for a malformed object."""
        try:
            weight, act = (_rows_from_json(value[side], f"{origin}: {side}") for side in SIDES)
            shapes = {name: tuple(int(size) for size in shape) for name, shape in value["weight_shapes"].items()}
            return cls(weight, act, shapes, tuple(value["heads"]), dict(value["provenance"]))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise FileError(f"{origin}: {error!r} is missing or malformed. Search again.") from error

    def save(self, path: AnyPath) -> None:
        """Writes the numbers as JSON, atomically. Raises FileError if that fails."""
        write_json(path, self.to_json())

    @classmethod
    def load(cls, path: AnyPath) -> Self:
        """Reads what :meth:`save` wrote. Raises FileError for anything else."""
        return cls.from_json(read_json(path, schema=SCHEMA, version=VERSION), origin=str(path))

    def _rows(self, side: Side) -> Rows:
        return self.weight if side == "weight" else self.act

    def _halves(self, space: SearchSpace, side: Side) -> dict[str, dict[int, float]]:
        group = tie_groups(space, side)
        size = {first: sum(other == first for other in group.values()) for first in group.values()}
        rows = self._rows(side)
        return {
            name: {
                width: -rows[name][width] / size[group[name]] if _choice(space, side, name) else 0.0
                for width in candidates_of(space, side, name)
            }
            for name in space.candidates
        }


def _choice(space: SearchSpace, side: Side, name: str) -> tuple[int, ...]:
    """The candidates of a side, none where there is nothing to choose."""
    widths = candidates_of(space, side, name)
    return widths if len(widths) > 1 else ()


def _rows_to_json(rows: Rows) -> dict[str, dict[str, float]]:
    return {name: {str(width): value for width, value in row.items()} for name, row in rows.items()}


def _rows_from_json(value: Mapping[str, Any], origin: str) -> dict[str, dict[int, float]]:
    rows = {
        name: {int(width): finite(v, origin=f"{origin} of layer {name} at {width} bits") for width, v in row.items()}
        for name, row in value.items()
    }
    for name, row in rows.items():
        if abs(math.fsum(map(math.exp, row.values())) - 1) > 1e-4:
            raise FileError(f"{origin} of layer {name}: the probabilities do not add up to 1: the file was edited. Search again.")
    return rows
