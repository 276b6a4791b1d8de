"""How a person writes a limit: ``23.07e9``, ``"1.2MB"``, ``"w3a4"``, ``"0.25x float"``."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from bitalloc.errors import BudgetError, PolicyError
from bitalloc.policy import Bits

_DIGITS: Final = r"[+-]?\d+(?:\.\d*)?(?:[eE][+-]?\d+)?"
_NUMBER: Final = re.compile(rf"({_DIGITS})\s*(.*)")
_RELATIVE: Final = re.compile(rf"(?:({_DIGITS})\s*x\s*)?(float|w\d+a\d+)", re.IGNORECASE)
_DECIMAL: Final = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_BINARY: Final = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30}
# A unit of bytes ends in a capital B ('Mb' would be megabits); one of BitOps is a decimal prefix, with the word or without.
_BYTES: Final = {"": 1} | {f"{prefix}B": factor for prefix, factor in (_DECIMAL | _BINARY).items()}
_BITOPS: Final = {f"{prefix}{word}": factor for prefix, factor in _DECIMAL.items() for word in ("", "BitOps", "Bitops", "bitops")}


@dataclass(frozen=True, slots=True)
class Relation:
    """A limit that is ``factor`` times what the network uses at uniform ``bits``, or in floating point where they are ``None``."""

    factor: float
    bits: Bits | None


@dataclass(frozen=True, slots=True)
class Notation:
    """How the limits of one budget are written.

    Attributes:
        key: the budget's name.
        units: unit to factor.
        examples: for messages.
        relative: whether a limit may be relative to floating point or a uniform policy.
    """

    key: str
    units: Mapping[str, float]
    examples: str
    relative: bool = True

    def relation(self, value: object) -> Relation | None:
        """What the limit is relative to; ``None`` for one that is absolute. Raises BudgetError for widths that are not supported."""
        match = _RELATIVE.fullmatch(value.strip()) if isinstance(value, str) and self.relative else None
        if match is None:
            return None
        factor = self.positive(value, float(match[1] or 1))
        if match[2].lower() == "float":
            return Relation(factor, None)
        try:
            return Relation(factor, Bits.parse(match[2]))
        except PolicyError as error:
            raise self.error(value, f"is no pair of bit-widths ({error})") from error

    def number(self, value: object) -> float:
        """An absolute limit in the unit without a prefix. Raises BudgetError unless it is positive and finite."""
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise self.error(value, "is neither a number nor a text")
        if not isinstance(value, str):
            return self.positive(value, float(value))
        match = _NUMBER.fullmatch(value.strip())
        if match is None:
            raise self.error(value, "does not start with a number")
        factor = self.units.get(match[2])
        if factor is None:
            raise self.error(value, f"has the unknown unit {match[2]!r}")
        return self.positive(value, float(match[1]) * factor)

    def positive(self, value: object, number: float) -> float:
        """``number``, or a BudgetError about ``value``."""
        if not math.isfinite(number) or number <= 0:
            raise self.error(value, "is not positive and finite")
        return number

    def error(self, value: object, complaint: str) -> BudgetError:
        """What is wrong with a value, with examples of what is right."""
        return BudgetError(f"the budget {self.key} = {value!r} {complaint}: write it like {self.examples}.")


COMPRESSION: Final = "compression"
_OF_BYTES: Final = "1200000, '1.2MB', '1.1MiB', '800kB', 'w3a4', '0.9x w4a4' or '0.25x float'"
_OF_BITS: Final = "2.8, 'w3a4', '0.9x w4a4' or '0.1x float'"
_BITS: Final = {"": 1, "bits": 1}
NOTATIONS: Final = {
    notation.key: notation
    for notation in (
        Notation("bitops", _BITOPS, "23.07e9, '23.07G', '55.3GBitOps', 'w3a4', '0.9x w4a4' or '0.02x float'"),
        Notation("weight_bytes", _BYTES, _OF_BYTES),
        Notation(COMPRESSION, {"": 1, "x": 1}, "12.2 or '12.2x'", relative=False),
        Notation("model_bytes", _BYTES, _OF_BYTES),
        Notation("activation_bytes", _BYTES, _OF_BYTES),
        Notation("peak_activation_bytes", _BYTES, _OF_BYTES),
        Notation("mean_bits", _BITS, _OF_BITS),
        Notation("mean_act_bits", _BITS, _OF_BITS),
    )
}
"""Every budget that is counted without a table of the user's."""


def of_table(key: str, unit: str) -> Notation:
    """How limits on a table of the user's are written: its unit is known, but no other, nor any prefix."""
    return Notation(key, {"": 1, unit: 1}, f"3.5, '3.5 {unit}', 'w8a8', '0.9x w8a8' or '0.25x float', as its table is in {unit}")
