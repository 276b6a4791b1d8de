"""The runs of a sweep as jobs, and how they are done: one after the other in this process."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from bitalloc.errors import BitallocError
from bitalloc.pipeline.recipe import load_recipe
from bitalloc.pipeline.run import run_recipe
from bitalloc.pipeline.sweep_results import results
from bitalloc.training import Progress, Silent

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Job:
    """One run of a sweep. Plain data, so that it can be sent to another process or machine.

    Attributes:
        name: of the run.
        folder: its run folder, absolute; ``recipe.toml`` lies in it.
        data_root: folder of the data, absolute; None for none.
        here: the current folder, which is searched for the recipe's own modules.
        command: what the user typed, for the summary.
    """

    name: str
    folder: Path
    data_root: Path | None
    here: Path
    command: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a job: its results, or the error that ended it."""

    name: str
    results: Mapping[str, Any] | None
    error: str | None = None


class Executor(ABC):
    """Does the jobs of a sweep."""

    @abstractmethod
    def outcomes(self, jobs: Sequence[Job]) -> Iterator[Outcome]:
        """The outcome of every job, as they end. A job that fails does not stop the others."""


@final
class OneByOne(Executor):
    """In this process, in order.

    Args:
        progress: where the progress of every run is shown.
        say: gets a line for every task of every run.
    """

    def __init__(self, progress: Progress, say: Say) -> None:
        self._progress, self._say = progress, say

    def outcomes(self, jobs: Sequence[Job]) -> Iterator[Outcome]:
        """One after the other."""
        for job in jobs:
            yield do(job, self._progress, lambda line, name=job.name: self._say(f"{name}: {line}"))  # type: ignore[misc]


def do(job: Job, progress: Progress | None = None, say: Say = lambda _: None) -> Outcome:
    """Does a run, or goes on with it; what is done in its folder is not done again. An error becomes part of the outcome."""
    try:
        recipe = load_recipe(job.folder / "recipe.toml")
        run_recipe(recipe, job.folder, data_root=job.data_root, progress=progress or Silent(), say=say, command=job.command)
        return Outcome(job.name, results(recipe, job.folder, job.data_root))
    except Exception as error:  # a user's model, data or loss may raise anything
        text = " ".join(str(error).split())
        return Outcome(job.name, None, text if isinstance(error, BitallocError) else f"{type(error).__name__}: {text}")
