"""Reading and writing files so that a kill, a full disk or a hand edit never leaves half a file behind."""

import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from os import PathLike
from pathlib import Path
from typing import Any

from bitalloc.errors import FileError

AnyPath = str | PathLike[str]
"""What a person may give as a path."""

_DROPPING: ContextVar[bool] = ContextVar("dropping", default=False)


@contextmanager
def replacing(path: AnyPath) -> Iterator[Path]:
    """Gives a temporary path beside ``path``; renames it over ``path`` when the block ends without an error.

    The content is flushed to the disk before the rename, so after a power cut the old file or the new one is there, whole.

    Raises:
        FileError: the folder cannot be written or the disk is full; ``path`` is as it was.
    """
    path = Path(path)
    if _DROPPING.get():
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder) / path.name
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        os.close(handle)
    except OSError as error:
        raise FileError(f"cannot write {path}: {error.strerror or error}. Nothing was changed.") from error
    temporary = Path(name)
    try:
        yield temporary
        _flush(temporary)
        # mkstemp makes private files; give the result the permissions that a plain open() would have given.
        temporary.chmod(0o666 & ~_umask())
        os.replace(temporary, path)
    except OSError as error:
        raise FileError(
            f"cannot write {path}: {error.strerror or error}. The file was left as it was; free some space or choose another folder."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def dropping_writes() -> Iterator[None]:
    """Within the block nothing is written to where it belongs: another process does the same work and writes it."""
    token = _DROPPING.set(True)
    try:
        yield
    finally:
        _DROPPING.reset(token)


def write_text(path: AnyPath, text: str) -> None:
    """Writes ``text`` to ``path`` atomically. Raises FileError if that fails; the old content stays."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: AnyPath, value: Mapping[str, object]) -> None:
    """Writes ``value`` as indented JSON, atomically.

    Raises:
        FileError: ``value`` holds a number that is not finite, or something else that JSON has not, or the file cannot be written.
    """
    try:
        text = json.dumps(value, indent=2, allow_nan=False)
    except (ValueError, TypeError) as error:
        raise FileError(f"cannot write {path}: a value is not JSON ({error}). Nothing was changed.") from error
    write_text(path, text + "\n")


def read_json(path: AnyPath, *, schema: str, version: int) -> dict[str, Any]:
    """Reads a JSON object that carries ``"schema": schema`` and ``"version": version``.

    Raises:
        FileError: the file is missing, is no JSON object, is of another kind or of another version.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise FileError(f"{path} does not exist: expected a {schema} file.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(f"{path} cannot be read: {error}.") from error
    return parse_json(text, origin=str(path), schema=schema, version=version)


def parse_json(text: str, *, origin: str, schema: str, version: int) -> dict[str, Any]:
    """Parses JSON text as :func:`read_json` does; ``origin`` names the text in errors."""
    try:
        value = json.loads(text, parse_constant=_reject_constant)
    except (ValueError, RecursionError) as error:
        raise FileError(f"{origin} is not valid JSON ({error}): it was truncated or edited. Make it again.") from error
    if not isinstance(value, dict):
        raise FileError(f"{origin} holds a {type(value).__name__}, expected a JSON object with schema {schema!r}.")
    if value.get("schema") != schema:
        raise FileError(f"{origin} has schema {value.get('schema')!r}, expected {schema!r}: it is another kind of file.")
    if value.get("version") != version:
        raise FileError(f"{origin} has version {value.get('version')!r} of {schema!r}; this bitalloc reads version {version}.")
    return value


def finite(value: object, *, origin: str) -> float:
    """``value`` as a finite float, else a FileError that names ``origin``."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise FileError(f"{origin} is {value!r}, expected a finite number.")
    return float(value)


def _reject_constant(name: str) -> float:
    raise ValueError(f"the number {name} is not allowed")


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
