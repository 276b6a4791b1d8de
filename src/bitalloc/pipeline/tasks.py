"""The unit of work of a run: done once, unless its inputs change."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitalloc import __version__
from bitalloc.pipeline.run_folder import RunFolder, digest


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
    """

    name: str
    stage: str
    run: Callable[[str], None]
    writes: tuple[Path, ...]
    values: Callable[[], Mapping[str, Any]]
    reads: tuple[Path, ...] = ()


def run_tasks(tasks: Sequence[Task], folder: RunFolder, say: Callable[[str], None], rewind: Callable[[], None]) -> None:
    """Runs the tasks in order; those that are done already are passed over. ``rewind`` is called before each.

    A finished task is recorded at once, so a killed run goes on with the task that it was in.
    """
    for task in tasks:
        inputs = digest({"version": __version__, **task.values()}, task.reads)
        if folder.is_done(task.name, inputs, task.writes):
            say(f"{task.name}: done before")
            continue
        say(f"{task.name}: started")
        rewind()
        task.run(inputs)
        folder.mark_done(task.name, inputs)
        folder.drop_checkpoints(task.name)
