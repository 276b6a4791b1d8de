"""The steps of a training run as entries of a journal: few enough to keep, often enough to follow."""

import math
import time
from collections.abc import Callable, Mapping
from statistics import fmean
from typing import Final, final

from bitalloc.training.journal import NO_JOURNAL, Entry, Event, Journal
from bitalloc.training.ranks import is_main
from bitalloc.training.run import Run

LINES: Final = 10_000
"""A run of more steps has an entry every so many steps that there are this many, some 2 MB of JSON lines."""

SECONDS: Final = 10.0
"""Slow steps have an entry at least so often."""


@final
class StepRecorder:
    """Writes the start of a run, and its steps: all of a short run, about :data:`LINES` of a long one, one in :data:`SECONDS` at least.

    An entry has the total of steps, the mean loss since the entry before, the learning rate of the step and the images a second since
    the entry before. Only rank 0 writes.

    Attributes:
        failure: why an entry could not be written, None as long as all could. Not raised here: the other ranks would wait for rank 0.

    Args:
        journal: where to.
        task: the name of the work in it.
        run: at its start, or resumed.
        clock: gives the time in seconds.
    """

    def __init__(self, journal: Journal, task: str, run: Run, clock: Callable[[], float] = time.monotonic) -> None:
        self._journal = journal if is_main() else NO_JOURNAL
        self._task, self._run, self._clock = task, run, clock
        self._every = math.ceil(run.total / LINES)
        self.failure: Exception | None = None
        self.start()

    def start(self) -> None:
        """Says where the run goes on from now: at its start, or where it was taken back to."""
        self._remember()
        self._write("start", {"total": self._run.total})

    def step(self) -> None:
        """Writes the step that was just done, if it is time."""
        due = self._run.done % self._every == 0 or self._clock() - self._at >= SECONDS
        if due or self._run.done == self._run.total:
            self.flush()

    def flush(self) -> None:
        """Writes what was done since the last entry, if anything was."""
        run = self._run
        if run.done == self._done:
            return
        rate = (run.images - self._images) / max(self._clock() - self._at, 1e-9)
        values = {
            "total": run.total,
            "loss": _short(fmean(run.losses[self._done :])),
            "rate": _short(run.optimizer.param_groups[0]["lr"]),
            "images_per_second": _short(rate),
        }
        self._write("step", values)
        self._remember()

    def _write(self, event: Event, values: Mapping[str, float]) -> None:
        try:
            self._journal.write(Entry(self._task, event, self._run.done, values))
        except Exception as error:
            self.failure = error

    def _remember(self) -> None:
        self._done, self._images, self._at = self._run.done, self._run.images, self._clock()


def _short(value: float) -> float:
    """Six digits: more say nothing about a running training and make the lines long."""
    return float(f"{value:.6g}")
