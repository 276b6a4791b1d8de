import io
import re
import sys

import pytest
from rich.console import Console

from bitalloc.training import LogProgress, RichProgress, Silent, make_progress


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_log_lines_have_rate_remaining_time_and_metrics():
    out, clock = io.StringIO(), Clock()
    progress = LogProgress(out, interval=10, clock=clock)
    with progress.task("train", 100, completed=20):
        for _ in range(8):
            clock.now += 5
            progress.advance(5, loss=0.25)
    assert out.getvalue().splitlines() == [
        "train: resumed, 20 of 100 done before",
        "train: 30/100 (30 %), 1/s, 0:01:10 left, loss 0.25",
        "train: 40/100 (40 %), 1/s, 0:01:00 left, loss 0.25",
        "train: 50/100 (50 %), 1/s, 0:00:50 left, loss 0.25",
        "train: 60/100 (60 %), 1/s, 0:00:40 left, loss 0.25",
        "train: stopped, 60 of 100 done in 0:00:40, loss 0.25",
    ]


def test_log_of_unknown_length_and_nested_work():
    out, clock = io.StringIO(), Clock()
    progress = LogProgress(out, interval=1, clock=clock)
    with progress.task("levels", 2):
        with progress.task("evaluate", None):
            clock.now = 2
            progress.advance(8)
        progress.advance()
    assert out.getvalue().splitlines() == [
        "levels: started, 0 of 2 done",
        "evaluate: started, 0 done",
        "evaluate: 8, 4/s",
        "evaluate: finished, 8 done in 0:00:02",
        "levels: 1/2 (50 %), 0.5/s, 0:00:02 left",
        "levels: stopped, 1 of 2 done in 0:00:02",
    ]


def step(progress, clock, *, seconds, images, waited):
    clock.now += seconds
    progress.see(images, waited)
    progress.advance()


def test_log_lines_show_images_a_second_and_the_wait_of_the_last_intervals():
    out, clock = io.StringIO(), Clock()
    progress = LogProgress(out, interval=10, clock=clock)
    with progress.task("train", 8):
        for _ in range(4):  # 20 s at 1600 images a second, no wait worth a word
            step(progress, clock, seconds=5, images=8000, waited=0.1)
        for _ in range(4):  # 20 s at 20 images a second
            step(progress, clock, seconds=5, images=100, waited=0.2)
    assert out.getvalue().splitlines() == [
        "train: started, 0 of 8 done",
        "train: 2/8 (25 %), 1 600 images/s, data 2 %, 0:00:30 left",
        "train: 4/8 (50 %), 1 600 images/s, data 2 %, 0:00:20 left",
        "train: 6/8 (75 %), 20 images/s, data 4 %, 0:00:10 left",
        "train: 8/8 (100 %), 20 images/s, data 4 %, 0:00:00 left",
        "train: finished, 8 of 8 done in 0:00:40",
    ]


def test_a_long_wait_for_data_is_said_once_with_what_to_do():
    out, clock = io.StringIO(), Clock()
    progress = LogProgress(out, interval=10, clock=clock)
    for _ in range(2):
        with progress.task("train", None):
            step(progress, clock, seconds=5, images=10, waited=5)  # a slow start is no pattern
            assert "waiting" not in out.getvalue() or clock.now > 50
            for _ in range(9):
                step(progress, clock, seconds=5, images=10, waited=0.5)
    (advice,) = [line for line in out.getvalue().splitlines() if "waiting" in line]
    assert re.fullmatch(r"train: \d+ % of the time goes into waiting for data\. .*num_workers.*memory.*", advice)


def test_bars_show_images_a_second_and_say_once_that_data_are_slow():
    out, clock = io.StringIO(), Clock()
    progress = RichProgress(Console(file=out, force_terminal=True, width=200), interval=10, clock=clock)
    with progress.task("train", 9):
        for _ in range(9):
            step(progress, clock, seconds=5, images=7900, waited=1)
    shown = out.getvalue()
    assert "1 580 images/s, data 20 %" in shown
    assert shown.count("train: 20 % of the time goes into waiting for data") == 1


def test_a_progress_of_ones_own_need_not_know_of_images():
    class Own(Silent.__base__):
        def start(self, name, total, completed=0): ...
        def advance(self, n=1, **metrics): ...
        def finish(self): ...

    with Own().task("work", 1):
        Own().see(128, 0.1)


def test_bars_show_name_count_and_metrics_and_leave_the_terminal_usable():
    out = io.StringIO()
    progress = RichProgress(Console(file=out, force_terminal=True, width=120))
    before = sys.stdout

    def interrupted_work():
        with progress.task("train", 4, completed=1):
            progress.advance(2, loss=0.125)
            assert sys.stdout is before
            with progress.task("evaluate", None):
                progress.advance(7)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted_work()
    shown = out.getvalue()
    assert "train" in shown
    assert "3/4" in shown
    assert "loss 0.125" in shown
    assert "evaluate" in shown
    assert shown.rstrip().endswith("\x1b[?25h")  # the cursor is visible again
    with progress.task("again", 1):
        progress.advance()


def test_the_right_progress_is_chosen(monkeypatch):
    assert isinstance(make_progress(quiet=True), Silent)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    assert isinstance(make_progress(quiet=False), LogProgress)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert isinstance(make_progress(quiet=False), RichProgress)


def test_log_and_silence_go_to_standard_error_or_nowhere(capsys):
    for progress in (Silent(), LogProgress()):
        with progress.task("work", 1):
            progress.advance()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("work") == 2
