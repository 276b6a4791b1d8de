"""The unit of work of a run: done once, unless its inputs change."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitalloc import __version__
from bitalloc.errors import FileError
from bitalloc.pipeline.run_folder import RunFolder, digest
from bitalloc.training import Entry, Journal
from bitalloc.training.ranks import gathered, is_main, together


@dataclass(frozen=True, slots=True)
class Task:
    """One piece of a run.

    Attributes:
        name: unique in the run.
        stage: the stage of the command line that it belongs to.
        run: does the work and writes the files; gets the digest of the inputs, which names its training checkpoint.
        writes: the files that it makes.
        values: gives the JSON values that it depends on: parts of the recipe, fingerprints. Called when the task's turn comes.
        reads: files that it depends on.
        by_all: whether all ranks of a distributed launch work on it; else rank 0 does alone.
    """

    name: str
    stage: str
    run: Callable[[str], None]
    writes: tuple[Path, ...]
    values: Callable[[], Mapping[str, Any]]
    reads: tuple[Path, ...] = ()
    by_all: bool = False


def run_tasks(tasks: Sequence[Task], folder: RunFolder, say: Callable[[str], None], rewind: Callable[[], None], journal: Journal) -> None:
    """Runs the tasks in order; those that are done already are passed over. ``rewind`` is called before each.

    A finished task is recorded at once, so a killed run goes on with the task that it was in; ``journal`` is told of it.
    """
    for task in tasks:
        inputs, done = _state(task, folder)
        if done:
            say(f"{task.name}: done before")
            continue
        say(f"{task.name}: started")
        rewind()
        began = time.monotonic()
        if task.by_all:
            task.run(inputs)
        with together():  # the others go on when the files are there
            if is_main():
                if not task.by_all:
                    task.run(inputs)
                folder.mark_done(task.name, inputs)
                journal.write(Entry(task.name, "finished", 0, {"seconds": round(time.monotonic() - began, 3)}))
                folder.drop_checkpoints(task.name)


def _state(task: Task, folder: RunFolder) -> tuple[str, bool]:
    """The digest of a task's inputs, and whether it is done; rank 0 decides.

    Raises:
        FileError: the ranks find different inputs.
    """
    with together():
        inputs = digest({"version": __version__, **task.values()}, task.reads)
        own = inputs, folder.is_done(task.name, inputs, task.writes)
    found = gathered(own)
    other = next((rank for rank, (inputs, _) in enumerate(found) if inputs != found[0][0]), None)
    if other is not None:
        raise FileError(
            f"{task.name}: rank {other} does not find the same inputs as rank 0: all machines need the same recipe, code and data, and "
            "must see the same run folder."
        )
    return found[0]
