"""What may be chosen (:class:`SearchSpace`), and one float for every choice (:class:`Table`)."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import product
from pathlib import Path
from typing import Any

from bitalloc.errors import FileError, SpaceError
from bitalloc.files import finite, read_json, write_json
from bitalloc.layers import Description, LayerInfo
from bitalloc.policy import FLOAT, Bits

TABLE_SCHEMA = "bitalloc.table"
SPACE_SCHEMA = "bitalloc.space"
VERSION = 1


@dataclass(frozen=True, slots=True)
class Candidates:
    """Candidate widths of one layer, weights and activations apart, each sorted from most to fewest bits."""

    weight: tuple[int, ...]
    act: tuple[int, ...]

    def __post_init__(self) -> None:
        for side, widths in (("weight", self.weight), ("activation", self.act)):
            if not widths:
                raise SpaceError(f"there is no {side} candidate: give at least one bit-width.")
            if len(set(widths)) != len(widths):
                raise SpaceError(f"the {side} candidates {widths} name a width twice.")
        object.__setattr__(self, "weight", tuple(sorted(self.weight, reverse=True)))
        object.__setattr__(self, "act", tuple(sorted(self.act, reverse=True)))
        _ = self.pairs  # validates every width

    @property
    def pairs(self) -> tuple[Bits, ...]:
        """Every combination of a weight width with an activation width."""
        return tuple(Bits(weight, act) for weight, act in product(self.weight, self.act))

    @staticmethod
    def pinned(bits: Bits) -> "Candidates":
        """The only choice is ``bits``."""
        return Candidates((bits.weight,), (bits.act,))


@dataclass(frozen=True, slots=True)
class SearchSpace:
    """The choices of every layer.

    A pinned layer is a row with one candidate, so that the same code counts it. A layer that is left in floating point is
    pinned at ``Bits(32, 32)``.

    Attributes:
        candidates: layer name to its candidates, in the order of the model's layers.
        weight_ties: groups of layers whose weights must get one width.
        act_ties: groups of layers whose input activations must get one width.
    """

    candidates: Mapping[str, Candidates]
    weight_ties: tuple[tuple[str, ...], ...] = ()
    act_ties: tuple[tuple[str, ...], ...] = ()

    def __post_init__(self) -> None:
        if not self.candidates:
            raise SpaceError("the search space has no layer: the model has no quantizable layer.")
        for group in (*self.weight_ties, *self.act_ties):
            unknown = [name for name in group if name not in self.candidates]
            if unknown:
                raise SpaceError(f"a tie names {', '.join(unknown)}, which the search space does not have.")
        for side, ties in (("weight", self.weight_ties), ("act", self.act_ties)):
            for group in ties:
                _check_tie(self.candidates, side, group)

    @property
    def pinned(self) -> dict[str, Bits]:
        """The layers with one choice only, and that choice."""
        return {name: c.pairs[0] for name, c in self.candidates.items() if len(c.pairs) == 1}

    @property
    def free(self) -> tuple[str, ...]:
        """Names of the layers that have something to choose."""
        return tuple(name for name, c in self.candidates.items() if len(c.pairs) > 1)

    def to_json(self) -> dict[str, Any]:
        """A JSON object with schema and version."""
        return {
            "schema": SPACE_SCHEMA,
            "version": VERSION,
            "candidates": {name: {"weight": list(c.weight), "act": list(c.act)} for name, c in self.candidates.items()},
            "weight_ties": [list(group) for group in self.weight_ties],
            "act_ties": [list(group) for group in self.act_ties],
        }

    @staticmethod
    def from_json(value: Mapping[str, Any], origin: str = "space") -> "SearchSpace":
        """The inverse of :meth:`to_json`. Raises FileError for a malformed object."""
        try:
            return SearchSpace(
                {name: Candidates(tuple(c["weight"]), tuple(c["act"])) for name, c in value["candidates"].items()},
                tuple(tuple(group) for group in value["weight_ties"]),
                tuple(tuple(group) for group in value["act_ties"]),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise FileError(f"{origin}: {error!r} is missing or malformed in the search space.") from error


@dataclass(frozen=True, slots=True)
class Table:
    """One finite float for every (layer, candidate); lower is better.

    Attributes:
        values: layer name to widths to value.
        unit: what the values are, for example ``bitops``, ``weight_bytes`` or ``importance``.
    """

    values: Mapping[str, Mapping[Bits, float]]
    unit: str

    def __post_init__(self) -> None:
        for name, row in self.values.items():
            for bits, value in row.items():
                if not math.isfinite(value):
                    raise SpaceError(f"the {self.unit} of layer {name} at {bits} is {value}, expected a finite number.")

    def check(self, space: SearchSpace) -> None:
        """Raises SpaceError, naming the layer and the widths, unless every choice of ``space`` has a value."""
        for name, candidates in space.candidates.items():
            row = self.values.get(name)
            if row is None:
                raise SpaceError(f"the {self.unit} table has no layer {name}: it belongs to another model or search space.")
            missing = [str(bits) for bits in candidates.pairs if bits not in row]
            if missing:
                raise SpaceError(f"the {self.unit} table has no value for layer {name} at {', '.join(missing)}.")

    def total(self, bits: Mapping[str, Bits]) -> float:
        """The sum over layers at the given widths."""
        return math.fsum(self.values[name][choice] for name, choice in bits.items())

    def to_json(self) -> dict[str, Any]:
        """A JSON object with schema and version."""
        rows = {name: {str(bits): value for bits, value in row.items()} for name, row in self.values.items()}
        return {"schema": TABLE_SCHEMA, "version": VERSION, "unit": self.unit, "values": rows}

    @staticmethod
    def from_json(value: Mapping[str, Any], origin: str = "table") -> "Table":
        """The inverse of :meth:`to_json`. Raises FileError for a malformed object."""
        try:
            rows = {
                name: {Bits.parse(bits): finite(v, origin=f"{origin}: layer {name} at {bits}") for bits, v in row.items()}
                for name, row in value["values"].items()
            }
            return Table(rows, str(value["unit"]))
        except (KeyError, TypeError, AttributeError) as error:
            raise FileError(f"{origin}: {error!r} is missing or malformed in the table.") from error

    def save(self, path: Path) -> None:
        """Writes the table as JSON, atomically."""
        write_json(path, self.to_json())

    @staticmethod
    def load(path: Path) -> "Table":
        """Reads what :meth:`save` wrote. Raises FileError for anything else."""
        return Table.from_json(read_json(path, schema=TABLE_SCHEMA, version=VERSION), origin=str(path))


def search_space(
    layers: Sequence[LayerInfo],
    weight: Iterable[int],
    act: Iterable[int] | None = None,
    *,
    pins: Mapping[str, Bits | str] | None = None,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    overrides: Mapping[str, Candidates] | None = None,
) -> SearchSpace:
    """The search space of a model.

    Args:
        layers: the model's layers, from ``describe``.
        weight: candidate weight widths, for example ``(8, 4, 2)``; they need not be consecutive.
        act: candidate activation widths; the weight candidates when left out.
        pins: layer name or pattern (``fnmatch``: ``layer1.*``) to the widths that these layers keep, ``Bits(4, 8)`` or ``"w4a8"``.
            Later patterns win.
        include: patterns of the layers to quantize; the others stay in floating point, pinned at ``Bits(32, 32)``.
        exclude: patterns of layers that stay in floating point although included or pinned.
        overrides: pattern to other candidates for these layers.

    Raises:
        SpaceError: no layer is left, or a pattern matches no layer.
    """
    names = [layer.name for layer in layers]
    weight = tuple(weight)
    default = Candidates(weight, weight if act is None else tuple(act))
    included = {name for pattern in include for name in matching(pattern, names)}
    excluded = {name for pattern in exclude for name in matching(pattern, names)}
    chosen = {name: default if name in included - excluded else Candidates.pinned(Bits(FLOAT, FLOAT)) for name in names}
    quantized = [name for name in names if name in included - excluded]
    if not quantized:
        raise SpaceError("no layer is left to quantize: the model has none, or include and exclude leave none.")
    for pattern, candidates in (overrides or {}).items():
        chosen.update(dict.fromkeys(matching(pattern, names), candidates))
    for pattern, bits in (pins or {}).items():
        pin = Candidates.pinned(Bits.parse(bits) if isinstance(bits, str) else bits)
        chosen.update(dict.fromkeys(matching(pattern, names), pin))
    chosen.update(dict.fromkeys(excluded, Candidates.pinned(Bits(FLOAT, FLOAT))))
    return SearchSpace(chosen)


def first_last_pins(description: Description, bits: Bits = Bits(8, 8), *, first_act: int | None = None) -> dict[str, Bits]:
    """Pins for the layers that read the network's input and those that give its output.

    Args:
        description: of the model.
        bits: widths of these layers; 8 bits, as the published BitOps figures count them.
        first_act: width of the network's input, where it differs; 32 leaves it in floating point.
    """
    pins = dict.fromkeys(description.last, bits)
    return pins | dict.fromkeys(description.first, bits if first_act is None else Bits(bits.weight, first_act))


def matching(pattern: str, names: Sequence[str]) -> list[str]:
    """The names that ``pattern`` matches. Raises SpaceError if there is none, with the closest names."""
    found = [name for name in names if fnmatchcase(name, pattern)]
    if not found:
        shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
        raise SpaceError(f"the pattern {pattern!r} matches no layer. The layers are: {shown}")
    return found


def _check_tie(candidates: Mapping[str, Candidates], side: str, group: tuple[str, ...]) -> None:
    common = set.intersection(*(set(getattr(candidates[name], side)) for name in group))
    if not common:
        raise SpaceError(f"the layers {', '.join(group)} are tied but have no {side} width in common.")
