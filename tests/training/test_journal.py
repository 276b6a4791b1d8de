"""What is written down of a training, and what is read back."""

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from bitalloc.errors import FileError
from bitalloc.training import (
    CheckpointConfig,
    Engine,
    Entry,
    Journal,
    Journals,
    JsonLines,
    NamedJournal,
    fit,
    loss_step,
    read_journal,
    recorder,
    sgd,
)
from bitalloc.training.recorder import StepRecorder
from bitalloc.training.run import Run
from bitalloc.training.schedule import Constant, WarmupCosine
from bitalloc.training.stream import BatchStream


class Cut(Exception):
    """Stands for whatever ends a process."""


class Kept(Journal):
    def __init__(self):
        self.entries = []

    def write(self, entry):
        self.entries.append((entry.task, entry.event, entry.step, dict(entry.values)))


def linear():
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 1.0)
    return model


def train(journal, total=3, *, cut_before=None, path=None, loader=None, **options):
    """The mean output is the loss: w * x, with w starting at 1 and learning 0.5 times the mean input a step."""
    plain, calls = loss_step(lambda model, batch: model(batch).mean()), [0]

    def step(model, batch):
        calls[0] += 1
        if calls[0] == cut_before:
            raise Cut
        return plain(model, batch)

    model = linear()
    options = {"name": "work", "optimizer": sgd(model, 0.5, momentum=0.0)} | options
    checkpoint = path and CheckpointConfig(path, "run", steps=2)
    loader = loader or [torch.ones(2, 1), torch.full((3, 1), 2.0)]
    return fit(model, loader, step=step, total_steps=total, journal=journal, checkpoint=checkpoint, **options)


def steps(path, task="work"):
    return [(entry.step, entry.values["loss"]) for entry in read_journal(path) if (entry.task, entry.event) == (task, "step")]


def test_every_step_of_a_short_training_is_a_line(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "training.jsonl"
    model = linear()
    schedule = WarmupCosine(0.5, total_steps=3, warmup_steps=2)
    train(JsonLines(path), optimizer=sgd(model, 0.5), schedule=schedule)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["task"], line["event"], line["step"], line["total"]) for line in lines] == [
        ("work", "start", 0, 3),
        ("work", "step", 1, 3),
        ("work", "step", 2, 3),
        ("work", "step", 3, 3),
    ]
    assert [line["rate"] for line in lines[1:]] == [0.25, 0.5, 0.5]
    assert all(line["images_per_second"] > 0 for line in lines[1:])
    assert all(line["time"].endswith("+00:00") for line in lines)


def test_a_journal_that_fails_ends_the_training_after_a_checkpoint(tmp_path: Path) -> None:
    class Full(Journal):
        def write(self, entry):
            if entry.step == 3:
                raise FileError("the disk is full")

    with pytest.raises(FileError, match="the disk is full"):
        train(Full(), 5, path=tmp_path / "checkpoint")
    train(JsonLines(tmp_path / "log"), 5, path=tmp_path / "checkpoint")
    assert [step for step, _ in steps(tmp_path / "log")] == [4, 5]


def test_losses_are_those_of_the_steps(tmp_path: Path) -> None:
    train(JsonLines(tmp_path / "log"))
    assert steps(tmp_path / "log") == [(1, 1.0), (2, 1.0), (3, -0.5)]


def test_a_resumed_training_is_read_once_with_what_lasted(tmp_path: Path) -> None:
    log = tmp_path / "log"
    # Saved after step 2, cut in step 4: step 3 is written, and done again.
    with pytest.raises(Cut):
        train(JsonLines(log), 5, cut_before=4, path=tmp_path / "checkpoint")
    assert [step for step, _ in steps(log)] == [1, 2, 3]
    train(JsonLines(log), 5, path=tmp_path / "checkpoint")
    assert '"event": "start", "step": 2' in log.read_text()
    train(JsonLines(tmp_path / "whole"), 5)
    assert steps(log) == steps(tmp_path / "whole")


def test_a_training_that_begins_anew_forgets_the_one_before_but_not_other_tasks(tmp_path: Path) -> None:
    log = tmp_path / "log"
    for name in ("work", "other", "work"):
        train(JsonLines(log), 2, name=name)
        JsonLines(log).write(Entry(name, "result", 2, {"top1": 0.5}))
    entries = [(entry.task, entry.event, entry.step) for entry in read_journal(log)]
    assert entries == [
        *(("other", event, step) for event, step in (("start", 0), ("step", 1), ("step", 2), ("result", 2))),
        *(("work", event, step) for event, step in (("start", 0), ("step", 1), ("step", 2), ("result", 2))),
    ]


def test_going_back_after_a_divergence_is_a_start(tmp_path: Path) -> None:
    nan, loader = torch.full((1, 1), float("nan")), [torch.ones(1, 1)]

    class Once:
        """Its third batch is bad the first time that it is read."""

        def __init__(self):
            self.read = 0

        def __iter__(self):
            for batch in loader * 4:
                self.read += 1
                yield nan if self.read == 3 else batch

    train(JsonLines(tmp_path / "log"), 4, loader=Once(), engine=Engine(retries=1))
    entries = read_journal(tmp_path / "log")
    assert [(entry.event, entry.step) for entry in entries] == [("start", 0), *(("step", step) for step in (1, 2, 3, 4))]
    assert (tmp_path / "log").read_text().count('"start"') == 2


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def recorded(total, moments):
    """The entries of a run without a network whose step s ends at ``moments[s - 1]``, each with two images and the loss s."""
    model, clock, kept = linear(), Clock(), Kept()
    run = Run(model, BatchStream([]), loss_step(torch.mean), sgd(model, 0.5), Constant(), total, None, None, Engine())
    steps = StepRecorder(kept, "work", run, clock)
    for number, moment in enumerate(moments, start=1):
        clock.now = moment
        run.losses.append(float(number))
        run.images += 2
        steps.step()
    return [(step, values) for _, event, step, values in kept.entries if event == "step"]


