"""From what a person writes (``"1.2MB"``, ``12.2``, ``"w3a4"``) to budgets."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Final

from bitalloc.budget import Budget
from bitalloc.costs.base import Cost
from bitalloc.costs.bitops import BitOps
from bitalloc.costs.weight_bytes import WeightBytes
from bitalloc.errors import BudgetError, PolicyError
from bitalloc.layers import LayerInfo
from bitalloc.policy import FLOAT, Bits
from bitalloc.space import SearchSpace

_COMPRESSION: Final = "compression"
_COSTS: Final[Mapping[str, Cost]] = {"bitops": BitOps(), "weight_bytes": WeightBytes(), _COMPRESSION: WeightBytes()}
_EXAMPLES: Final = {
    "bitops": "23.07e9, '23.07G', '55.3GBitOps' or 'w3a4'",
    "weight_bytes": "1200000, '1.2MB', '1.1MiB', '800kB' or 'w3a4'",
    _COMPRESSION: "12.2 or '12.2x'",
}
_NUMBER: Final = re.compile(r"([+-]?\d+(?:\.\d*)?(?:[eE][+-]?\d+)?)\s*(.*)")
_UNIFORM: Final = re.compile(r"w\d+a\d+", re.IGNORECASE)
_DECIMAL: Final = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_BINARY: Final = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30}
# A unit of bytes ends in a capital B ('Mb' would be megabits); one of BitOps is a decimal prefix, with the word or without.
_BYTE_UNITS: Final = {"": 1} | {f"{prefix}B": factor for prefix, factor in (_DECIMAL | _BINARY).items()}
_BITOPS_UNITS: Final = {f"{prefix}{word}": factor for prefix, factor in _DECIMAL.items() for word in ("", "BitOps", "Bitops", "bitops")}
_UNITS: Final = {"bitops": _BITOPS_UNITS, "weight_bytes": _BYTE_UNITS, _COMPRESSION: {"": 1, "x": 1}}


def resolve_budgets(
    spec: Mapping[str, str | float], layers: Sequence[LayerInfo], space: SearchSpace, pins: Mapping[str, Bits] | None = None
) -> tuple[Budget, ...]:
    """The budgets that ``spec`` writes down, one for each key and in its order.

    Keys and values:

    - ``bitops``: absolute (``23.07e9``, ``"23.07G"``, ``"55.3GBitOps"``) or like a uniform policy (``"w3a4"``).
    - ``weight_bytes``: absolute (``5000``, ``"1.2MB"`` = 1 200 000, ``"1.1MiB"`` = 1.1 x 2^20) or like a uniform policy.
    - ``compression``: how many times smaller than in floating point the weights are (``12.2`` or ``"12.2x"``): a limit of
      4 bytes x all weights / 12.2 on ``weight_bytes``.

    Like a uniform policy means that the free layers are counted at that pair, be it a candidate or not, and the pinned ones
    at their pins, or those of ``pins`` where it is given: so a search may lower layers that the uniform policy keeps at 8 bits.
    All described layers are counted on both sides of every budget.

    Raises:
        BudgetError: a key is unknown, or a value cannot be understood; the message names the key and the value and gives examples.
        SpaceError: ``layers`` and ``space`` are not about the same layers.
    """
    if not spec:
        raise BudgetError(f"no budget is given: set at least one of {', '.join(_COSTS)}, for example bitops = 'w4a4'.")
    unknown = [key for key in spec if key not in _COSTS]
    if unknown:
        raise BudgetError(f"{', '.join(map(repr, unknown))} is no budget: expected one of {', '.join(_COSTS)}.")
    return tuple(
        Budget(key, _limit(key, value, layers, space.pinned if pins is None else pins), _COSTS[key].table(layers, space))
        for key, value in spec.items()
    )


def uniform_bits_of(spec: Mapping[str, str | float]) -> Bits | None:
    """The pair of the first value that is written like a uniform policy (``"w3a4"``), ``None`` if there is none.

    Raises:
        BudgetError: the pair has a width that is not supported.
    """
    pairs = (_pair(key, value) for key, value in spec.items())
    return next((pair for pair in pairs if pair is not None), None)


def _limit(key: str, value: str | int | float, layers: Sequence[LayerInfo], pins: Mapping[str, Bits]) -> float:
    pair = _pair(key, value)
    if pair is not None:
        return _positive(key, value, _COSTS[key].total(layers, {layer.name: pins.get(layer.name, pair) for layer in layers}))
    number = _positive(key, value, _number(key, value))
    if key != _COMPRESSION:
        return number
    if number < 1:
        raise _error(key, value, "is below 1, so the weights would grow")
    floating = Bits(FLOAT, FLOAT)
    return _COSTS[key].total(layers, {layer.name: floating for layer in layers}) / number


def _pair(key: str, value: str | int | float) -> Bits | None:
    if key == _COMPRESSION or not isinstance(value, str) or not _UNIFORM.fullmatch(value.strip()):
        return None
    try:
        return Bits.parse(value)
    except PolicyError as error:
        raise _error(key, value, f"is no pair of bit-widths ({error})") from error


def _number(key: str, value: str | int | float) -> float:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise _error(key, value, "is neither a number nor a text")
    if not isinstance(value, str):
        return float(value)
    match = _NUMBER.fullmatch(value.strip())
    if match is None:
        raise _error(key, value, "does not start with a number")
    factor = _UNITS[key].get(match[2])
    if factor is None:
        raise _error(key, value, f"has the unknown unit {match[2]!r}")
    return float(match[1]) * factor


def _positive(key: str, value: object, number: float) -> float:
    if not math.isfinite(number) or number <= 0:
        raise _error(key, value, "is not positive and finite")
    return number


def _error(key: str, value: object, complaint: str) -> BudgetError:
    examples = _EXAMPLES.get(key, "a number")
    return BudgetError(f"the budget {key} = {value!r} {complaint}: write it like {examples}.")
