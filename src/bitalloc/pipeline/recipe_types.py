"""The types of a recipe's values, and the base of its sections."""

import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict

from bitalloc.errors import BitallocError
from bitalloc.policy import WIDTHS, Bits


def _pair(text: str) -> str:
    try:
        return str(Bits.parse(text))
    except BitallocError as error:
        raise ValueError(str(error)) from error


def _width(width: int) -> int:
    if width not in WIDTHS:
        raise ValueError(f"{width} bits are not supported, expected one of {', '.join(map(str, WIDTHS))}")
    return width


def _distinct(widths: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(widths)) != len(widths):
        raise ValueError("a width is there twice")
    return widths


def matching(pattern: str, expected: str) -> AfterValidator:
    """A text that matches a pattern; ``expected`` says so in words."""

    def check(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(f"expected {expected}")
        return text

    return AfterValidator(check)


EntryPoint = Annotated[str, matching(r"[\w.]+:\w+", "package.module:function")]
"""``package.module:function``."""

BitsText = Annotated[str, AfterValidator(_pair)]
"""A pair of widths, written like ``w4a8``."""

Width = Annotated[int, AfterValidator(_width)]
Widths = Annotated[tuple[Width, ...], AfterValidator(_distinct)]


class Section(BaseModel):
    """Frozen; an unknown key, NaN and infinity are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
