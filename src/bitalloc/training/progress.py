"""Progress of long work: what is reported apart from how it is shown."""

import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TextIO, final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichBars
from rich.text import Text

from bitalloc.training.throughput import ADVICE, Throughput, per_second


class Progress(ABC):
    """Work that is started, advances and is finished. Work may be started inside other work; the innermost one advances."""

    @abstractmethod
    def start(self, name: str, total: int | None, completed: int = 0) -> None:
        """Starts ``total`` units of work (None: not known), of which ``completed`` were done in an earlier sitting."""

    @abstractmethod
    def advance(self, n: int = 1, **metrics: float) -> None:
        """``n`` more units are done; ``metrics`` are the newest values worth showing, such as the loss."""

    @abstractmethod
    def finish(self) -> None:
        """Ends the innermost work."""

    def see(self, images: int, waited: float) -> None:  # noqa: B027 (a display of one's own need not show it)
        """The innermost work has seen ``images`` more, which it waited for during ``waited`` seconds. Ignored unless overridden."""

    @contextmanager
    def task(self, name: str, total: int | None, completed: int = 0) -> Iterator[None]:
        """Starts the work and finishes it when the block ends, however it ends."""
        self.start(name, total, completed)
        try:
            yield
        finally:
            self.finish()


@final
class Silent(Progress):
    """Shows nothing."""

    def start(self, name: str, total: int | None, completed: int = 0) -> None:
        """Nothing."""

    def advance(self, n: int = 1, **metrics: float) -> None:
        """Nothing."""

    def finish(self) -> None:
        """Nothing."""


SILENT = Silent()


@final
class RichProgress(Progress):
    """Bars with rate and remaining time, for a terminal.

    Args:
        console: where to draw. Default: standard error, so that results on standard output can be piped.
        interval: seconds over which images a second and the wait for data are counted. Default 10.
        clock: gives the time in seconds.
    """

    def __init__(self, console: Console | None = None, interval: float = 10.0, clock: Callable[[], float] = time.monotonic) -> None:
        # Standard output is left alone: it carries results.
        self._bars = RichBars(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            _Rate(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[metrics]}"),
            console=console or Console(stderr=True),
            redirect_stdout=False,
        )
        self._interval, self._clock = interval, clock
        self._tasks: list[TaskID] = []
        self._advised = False

    def start(self, name: str, total: int | None, completed: int = 0) -> None:
        """Adds a bar."""
        if not self._tasks:
            self._bars.start()
        throughput = Throughput(self._clock(), self._interval)
        self._tasks.append(self._bars.add_task(name, total=total, completed=completed, metrics="", throughput=throughput))

    def advance(self, n: int = 1, **metrics: float) -> None:
        """Moves the bar that was added last."""
        if metrics:
            self._bars.update(self._tasks[-1], metrics=_format_metrics(metrics))
        self._bars.advance(self._tasks[-1], n)

    def see(self, images: int, waited: float) -> None:
        """Shows images a second instead of steps; says once above the bars if the wait for data is long."""
        task = next(task for task in self._bars.tasks if task.id == self._tasks[-1])
        throughput: Throughput = task.fields["throughput"]
        throughput.see(images, waited, self._clock())
        if throughput.starved and not self._advised:
            self._advised = True
            self._bars.console.print(_advice(task.description, throughput), highlight=False)

    def finish(self) -> None:
        """Stops the bar that was added last; it stays on the screen as it is."""
        self._bars.stop_task(self._tasks.pop())
        if not self._tasks:
            self._bars.stop()
            for task in self._bars.task_ids:
                self._bars.remove_task(task)


@dataclass
class _Work:
    name: str
    total: int | None
    done: int
    started: float
    reported: float
    before: int  # done in an earlier sitting
    throughput: Throughput
    metrics: dict[str, float] = field(default_factory=dict)


@final
class LogProgress(Progress):
    """Plain lines, for a log file: one when work starts, one every ``interval`` seconds, one when it ends.

    Args:
        stream: where to write. Default: standard error.
        interval: seconds between lines. Default 10.
        clock: gives the time in seconds.
    """

    def __init__(self, stream: TextIO | None = None, interval: float = 10.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._interval, self._clock = stream, interval, clock
        self._work: list[_Work] = []
        self._advised = False

    def start(self, name: str, total: int | None, completed: int = 0) -> None:
        """Writes a line."""
        now = self._clock()
        self._work.append(_Work(name, total, completed, now, now, completed, Throughput(now, self._interval)))
        known = f" of {total}" if total is not None else ""
        self._write(f"{name}: resumed, {completed}{known} done before" if completed else f"{name}: started, 0{known} done")

    def advance(self, n: int = 1, **metrics: float) -> None:
        """Writes a line if the interval is over."""
        work, now = self._work[-1], self._clock()
        work.done += n
        work.metrics.update(metrics)
        if now - work.reported >= self._interval:
            work.reported = now
            self._write(self._line(work, now))

    def see(self, images: int, waited: float) -> None:
        """Lines show images a second instead of steps; one more line, once, says if the wait for data is long."""
        work = self._work[-1]
        work.throughput.see(images, waited, self._clock())
        if work.throughput.starved and not self._advised:
            self._advised = True
            self._write(_advice(work.name, work.throughput))

    def finish(self) -> None:
        """Writes a line with the time taken."""
        work = self._work.pop()
        ended = "finished" if work.total is None or work.done >= work.total else "stopped"
        known = f" of {work.total}" if work.total is not None else ""
        self._write(f"{work.name}: {ended}, {work.done}{known} done in {_duration(self._clock() - work.started)}" + _suffix(work.metrics))

    def _line(self, work: _Work, now: float) -> str:
        rate = (work.done - work.before) / max(now - work.started, 1e-9)
        parts = [f"{work.done}/{work.total} ({100 * work.done // work.total} %)" if work.total else f"{work.done}"]
        parts.append(str(work.throughput) if work.throughput.known else per_second(rate))
        if work.total is not None and rate > 0:
            parts.append(f"{_duration((work.total - work.done) / rate)} left")
        return f"{work.name}: " + ", ".join(parts) + _suffix(work.metrics)

    def _write(self, line: str) -> None:
        print(line, file=self._stream or sys.stderr, flush=True)


def make_progress(quiet: bool) -> Progress:
    """Nothing if ``quiet``; bars if standard error is a terminal; else plain lines."""
    if quiet:
        return Silent()
    return RichProgress() if sys.stderr.isatty() else LogProgress()


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        throughput: Throughput = task.fields["throughput"]
        if throughput.known:
            return Text(str(throughput))
        return Text("" if task.speed is None else per_second(task.speed))


def _advice(name: str, throughput: Throughput) -> str:
    return f"{name}: {100 * throughput.waiting:.0f} % {ADVICE}"


def _format_metrics(metrics: dict[str, float]) -> str:
    return " ".join(f"{name} {value:.4g}" for name, value in metrics.items())


def _suffix(metrics: dict[str, float]) -> str:
    return f", {_format_metrics(metrics)}" if metrics else ""


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
