"""Experiment trackers as journals, through Hugging Face Accelerate's tracker classes."""

import uuid
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, final

from bitalloc.errors import ConfigError, MissingDependencyError
from bitalloc.files import write_text
from bitalloc.training.journal import NO_JOURNAL, Entry, Journal, Journals
from bitalloc.training.ranks import is_main

Config = Mapping[str, str | float]
"""What a run was started with: text and numbers by name."""


class Tracker(Journal):
    """Begins the tracker at the first entry, so that a run that has nothing to do leaves nothing there.

    Args:
        name: of the run.
        folder: where its logs go.
        config: what the run was started with.
    """

    def __init__(self, name: str, folder: Path, config: Config) -> None:
        self.name, self.folder, self.config = name, folder, config
        self._tracker: Any = None

    @abstractmethod
    def begin(self) -> Any:
        """Accelerate's tracker, not started yet."""

    @abstractmethod
    def log(self, tracker: Any, task: str, step: int, values: Mapping[str, float]) -> None:
        """Hands over the values of one entry."""

    def write(self, entry: Entry) -> None:
        """Logs the values of steps, results and ends."""
        if entry.event == "start":
            return
        if self._tracker is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            tracker = self.begin()
            tracker.start()
            tracker.store_init_configuration(dict(self.config))
            self._tracker = tracker
        self.log(self._tracker, entry.task, entry.step, {name: value for name, value in entry.values.items() if name != "total"})

    def close(self) -> None:
        """Ends the tracker, if it has begun."""
        if self._tracker is not None:
            self._tracker.finish()


@final
class TensorBoard(Tracker):
    """Event files in ``<folder>/tensorboard``, one scalar ``<task>/<value>`` for every value."""

    def begin(self) -> Any:
        """Accelerate's tracker, not started yet."""
        from accelerate.tracking import TensorBoardTracker  # type: ignore[import-untyped]

        return TensorBoardTracker("tensorboard", self.folder)

    def log(self, tracker: Any, task: str, step: int, values: Mapping[str, float]) -> None:
        """Every task has its own count of steps."""
        tracker.log(_of(task, values), step=step)


@final
class WeightsAndBiases(Tracker):
    """A run of the project ``bitalloc``; a resumed run goes on in it, as its id is kept in ``<folder>/wandb_id.txt``."""

    def begin(self) -> Any:
        """Accelerate's tracker, not started yet."""
        from accelerate.tracking import WandBTracker

        path = self.folder / "wandb_id.txt"
        if not path.is_file():
            write_text(path, uuid.uuid4().hex)
        return WandBTracker("bitalloc", name=self.name, dir=str(self.folder), id=path.read_text(encoding="utf-8").strip(), resume="allow")

    def log(self, tracker: Any, task: str, step: int, values: Mapping[str, float]) -> None:
        """The step is a value like the others: W&B's own count has to grow through all tasks, and would drop what does not."""
        tracker.tracker.define_metric(f"{task}/*", step_metric=f"{task}/step")
        tracker.log(_of(task, {**values, "step": step}))


TRACKERS: Mapping[str, type[Tracker]] = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases}
"""By the name of the package that each needs."""


def require_trackers(names: Sequence[str]) -> None:
    """Raises ConfigError for a tracker that there is not, MissingDependencyError for one that is not installed."""
    for name in names:
        if name not in TRACKERS:
            raise ConfigError(f"there is no tracker {name!r}, expected one of {', '.join(TRACKERS)}.")
        spec = find_spec(name)
        # A folder of that name, such as W&B leaves behind, can be imported too, but is no package.
        if spec is None or spec.origin is None:
            raise MissingDependencyError(f"the tracker {name} is not installed: pip install 'bitalloc[track]', or leave it out.")


@contextmanager
def open_trackers(names: Sequence[str], name: str, folder: Path, config: Config) -> Iterator[Journal]:
    """The trackers ``names`` as one journal, ended when the block ends. Only rank 0 writes.

    Args:
        names: of :data:`TRACKERS`.
        name: of the run.
        folder: where the logs go.
        config: what the run was started with.

    Raises:
        ConfigError: a tracker that there is not.
        MissingDependencyError: a tracker that is not installed.
    """
    require_trackers(names)
    if not is_main():
        yield NO_JOURNAL
        return
    with ExitStack() as stack:
        trackers = [TRACKERS[each](name, folder, config) for each in dict.fromkeys(names)]
        for tracker in trackers:
            stack.callback(tracker.close)
        yield Journals(*trackers)


def _of(task: str, values: Mapping[str, float]) -> dict[str, float]:
    return {f"{task}/{name}": value for name, value in values.items()}
