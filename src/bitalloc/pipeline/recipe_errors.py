"""What pydantic says about a recipe, in words for its author."""

import textwrap
from collections.abc import Sequence
from difflib import get_close_matches

from pydantic import ValidationError


def sentence(error: ValidationError, keys: Sequence[str]) -> str:
    """All complaints about a recipe in one sentence, each with its key; ``keys`` are the known ones, for a guess at what was meant."""
    complaints: dict[str, list[str]] = {}
    values: dict[str, object] = {}
    for entry in error.errors(include_url=False):
        # Where one of several types is allowed, pydantic adds the type to the key: "first_last.literal['']".
        parts = [str(part) for part in entry["loc"] if "[" not in str(part)]
        key = ".".join(parts)
        complaints.setdefault(key, []).append(_complaint(entry["type"], parts[-1], entry["msg"], keys))
        if entry["type"] not in ("missing", "extra_forbidden", "too_short"):
            values[key] = f", but it is {textwrap.shorten(repr(entry['input']), 60, placeholder='...')}"
    # A list with a bad entry is called too short as well.
    causes = [key for key in complaints if not any(other.startswith(f"{key}.") for other in complaints)]
    return "; ".join(f"key '{key}': {' or '.join(dict.fromkeys(complaints[key]))}{values.get(key, '')}" for key in causes) + "."


def _complaint(kind: str, key: str, message: str, keys: Sequence[str]) -> str:
    match kind:
        case "missing":
            return "is missing"
        case "extra_forbidden":
            close = get_close_matches(key, keys, n=1)
            return f"is not a known key (did you mean '{close[0]}'?)" if close else "is not a known key; check its spelling"
        case "too_short":
            return "is empty, expected at least one entry"
        case "tuple_type":
            return f"expected a list (in TOML [[{key}]] if its entries are sections)"
    text = message.removeprefix("Value error, ").rstrip(".")
    return f"{text[0].lower()}{text[1:]}"
