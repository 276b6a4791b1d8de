"""What a training writes down while it runs, and the reader of it."""

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, final, get_args

from bitalloc.errors import FileError
from bitalloc.files import AnyPath

Event = Literal["start", "step", "result", "finished"]
_KEYS = ("time", "task", "event", "step")


@dataclass(frozen=True, slots=True)
class Entry:
    """Something that happened in a training.

    Attributes:
        task: the work that it belongs to, such as ``finetune/w4a4/mixed``.
        event: ``start``: the task goes on after ``step`` steps, 0 for a new one; what was written of later steps did not last.
            ``step``: values of a training step. ``result``: values of the task's result, such as a top-1. ``finished``: the end.
        step: optimiser steps done.
        values: numbers by name.
        time: when it happened; now by default.
    """

    task: str
    event: Event
    step: int
    values: Mapping[str, float]
    time: datetime = field(default_factory=lambda: datetime.now(UTC))


class Journal(ABC):
    """Where entries go. Subclass it to send them wherever you want."""

    @abstractmethod
    def write(self, entry: Entry) -> None:
        """Takes one entry; called between training steps, so it should take no longer than a fraction of one."""


@final
class NoJournal(Journal):
    """Writes nothing."""

    def write(self, entry: Entry) -> None:
        """Nothing."""


NO_JOURNAL = NoJournal()


@final
class Journals(Journal):
    """Several journals as one."""

    def __init__(self, *journals: Journal) -> None:
        self._journals = journals

    def write(self, entry: Entry) -> None:
        """Gives the entry to each, in order."""
        for journal in self._journals:
            journal.write(entry)


@final
class NamedJournal(Journal):
    """Gives every entry the task name ``task`` before ``journal`` gets it."""

    def __init__(self, journal: Journal, task: str) -> None:
        self._journal, self._task = journal, task

    def write(self, entry: Entry) -> None:
        """Passes the entry on under the other name."""
        self._journal.write(replace(entry, task=self._task))


@final
class JsonLines(Journal):
    """One line of JSON an entry, appended to ``path`` at once: a kill loses none that was written.

    A value that is not finite, which JSON has not, is written as null and read as NaN.

    Lines are never changed, so the file can be followed with ``tail -f``. A task that goes on at an earlier step, after a kill, says
    so in a ``start`` line; :func:`read_journal` leaves out what that made void.
    """

    def __init__(self, path: AnyPath) -> None:
        self._path = Path(path)

    def write(self, entry: Entry) -> None:
        """Appends a line. Raises FileError if that fails."""
        head = (entry.time.isoformat(timespec="milliseconds"), entry.task, entry.event, entry.step)
        values = {name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in entry.values.items()}
        line = json.dumps({**dict(zip(_KEYS, head, strict=True)), **values}, allow_nan=False)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            # Opened anew for each line and not buffered: nothing is left to be lost, or to be closed.
            with self._path.open("ab+", buffering=0) as file:
                file.write(f"{_end_of_torn_line(file)}{line}\n".encode())
        except OSError as error:
            raise FileError(f"cannot write {self._path}: {error.strerror or error}. Free some space or choose another folder.") from error


def read_journal(path: AnyPath) -> list[Entry]:
    """The entries of a :class:`JsonLines` file, in order, without those that a resumed run made void.

    Of every task that are the steps up to its end, each once, and its last result. A line that a kill or a full disk cut is passed over.

    Raises:
        FileError: the file is missing or cannot be read.
    """
    try:
        lines = Path(path).read_bytes().splitlines()
    except OSError as error:
        raise FileError(f"{path} cannot be read: {error.strerror or error}.") from error
    kept: list[Entry] = []
    for entry in filter(None, map(_parse, lines)):
        if entry.event != "step":
            kept = [before for before in kept if before.task != entry.task or _stays(before, entry)]
        kept.append(entry)
    return kept


def _stays(before: Entry, now: Entry) -> bool:
    """Whether an entry is still true after a later one of its task."""
    if now.event == "start":
        return before.event in ("start", "step") and before.step <= now.step and now.step > 0
    return before.event != now.event


def _parse(line: bytes) -> Entry | None:
    try:
        values: dict[str, Any] = json.loads(line)
        time, task, event, step = (values.pop(key) for key in _KEYS)
        numbers = {name: math.nan if value is None else value for name, value in values.items()}
        found = Entry(str(task), event, int(step), numbers, datetime.fromisoformat(time))
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    return found if event in get_args(Event) else None


def _end_of_torn_line(file: Any) -> str:
    """A line break if the file does not end in one, because a process was killed while it wrote."""
    if file.seek(0, 2) == 0:
        return ""
    file.seek(-1, 2)
    return "" if file.read(1) == b"\n" else "\n"
