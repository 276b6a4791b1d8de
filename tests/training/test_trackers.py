"""Experiment trackers get what the journal gets."""

from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import accelerate.tracking
import pytest

from bitalloc.errors import ConfigError, MissingDependencyError
from bitalloc.training import Entry, open_trackers, trackers

LOSS = {"total": 4, "loss": 0.5, "rate": 0.1}
CONFIG = {"seed": 0, "measure.metric": "limpq"}


class Fake:
    """Stands for Accelerate's tracker classes, which need packages that are not installed."""

    made: list["Fake"]

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.arguments, self.options, self.calls = arguments, options, []
        self.tracker = SimpleNamespace(define_metric=lambda name, step_metric: self.calls.append(("metric", name, step_metric)))
        Fake.made.append(self)

    def start(self) -> None:
        self.calls.append("start")

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.calls.append(values)

    def log(self, values: dict[str, float], step: int | None = None) -> None:
        self.calls.append((values, step))

    def finish(self) -> None:
        self.calls.append("finish")


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> list[Fake]:
    Fake.made = []
    monkeypatch.setattr(trackers, "find_spec", lambda name: SimpleNamespace(origin="installed"))
    monkeypatch.setattr(accelerate.tracking, "TensorBoardTracker", Fake)
    monkeypatch.setattr(accelerate.tracking, "WandBTracker", Fake)
    return Fake.made


def test_tensorboard_gets_values_by_task_and_step(fakes: list[Fake], tmp_path: Path) -> None:
    with open_trackers(["tensorboard"], "digits run", tmp_path, CONFIG) as journal:
        journal.write(Entry("float", "start", 0, {"total": 4}))
        assert fakes == []  # nothing to tell yet
        journal.write(Entry("float", "step", 3, LOSS))
        journal.write(Entry("float", "result", 4, {"valid_top1": 0.75}))
        assert fakes[0].calls[-1] != "finish"
    (tracker,) = fakes
    assert tracker.arguments == ("tensorboard", tmp_path)
    assert tracker.calls == ["start", CONFIG, ({"float/loss": 0.5, "float/rate": 0.1}, 3), ({"float/valid_top1": 0.75}, 4), "finish"]


def test_weights_and_biases_counts_steps_by_task_and_goes_on_in_the_same_run(fakes: list[Fake], tmp_path: Path) -> None:
    for _ in range(2):
        with open_trackers(["wandb"], "digits run", tmp_path / "tracking", CONFIG) as journal:
            journal.write(Entry("float", "step", 3, LOSS))
    first, again = fakes
    assert first.options["id"] == again.options["id"] == (tmp_path / "tracking" / "wandb_id.txt").read_text()
    assert first.options == {"name": "digits run", "dir": str(tmp_path / "tracking"), "id": first.options["id"], "resume": "allow"}
    logged = ({"float/loss": 0.5, "float/rate": 0.1, "float/step": 3}, None)
    assert first.calls == ["start", CONFIG, ("metric", "float/*", "float/step"), logged, "finish"]


def test_trackers_end_when_the_training_fails(fakes: list[Fake], tmp_path: Path) -> None:
    def fail() -> None:
        with open_trackers(["tensorboard", "wandb"], "run", tmp_path, CONFIG) as journal:
            journal.write(Entry("float", "step", 3, LOSS))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert [tracker.calls[-1] for tracker in fakes] == ["finish", "finish"]


def test_a_run_with_nothing_to_tell_leaves_nothing(fakes: list[Fake], tmp_path: Path) -> None:
    with open_trackers(["tensorboard", "wandb"], "run", tmp_path / "tracking", CONFIG):
        pass
    assert fakes == []
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_tracker_is_an_error() -> None:
    with pytest.raises(ConfigError, match="there is no tracker 'mlflow', expected one of tensorboard, wandb"):
        trackers.require_trackers(["mlflow"])


@pytest.mark.parametrize("spec", [None, SimpleNamespace(origin=None)], ids=["nothing there", "a folder of logs of that name"])
def test_a_tracker_that_is_not_installed_is_an_error_before_the_block(spec: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: spec)
    opened = open_trackers(["wandb"], "run", tmp_path, CONFIG)
    with pytest.raises(MissingDependencyError, match=r"wandb is not installed: pip install 'bitalloc\[track\]'"):
        opened.__enter__()


@pytest.mark.skipif(find_spec("tensorboard") is None, reason="tensorboard is not installed (bitalloc[track])")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_can_be_read_back(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with open_trackers(["tensorboard"], "digits run", tmp_path, CONFIG) as journal:
        for step in (1, 2):
            journal.write(Entry("float", "step", step, {"loss": 1 / step}))
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("float/loss")] == [(1, 1.0), (2, 0.5)]
