"""What may be chosen (:class:`SearchSpace`), and one float for every choice (:class:`Table`)."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Any

from bitalloc.errors import FileError, SpaceError
from bitalloc.files import AnyPath, finite, read_json, write_json
from bitalloc.policy import Bits

TABLE_SCHEMA = "bitalloc.table"
SPACE_SCHEMA = "bitalloc.space"
VERSION = 1


@dataclass(frozen=True, slots=True)
class Candidates:
    """Candidate widths of one layer, weights and activations apart, each sorted from most to fewest bits.

    Attributes:
        weight: weight widths.
        act: activation widths.
        allowed: the combinations that may be chosen, all by default; a width in none of them is dropped.
    """

    weight: tuple[int, ...]
    act: tuple[int, ...]
    allowed: frozenset[Bits] | None = None

    def __post_init__(self) -> None:
        for side, widths in (("weight", self.weight), ("activation", self.act)):
            if not widths:
                raise SpaceError(f"there is no {side} candidate: give at least one bit-width.")
            if len(set(widths)) != len(widths):
                raise SpaceError(f"the {side} candidates {widths} name a width twice.")
        pairs = [Bits(weight, act) for weight, act in product(self.weight, self.act)]
        if self.allowed is not None:
            kept = frozenset(self.allowed).intersection(pairs)
            if not kept:
                raise SpaceError(
                    f"none of the allowed pairs {listed(self.allowed)} is among the candidates: "
                    f"weights {self.weight}, activations {self.act}."
                )
            object.__setattr__(self, "allowed", None if len(kept) == len(pairs) else kept)
            pairs = list(kept)
        object.__setattr__(self, "weight", tuple(sorted({pair.weight for pair in pairs}, reverse=True)))
        object.__setattr__(self, "act", tuple(sorted({pair.act for pair in pairs}, reverse=True)))

    @property
    def pairs(self) -> tuple[Bits, ...]:
        """Every allowed combination of a weight width with an activation width."""
        return _pairs(self.weight, self.act, self.allowed)

    def only(self, weight: Iterable[int] | None = None, act: Iterable[int] | None = None) -> "Candidates":
        """The candidates with these widths; ``None`` keeps a side. Raises SpaceError if none is left."""
        kept = frozenset(
            pair for pair in self.pairs if (weight is None or pair.weight in set(weight)) and (act is None or pair.act in set(act))
        )
        if not kept:
            raise SpaceError(f"no candidate of {listed(self.pairs)} is left.")
        return Candidates(self.weight, self.act, kept)

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
        act_ties: groups of layers whose input activations must get one width, those of ``shared_inputs`` among them.
        shared_inputs: groups of layers that read one tensor through one quantizer.
        max_widths: at most that many different weight widths, and that many different activation widths, in the whole network, pinned
            layers included; floating point does not count. No limit by default.
    """

    candidates: Mapping[str, Candidates]
    weight_ties: tuple[tuple[str, ...], ...] = ()
    act_ties: tuple[tuple[str, ...], ...] = ()
    shared_inputs: tuple[tuple[str, ...], ...] = ()
    max_widths: int | None = None

    def __post_init__(self) -> None:
        if not self.candidates:
            raise SpaceError("the search space has no layer: the model has no quantizable layer.")
        if self.max_widths is not None and self.max_widths < 1:
            raise SpaceError(f"max_widths is {self.max_widths}, expected at least one width.")
        object.__setattr__(self, "act_ties", tuple(dict.fromkeys((*self.act_ties, *self.shared_inputs))))
        for group in (*self.weight_ties, *self.act_ties):
            unknown = [name for name in group if name not in self.candidates]
            if unknown:
                raise SpaceError(f"a tie names {', '.join(unknown)}, which the search space does not have.")
        for side, ties in (("weight", self.weight_ties), ("act", self.act_ties)):
            for group in ties:
                check_tie(self.candidates, side, group)

    @property
    def pinned(self) -> dict[str, Bits]:
        """The layers with one choice only, and that choice."""
        return {name: c.pairs[0] for name, c in self.candidates.items() if len(c.pairs) == 1}

    @property
    def free(self) -> tuple[str, ...]:
        """Names of the layers that have something to choose."""
        return tuple(name for name, c in self.candidates.items() if len(c.pairs) > 1)

    def uniform(self, bits: Bits) -> dict[str, Bits]:
        """Every layer at ``bits``, which need not be candidates; what has no choice, weights or activations, keeps its width."""
        return {
            name: Bits(
                c.weight[0] if len(c.weight) == 1 else bits.weight,
                c.act[0] if len(c.act) == 1 else bits.act,
            )
            for name, c in self.candidates.items()
        }

    def to_json(self) -> dict[str, Any]:
        """A JSON object with schema and version."""
        return {
            "schema": SPACE_SCHEMA,
            "version": VERSION,
            "candidates": {name: _candidates_to_json(c) for name, c in self.candidates.items()},
            "weight_ties": [list(group) for group in self.weight_ties],
            "act_ties": [list(group) for group in self.act_ties],
            "shared_inputs": [list(group) for group in self.shared_inputs],
            "max_widths": self.max_widths,
        }

    @staticmethod
    def from_json(value: Mapping[str, Any], origin: str = "space") -> "SearchSpace":
        """The inverse of :meth:`to_json`. Raises FileError for a malformed object."""
        try:
            return SearchSpace(
                {name: _candidates_from_json(c) for name, c in value["candidates"].items()},
                tuple(tuple(group) for group in value["weight_ties"]),
                tuple(tuple(group) for group in value["act_ties"]),
                tuple(tuple(group) for group in value["shared_inputs"]),
                value["max_widths"],
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
            if all(map(math.isfinite, row.values())):
                continue
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

    def save(self, path: AnyPath) -> None:
        """Writes the table as JSON, atomically."""
        write_json(path, self.to_json())

    @staticmethod
    def load(path: AnyPath) -> "Table":
        """Reads what :meth:`save` wrote. Raises FileError for anything else."""
        return Table.from_json(read_json(path, schema=TABLE_SCHEMA, version=VERSION), origin=str(path))


@lru_cache(maxsize=1024)
def _pairs(weight: tuple[int, ...], act: tuple[int, ...], allowed: frozenset[Bits] | None) -> tuple[Bits, ...]:
    """The same objects for the same widths, so that tables over one space are compared by identity, which is quick."""
    every = (Bits(*widths) for widths in product(weight, act))
    return tuple(pair for pair in every if allowed is None or pair in allowed)


def check_tie(candidates: Mapping[str, Candidates], side: str, group: Sequence[str]) -> None:
    """Raises SpaceError, naming the layers and their widths, unless the tied layers have a width of this side in common."""
    common = set.intersection(*(set(getattr(candidates[name], side)) for name in group))
    if not common:
        widths = "; ".join(f"{name} {', '.join(map(str, getattr(candidates[name], side)))}" for name in group)
        raise SpaceError(
            f"the layers {', '.join(group)} are tied but have no {side} width in common: {widths}. "
            "Give them common candidates or pins, or choose another coupling."
        )


def listed(pairs: Iterable[Bits]) -> str:
    """The pairs as text, widest first."""
    return ", ".join(str(pair) for pair in sorted(pairs, reverse=True))


def _candidates_to_json(candidates: Candidates) -> dict[str, Any]:
    allowed = {} if candidates.allowed is None else {"allowed": [str(pair) for pair in candidates.pairs]}
    return {"weight": list(candidates.weight), "act": list(candidates.act), **allowed}


def _candidates_from_json(value: Mapping[str, Any]) -> Candidates:
    allowed = frozenset(Bits.parse(pair) for pair in value["allowed"]) if "allowed" in value else None
    return Candidates(tuple(value["weight"]), tuple(value["act"]), allowed)
