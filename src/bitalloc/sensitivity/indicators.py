"""Learned step sizes as importance indicators: one number for every layer, side and width.

Tang et al., "Mixed-Precision Neural Network Quantization via Learned Layer-wise Importance", ECCV 2022: a large learned step
at b bits means that the layer wants a wide, sparse grid and suffers at that width.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self, final

from bitalloc.errors import FileError, SpaceError
from bitalloc.files import AnyPath, finite, read_json, write_json
from bitalloc.layers import Description, LayerInfo
from bitalloc.policy import WIDTHS, Bits
from bitalloc.space import Candidates, SearchSpace, Table
from bitalloc.transfer import moved, same_layers

SCHEMA = "bitalloc.indicators"
VERSION = 1
UNIT = "importance"
ERASED = 1e8
"""What the published rule writes over a point that breaks monotony."""

Side = Literal["weight", "act"]
Rows = Mapping[str, Mapping[int, float]]


@final
@dataclass(frozen=True, slots=True)
class Change:
    """An indicator that was replaced because importance must not increase with more bits."""

    layer: str
    side: Side
    width: int
    before: float
    after: float


@final
@dataclass(frozen=True, slots=True)
class Alpha:
    """The factor between the weights' and the activations' importance, and how it was found."""

    value: float
    reason: str


@final
@dataclass(frozen=True, slots=True)
class Indicators:
    """Importance of every layer at every width, weights and activations apart; lower is better.

    Attributes:
        weight: layer name to weight width to importance.
        act: layer name to activation width to importance.
        provenance: where the numbers come from; JSON values.
    """

    weight: Rows
    act: Rows
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for side, rows in (("weight", self.weight), ("activation", self.act)):
            for name, row in rows.items():
                for width, value in row.items():
                    if width not in WIDTHS or not math.isfinite(value):
                        raise SpaceError(f"the {side} importance of layer {name} at {width} bits is {value}: expected a finite number.")

    def isotonic(self) -> tuple[Self, tuple[Change, ...]]:
        """The closest indicators (least squares) that do not increase with more bits, and what was changed for it.

        Pool adjacent violators: neighbours in the wrong order are replaced by their mean until none is left.
        """
        return self._replaced(_pooled)

    def erased(self) -> tuple[Self, tuple[Change, ...]]:
        """The published rule: a point below its next wider neighbour becomes 1e8, so that it is never chosen.

        Kept to reproduce published policies. It erases the narrower point also where the wider one is the outlier, which
        :meth:`isotonic` does not.
        """
        return self._replaced(_erased)

    def automatic_alpha(self) -> Alpha:
        """The factor on the weights' half that gives both halves the same weight in the objective.

            alpha = sum_l (s_a[l, narrowest] - s_a[l, widest]) / sum_l (s_w[l, narrowest] - s_w[l, widest])

        Only layers with two widths or more on a side take part there. Take it from :meth:`isotonic` indicators, whose ranges
        are not negative. Where a half has no positive range there is nothing to balance: alpha is 1, and the reason says so.
        """
        ranges = {side: _total_range(rows) for side, rows in (("weights", self.weight), ("activations", self.act))}
        flat = [side for side, size in ranges.items() if size <= 0]
        if flat:
            return Alpha(1.0, f"1, because the importance of {' and of '.join(flat)} does not fall with more bits")
        alpha = ranges["activations"] / ranges["weights"]
        if not 0 < alpha < math.inf:
            return Alpha(1.0, "1, because the ratio of the two ranges is beyond the floating-point numbers")
        return Alpha(alpha, f"total range of activations {ranges['activations']:.6g} / total range of weights {ranges['weights']:.6g}")

    def table(self, alpha: float, space: SearchSpace) -> Table:
        """The score s_a[l, a] + alpha * s_w[l, w] of every choice of ``space``, unit ``importance``.

        A side that has one candidate only adds 0, and so a pinned layer scores 0: a constant changes no decision, and the
        width of a pin need not have been measured.

        Raises:
            SpaceError: ``alpha`` is not positive, or a layer or width that can be chosen has no indicator.
        """
        if not 0 < alpha < math.inf:
            raise SpaceError(f"alpha is {alpha}, expected a positive number.")
        self._check(space)
        return Table({name: self._row(alpha, name, choices) for name, choices in space.candidates.items()}, UNIT)

    def transferred(self, layers: Sequence[LayerInfo], source: Description, names: Mapping[str, str] | None = None) -> Self:
        """The same numbers for the same architecture on another dataset, by layer name.

        Args:
            layers: of the target network. Its head may have another shape; costs are counted by tables of its own.
            source: of the network that was measured.
            names: layer of the target to layer of the network that was measured, where they differ. With a map only the shapes of
                layers that both have are compared, and :meth:`table` tells what is missing.

        Raises:
            PolicyError: the networks have different layers or shapes, or the map sends two layers to one; it names them.
        """
        known = same_layers(layers, {layer.name: layer.weight_shape for layer in source.layers}, source.last, names)
        return replace(self, weight=moved(self.weight, known), act=moved(self.act, known))

    def to_json(self) -> dict[str, Any]:
        """A JSON object with schema and version."""
        return {
            "schema": SCHEMA,
            "version": VERSION,
            "weight": _rows_to_json(self.weight),
            "act": _rows_to_json(self.act),
            "provenance": dict(self.provenance),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any], origin: str = "indicators") -> Self:
        """The inverse of :meth:`to_json`. Raises FileError for a malformed object."""
        try:
            halves = {side: _rows_from_json(value[side], f"{origin}: {side}") for side in ("weight", "act")}
            return cls(halves["weight"], halves["act"], dict(value["provenance"]))
        except (KeyError, TypeError, ValueError, AttributeError, SpaceError) as error:
            raise FileError(f"{origin}: {error} is missing or malformed in the indicators. Measure them again.") from error

    def save(self, path: AnyPath) -> None:
        """Writes the indicators as JSON, atomically. Raises FileError if that fails."""
        write_json(path, self.to_json())

    @classmethod
    def load(cls, path: AnyPath) -> Self:
        """Reads what :meth:`save` wrote. Raises FileError for anything else."""
        return cls.from_json(read_json(path, schema=SCHEMA, version=VERSION), origin=str(path))

    def _sides(self) -> tuple[tuple[Side, Rows], tuple[Side, Rows]]:
        return ("weight", self.weight), ("act", self.act)

    def _replaced(self, rule: Callable[[Sequence[float]], list[float]]) -> tuple[Self, tuple[Change, ...]]:
        halves: dict[Side, dict[str, dict[int, float]]] = {"weight": {}, "act": {}}
        changes: list[Change] = []
        for side, rows in self._sides():
            for name, row in rows.items():
                widths = sorted(row, reverse=True)
                after = dict(zip(widths, rule([row[width] for width in widths]), strict=True))
                halves[side][name] = {width: after[width] for width in row}
                changes += [Change(name, side, w, row[w], after[w]) for w in widths if after[w] != row[w]]
        return type(self)(halves["weight"], halves["act"], self.provenance), tuple(changes)

    def _row(self, alpha: float, name: str, choices: Candidates) -> dict[Bits, float]:
        weight = self.weight[name] if len(choices.weight) > 1 else dict.fromkeys(choices.weight, 0.0)
        act = self.act[name] if len(choices.act) > 1 else dict.fromkeys(choices.act, 0.0)
        return {bits: act[bits.act] + alpha * weight[bits.weight] for bits in choices.pairs}

    def _check(self, space: SearchSpace) -> None:
        gaps: list[str] = []
        for name, choices in space.candidates.items():
            for side, widths, rows in (("weight", choices.weight, self.weight), ("activation", choices.act, self.act)):
                missing = [str(width) for width in widths if width not in rows.get(name, {})]
                if len(widths) > 1 and missing:
                    gaps.append(f"{name} ({side} at {', '.join(missing)} bits)")
        if gaps:
            raise SpaceError(f"there is no importance for {'; '.join(gaps)}: measure again with these candidates, or pin the layers.")


def _pooled(values: Sequence[float]) -> list[float]:
    """The closest non-decreasing sequence; ``values`` run from the widest to the narrowest."""
    blocks: list[tuple[float, int]] = []
    for value in values:
        mean, size = value, 1
        while blocks and blocks[-1][0] > mean:
            before, count = blocks.pop()
            mean, size = (before * count + mean * size) / (count + size), count + size
        blocks.append((mean, size))
    return [mean for mean, size in blocks for _ in range(size)]


def _erased(values: Sequence[float]) -> list[float]:
    """``values`` run from the widest to the narrowest; each is compared with the wider neighbour as it was measured."""
    return [ERASED if i and value < values[i - 1] else value for i, value in enumerate(values)]


def _total_range(rows: Rows) -> float:
    return math.fsum(row[min(row)] - row[max(row)] for row in rows.values() if len(row) > 1)


def _rows_to_json(rows: Rows) -> dict[str, dict[str, float]]:
    return {name: {str(width): value for width, value in row.items()} for name, row in rows.items()}


def _rows_from_json(value: Mapping[str, Any], origin: str) -> dict[str, dict[int, float]]:
    return {
        name: {int(width): finite(v, origin=f"{origin} importance of layer {name} at {width} bits") for width, v in row.items()}
        for name, row in value.items()
    }
