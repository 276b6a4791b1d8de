"""What a sweep varies: keys of a recipe, each with several values, and the recipe of every combination."""

import copy
import hashlib
import json
import re
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from bitalloc.errors import ConfigError
from bitalloc.pipeline.recipe import Recipe, load_recipe

Axes = Mapping[str, Sequence[Any]]
"""Dotted keys of a recipe to the values that each takes."""

_LONGEST = 100


@dataclass(frozen=True, slots=True)
class Variant:
    """One combination.

    Attributes:
        name: readable, such as ``metric=limpq_seed=0``; names the run's folder.
        settings: the value of every varied key.
        recipe: with these values.
        text: the recipe as TOML.
    """

    name: str
    settings: Mapping[str, Any]
    recipe: Recipe
    text: str


def parse_axes(texts: Sequence[str]) -> dict[str, list[Any]]:
    """What ``--set`` says: ``seed=0,1,2``, ``measure.metric=limpq,divergence`` or ``space.weight=[[8, 4], [4, 2]]``.

    Values are TOML, separated by commas; words need no quotes. A single TOML array is the list of values.

    Raises:
        ConfigError: no ``=``, no values, values that cannot be told apart, or a key that is there twice.
    """
    axes: dict[str, list[Any]] = {}
    for text in texts:
        key, equals, values = (part.strip() for part in text.partition("="))
        if not (key and equals and values):
            raise ConfigError(f"--set {text!r}: expected KEY=VALUE,VALUE,... such as seed=0,1,2 or measure.metric=limpq,divergence.")
        if key in axes:
            raise ConfigError(f"--set {key} is there twice: give all its values at once, separated by commas.")
        axes[key] = _values(values)
    return axes


def variants(path: Path, axes: Axes) -> list[Variant]:
    """The recipe in ``path`` with every combination of the values, the last key varying fastest.

    Raises:
        ConfigError: nothing is varied, a key is not in the recipe, or a value is not allowed there.
    """
    for key, values in axes.items():
        if not values or isinstance(values, str) or any(value in values[:index] for index, value in enumerate(values)):
            raise ConfigError(f"the sweep over {key} has {values!r}, expected a list of one or more different values.")
    if not axes:
        raise ConfigError("there is nothing to vary: give at least one --set KEY=VALUES, such as --set seed=0,1,2.")
    load_recipe(path)  # so that what is wrong without the sweep is not blamed on it
    base = tomllib.loads(path.read_text(encoding="utf-8"))
    base["tables"] = {name: str((path.parent / file).resolve()) for name, file in base.get("tables", {}).items()}
    combinations = [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]
    names = _names(combinations)
    return [_variant(path, base, name, settings) for name, settings in zip(names, combinations, strict=True)]


def _variant(path: Path, base: Mapping[str, Any], name: str, settings: Mapping[str, Any]) -> Variant:
    values = copy.deepcopy(dict(base))
    for key, value in settings.items():
        _put(values, _parts(key), value, key)
    try:
        recipe = load_recipe(path, values)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from error
    return Variant(name, settings, recipe, "".join(f"{_toml_key(key)} = {_toml(value)}\n" for key, value in values.items()))


def _values(text: str) -> list[Any]:
    for toml in (text, f"[{text}]"):
        try:
            found = tomllib.loads(f"x = {toml}")["x"]
        except tomllib.TOMLDecodeError:
            continue
        if isinstance(found, list):
            return found
    words = [word.strip() for word in text.split(",")]
    for word in words:
        if not word or re.search(r"[\"'\[\]{}]", word):
            raise ConfigError(
                f"--set: the values {text!r} cannot be read ({word!r}): write words separated by commas without quotes, or all values as "
                'TOML, such as ["a,b", "c"].'
            )
    return [_word(word) for word in words]


def _word(text: str) -> Any:
    try:
        return tomllib.loads(f"x = {text}")["x"]
    except tomllib.TOMLDecodeError:
        return text


def _parts(key: str) -> list[str]:
    """The parts of a dotted key, of which some may be in quotes, because they hold dots themselves."""
    try:
        value: Any = tomllib.loads(f"{key} = 0")
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"--set {key}: expected a dotted key such as measure.metric ({error}).") from error
    parts = []
    while isinstance(value, dict):
        ((part, value),) = value.items()
        parts.append(part)
    return parts


def _put(container: Any, parts: Sequence[str], value: Any, key: str) -> None:
    part, *rest = parts
    if isinstance(container, list):
        part = _index(container, part, key)  # type: ignore[assignment]
    elif not isinstance(container, dict):
        raise ConfigError(f"--set {key}: {part!r} is looked for in {container!r}, which has no keys.")
    if not rest:
        container[part] = value
        return
    _put(container.setdefault(part, {}) if isinstance(container, dict) else container[part], rest, value, key)


def _index(entries: Sequence[Any], part: str, key: str) -> int:
    """An entry of a list of sections, by its name or its number."""
    names = [str(entry.get("name")) if isinstance(entry, dict) else "" for entry in entries]
    if part in names:
        return names.index(part)
    if part.isdecimal() and int(part) < len(entries):
        return int(part)
    raise ConfigError(f"--set {key}: there is no {part!r}, expected one of {', '.join(filter(None, names)) or len(entries)}.")


def _names(combinations: Sequence[Mapping[str, Any]]) -> list[str]:
    keys = list(combinations[0])
    last = [_parts(key)[-1] for key in keys]
    short = {key: name if last.count(name) == 1 else key for key, name in zip(keys, last, strict=True)}
    names = ["_".join(f"{_plain(short[key])}={_plain(_text(value))}" for key, value in settings.items()) for settings in combinations]
    count = Counter(names)
    return [_unique(name, settings, count[name]) for name, settings in zip(names, combinations, strict=True)]


def _unique(name: str, settings: Mapping[str, Any], count: int) -> str:
    if count == 1 and len(name) <= _LONGEST:
        return name
    return f"{name[:_LONGEST]}_{hashlib.sha256(_toml(dict(settings)).encode()).hexdigest()[:8]}"


def _text(value: Any) -> str:
    return "-".join(map(_text, value)) if isinstance(value, list) else str(value).lower() if isinstance(value, bool) else str(value)


def _plain(text: str) -> str:
    """Only what a folder's name may hold everywhere."""
    return re.sub(r"[^A-Za-z0-9_.+-]+", "-", text)


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_toml_key(key)} = {_toml(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False)  # TOML's text, numbers and truth values are those of JSON


def _toml_key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else json.dumps(key, ensure_ascii=False)
