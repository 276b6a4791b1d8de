"""Amounts of a budget as a person reads them."""

from typing import Final

_WORDS: Final = {"bitops": "BitOps", "bytes": "B"}
_PREFIXES: Final = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def amount(value: float, unit: str) -> str:
    """All digits, so that the number can be pasted back as a limit, and large BitOps and bytes with a prefix besides.

    For example ``1200000 weight_bytes (1.2 MB)`` or ``70 bitops``.
    """
    return f"{digits(value)} {unit}{shortened(value, unit)}"


def digits(value: float) -> str:
    """All digits of the number, without a decimal point where it is whole."""
    return str(int(value)) if float(value).is_integer() else repr(float(value))


def shortened(value: float, unit: str) -> str:
    """`` (1.2 MB)`` for 1 200 000 bytes; nothing for small numbers and other units. Prefixes are decimal."""
    word = next((word for ending, word in _WORDS.items() if unit.endswith(ending)), None)
    for factor, prefix in _PREFIXES:
        if word is not None and abs(value) >= factor:
            return f" ({value / factor:.4g} {prefix}{word})"
    return ""
