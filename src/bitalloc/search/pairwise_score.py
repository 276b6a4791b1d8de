"""Second-order scores: what the choices of two layers add to the loss together, beyond what each adds alone."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

from bitalloc.errors import FileError, PolicyError, SpaceError
from bitalloc.files import finite, read_json, write_json
from bitalloc.policy import Bits
from bitalloc.space import SearchSpace

SCHEMA: Final = "bitalloc.pairwise"
VERSION: Final = 1

Terms = Mapping[tuple[Bits, Bits], float]


@final
@dataclass(frozen=True, slots=True)
class PairwiseScore:
    """Terms between the choices of two layers, lower is better; added to a score that is a sum over layers.

    In CLADO (Deng et al., "Mixed-Precision Quantization with Cross-Layer Dependencies", 2023, arXiv 2307.05657) the loss increase
    of a policy is, to second order, the sum over layers of a sensitivity and over pairs of layers of a cross term. The cross term
    of (layer l at p, layer m at q) can be measured with three forward passes: the loss with both quantized, minus that with l
    alone, minus that with m alone, plus that with neither. Then the score table must be the loss increases of the layers alone,
    in the same unit. The terms come from the user; nothing in this library measures them.

    Attributes:
        values: two different layers to the term at every two of their choices, the first layer's first. Layers without
            an entry do not interact. Every two layers stand once, in either order.
        unit: what the terms are; that of the score table.
    """

    values: Mapping[tuple[str, str], Terms]
    unit: str

    def __post_init__(self) -> None:
        for first, second in self.values:
            if first == second:
                raise SpaceError(f"the {self.unit} has a term between {first} and itself: what a layer adds alone belongs to the score.")
            if (second, first) in self.values:
                raise SpaceError(f"the {self.unit} has the layers {first} and {second} twice, in both orders: give every two layers once.")
            for (p, q), value in self.values[first, second].items():
                if not math.isfinite(value):
                    raise SpaceError(f"the {self.unit} of {first} at {p} with {second} at {q} is {value}, expected a finite number.")

    def check(self, space: SearchSpace) -> None:
        """Raises SpaceError, naming layers and widths, unless every two choices of the layers that it names have a term."""
        for (first, second), terms in self.values.items():
            for name in (first, second):
                if name not in space.candidates:
                    raise SpaceError(f"the {self.unit} names the layer {name}, which the search space does not have.")
            for p in space.candidates[first].pairs:
                for q in space.candidates[second].pairs:
                    if (p, q) not in terms:
                        raise SpaceError(f"the {self.unit} has no value for {first} at {p} with {second} at {q}.")

    def total(self, bits: Mapping[str, Bits]) -> float:
        """The sum of the terms at the given widths."""
        return math.fsum(terms[bits[first], bits[second]] for (first, second), terms in self.values.items())

    def to_json(self) -> dict[str, Any]:
        """A JSON object with schema and version."""
        rows = [
            {"layers": list(names), "values": {f"{p} {q}": value for (p, q), value in terms.items()}}
            for names, terms in self.values.items()
        ]
        return {"schema": SCHEMA, "version": VERSION, "unit": self.unit, "terms": rows}

    @staticmethod
    def from_json(value: Mapping[str, Any], origin: str = "pairwise score") -> "PairwiseScore":
        """The inverse of :meth:`to_json`. Raises FileError or SpaceError for a malformed object."""
        try:
            rows: dict[tuple[str, str], Terms] = {}
            for row in value["terms"]:
                first, second = map(str, row["layers"])
                if (first, second) in rows:
                    raise FileError(f"{origin}: the layers {first} and {second} stand there twice.")
                rows[first, second] = dict(_terms(row["values"], f"{origin}: {first} with {second}"))
            return PairwiseScore(rows, str(value["unit"]))
        except (KeyError, TypeError, ValueError, AttributeError, PolicyError) as error:
            raise FileError(f"{origin}: {error!r} is missing or malformed in the pairwise score.") from error

    def save(self, path: Path) -> None:
        """Writes the terms as JSON, atomically."""
        write_json(path, self.to_json())

    @staticmethod
    def load(path: Path) -> "PairwiseScore":
        """Reads what :meth:`save` wrote. Raises FileError or SpaceError for anything else."""
        return PairwiseScore.from_json(read_json(path, schema=SCHEMA, version=VERSION), origin=str(path))


def _terms(values: Mapping[str, Any], origin: str) -> Iterator[tuple[tuple[Bits, Bits], float]]:
    for key, value in values.items():
        first, second = key.split()
        yield (Bits.parse(first), Bits.parse(second)), finite(value, origin=f"{origin} at {key}")