def test_a_long_training_has_ten_thousand_lines_with_the_mean_loss() -> None:
    # 25,000 steps: every third one, and the last.
    found = recorded(25_000, [number / 1000 for number in range(1, 25_001)])
    assert [step for step, _ in found] == [*range(3, 25_000, 3), 25_000]
    assert found[0][1] == {"total": 25_000, "loss": 2.0, "rate": 0.5, "images_per_second": 2000.0}


def test_slow_steps_are_written_every_ten_seconds() -> None:
    # 40,000 steps would be written every fourth; the second takes 11 s.
    found = recorded(40_000, [1.0, 12.0, 13.0, 14.0])
    assert [(step, values["images_per_second"], values["loss"]) for step, values in found] == [(2, 0.333333, 1.5), (4, 2.0, 3.5)]


def test_a_torn_line_is_passed_over_and_the_next_one_is_whole(tmp_path: Path) -> None:
    log = tmp_path / "log"
    journal = JsonLines(log)
    journal.write(Entry("a", "step", 1, {"loss": 0.5}))
    whole = log.read_bytes()
    log.write_bytes(whole + whole[: len(whole) // 2])
    journal.write(Entry("a", "step", 2, {"loss": 0.25}))
    assert [(entry.step, entry.values) for entry in read_journal(log)] == [(1, {"loss": 0.5}), (2, {"loss": 0.25})]
    assert log.read_bytes().count(b"\n") == 3


EVENTS = st.one_of(
    st.tuples(st.just("train"), st.integers(0, 6)),  # so many steps, then killed
    st.tuples(st.just("save"), st.just(0)),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(EVENTS, max_size=12), st.integers(0, 200))
def test_however_often_it_is_killed_the_reader_sees_each_step_once(tmp_path_factory: pytest.TempPathFactory, events, torn) -> None:
    """A task that is killed at will, the end of its file cut at will, is read as an uninterrupted one up to where it came."""
    log = tmp_path_factory.mktemp("journal") / "log"
    journal, done, saved = JsonLines(log), 0, 0
    journal.write(Entry("a", "start", 0, {}))
    for sitting, (what, count) in enumerate(events):
        if what == "save":
            saved = done
            continue
        if sitting:
            done = saved
            journal.write(Entry("a", "start", done, {}))
        for _ in range(count):
            done += 1
            journal.write(Entry("a", "step", done, {"sitting": sitting}))
    entries = [entry for entry in read_journal(log) if entry.event == "step"]
    assert [entry.step for entry in entries] == list(range(1, done + 1))
    log.write_bytes(log.read_bytes()[: -torn or None])
    cut = [entry.step for entry in read_journal(log) if entry.event == "step"] if log.read_bytes() else []
    assert cut == sorted(set(cut))


def test_entries_come_back_as_they_were_written(tmp_path: Path) -> None:
    written = [Entry("finetune/a/mixed", "result", 7, {"valid_top1": 0.123456789}), Entry("search", "finished", 0, {"seconds": 3})]
    for entry in written:
        JsonLines(tmp_path / "log").write(entry)
    read = read_journal(tmp_path / "log")
    assert [(e.task, e.event, e.step, e.values) for e in read] == [(e.task, e.event, e.step, e.values) for e in written]
    assert abs((read[0].time - written[0].time).total_seconds()) <= 0.001


def test_a_value_that_is_not_finite_is_null_in_valid_json(tmp_path: Path) -> None:
    values = {"loss": math.nan, "rate": math.inf, "worst": -math.inf, "total": 9}
    JsonLines(tmp_path / "log").write(Entry("a", "step", 1, values))
    line = json.loads((tmp_path / "log").read_text(), parse_constant=pytest.fail)
    assert {name: line[name] for name in values} == {"loss": None, "rate": None, "worst": None, "total": 9}
    read = read_journal(tmp_path / "log")[0].values
    assert all(math.isnan(read[name]) for name in ("loss", "rate", "worst"))
    assert read["total"] == 9


def test_journals_are_combined_and_renamed() -> None:
    one, other = Kept(), Kept()
    train(Journals(one, NamedJournal(other, "float")), 1)
    assert [entry[:3] for entry in one.entries] == [("work", "start", 0), ("work", "step", 1)]
    assert [entry[:3] for entry in other.entries] == [("float", "start", 0), ("float", "step", 1)]


def test_other_ranks_write_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "is_main", lambda: False)
    kept = Kept()
    train(kept)
    assert kept.entries == []


def test_a_file_that_cannot_be_written_or_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match=r"file/log.*choose another folder"):
        JsonLines(tmp_path / "file" / "log").write(Entry("a", "start", 0, {}))
    with pytest.raises(FileError, match=r"nothing.*cannot be read"):
        read_journal(tmp_path / "nothing")
