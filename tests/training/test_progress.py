import io
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
        "train: start at 20 of 100",
        "train: 30/100 (30 %), 1/s, 0:01:10 left, loss 0.25",
        "train: 40/100 (40 %), 1/s, 0:01:00 left, loss 0.25",
        "train: 50/100 (50 %), 1/s, 0:00:50 left, loss 0.25",
        "train: 60/100 (60 %), 1/s, 0:00:40 left, loss 0.25",
        "train: end, 60 done, 0:00:40, loss 0.25",
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
        "levels: start of 2",
        "evaluate: start",
        "evaluate: 8, 4/s",
        "evaluate: end, 8 done, 0:00:02",
        "levels: 1/2 (50 %), 0.5/s, 0:00:02 left",
        "levels: end, 1 done, 0:00:02",
    ]


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
