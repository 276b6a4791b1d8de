"""The folder of a run: where everything lies, what is done, and who works in it."""

import fcntl
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bitalloc.errors import BitallocError, FileError
from bitalloc.files import read_json, write_json
from bitalloc.pipeline.recipe import Recipe
from bitalloc.pipeline.recipe_sections import LevelSection

SCHEMA = "bitalloc.run"
VERSION = 1
_TEMPORARY = re.compile(r"\..+\.[a-z0-9_]{8}\.tmp")
"""How the files are named that :func:`bitalloc.files.replacing` writes before it renames them."""


class RunFolder:
    """Paths inside ``root``, and the record of finished tasks.

    The first level of the recipe lives in the root itself, every further one in a folder of its name.
    """

    def __init__(self, root: Path, recipe: Recipe) -> None:
        self.root = root
        self._first = recipe.levels[0].name
        self._others = tuple(level.name for level in recipe.levels[1:])
        self._record_path = root / "stages.json"

    def path(self, name: str) -> Path:
        """A file that belongs to all levels."""
        return self.root / name

    def level_path(self, level: LevelSection, name: str) -> Path:
        """A file that belongs to one level."""
        return self.root / name if level.name == self._first else self.root / level.name / name

    def checkpoint(self, task: str, inputs: str) -> Path:
        """The training checkpoint of a task with these inputs; with other inputs the task starts anew, in another file."""
        return self.root / "checkpoints" / f"{_flat(task)}-{inputs[:12]}.safetensors"

    def drop_checkpoints(self, task: str) -> None:
        """Deletes the training checkpoints of a task that is done, those of other inputs included."""
        for path in (self.root / "checkpoints").glob(f"{_flat(task)}-*"):
            path.unlink(missing_ok=True)

    def claim(self) -> None:
        """Forgets the finished tasks of all levels if another level than now was the first: its files lie in the root."""
        record = self._record()
        if record.get("first_level") in (None, self._first):
            return
        shared = {task: inputs for task, inputs in self._done().items() if "/" not in task}
        self._write(shared)

    def is_done(self, task: str, inputs: str, outputs: tuple[Path, ...]) -> bool:
        """Whether the task was finished with these inputs and its files are still there."""
        return self._done().get(task) == inputs and all(path.is_file() for path in outputs)

    def mark_done(self, task: str, inputs: str) -> None:
        """Remembers that the task was finished with these inputs."""
        self._write({**self._done(), task: inputs})

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keeps a second process out of the folder, and clears away what a killed one left half written.

        Raises:
            FileError: another process is at work in it, or the folder cannot be written.
        """
        if self.root.exists() and not self.root.is_dir():
            raise FileError(f"the run folder {self.root} is a file, expected a folder: choose another --out.")
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            handle = (self.root / ".lock").open("w")
        except OSError as error:
            reason = error.strerror or error
            raise FileError(f"cannot write to the run folder {self.root}: {reason}. Choose another --out, or free it.") from error
        with handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise FileError(f"another bitalloc process is at work in {self.root}: wait for it or choose another --out.") from error
            self._sweep()
            yield

    def _sweep(self) -> None:
        """Deletes temporary files in the folders that belong to this run alone; nobody is writing them, as it is locked."""
        for folder in (self.root, self.root / "checkpoints", *(self.root / name for name in self._others)):
            for path in folder.glob(".*.*.tmp"):
                if _TEMPORARY.fullmatch(path.name):
                    path.unlink(missing_ok=True)

    def _record(self) -> dict[str, Any]:
        if not self._record_path.exists():
            return {"done": {}}
        with damage(self._record_path, "Delete it, and all stages are done again."):
            record = read_json(self._record_path, schema=SCHEMA, version=VERSION)
            if not isinstance(record.get("done"), dict):
                raise FileError(f"{self._record_path}: key 'done' is missing or malformed.")
        return record

    def _done(self) -> dict[str, Any]:
        done: dict[str, Any] = self._record()["done"]
        return done

    def _write(self, done: Mapping[str, Any]) -> None:
        write_json(self._record_path, {"schema": SCHEMA, "version": VERSION, "first_level": self._first, "done": done})


@contextmanager
def damage(path: Path, remedy: str = "Delete it, and the next run makes it again.") -> Iterator[None]:
    """Adds to the errors of the block which file of the run is to blame and what to do about it."""
    try:
        yield
    except BitallocError as error:
        text = str(error).removesuffix(" Make it again.")
        where = "" if str(path) in text else f"{path}: "
        raise type(error)(f"{where}{text} {remedy}") from error


def read_report(path: Path, *keys: str) -> dict[str, Any]:
    """A small JSON report of a stage. Raises FileError if it is missing or damaged, or has not all of ``keys``."""
    with damage(path):
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise FileError(f"{path} cannot be read ({error}).") from error
        if not isinstance(value, dict):
            raise FileError(f"{path} holds a {type(value).__name__}, expected a JSON object.")
        missing = [key for key in keys if key not in value]
        if missing:
            raise FileError(f"{path} was edited: it has no {', '.join(missing)}.")
        return value


def digest(values: Mapping[str, Any], files: tuple[Path, ...]) -> str:
    """A SHA-256 over JSON values and the content of files. Raises FileError for a file that is missing or unreadable."""
    sha = hashlib.sha256(json.dumps(values, sort_keys=True).encode())
    for path in files:
        try:
            with path.open("rb") as opened:
                sha.update(hashlib.file_digest(opened, "sha256").digest())
        except OSError as error:
            raise FileError(f"{path} cannot be read: {error.strerror or error}.") from error
    return sha.hexdigest()


def _flat(task: str) -> str:
    return task.replace("/", ".")
