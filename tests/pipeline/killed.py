"""Runs jobs of the command line, each in a forked process that dies at a chosen moment. Called by test_killed.py.

Prints for every attempt how it ended: the signal that killed it, or its exit code.
"""

import json
import os
import signal
import sys
from functools import partial

import torch._dynamo  # loaded once here, not in every child by the first optimiser
import torch.onnx  # noqa: F401

from bitalloc import files
from bitalloc.cli import main
from bitalloc.pipeline import run as _run  # noqa: F401
from bitalloc.pipeline import training_tasks
from bitalloc.pipeline.run_folder import RunFolder
from bitalloc.training import CheckpointConfig, device
from bitalloc.training import checkpoint as checkpoints
from bitalloc.training.run import Run


def arm(event: int, number: int) -> None:
    """Sends the signal ``number`` to this process at an event: the end of a training step, a rename of a file, a finished task."""
    left = event

    def watched(function):
        def call(*arguments):
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), number)
            return function(*arguments)

        return call

    os.replace = files.os.replace = checkpoints.os.replace = watched(os.replace)
    Run.advance = watched(Run.advance)
    RunFolder.mark_done = watched(RunFolder.mark_done)


def attempt(arguments: list[str], event: int, number: int, log: str) -> int:
    child = os.fork()
    if child == 0:
        code = 99
        try:
            sys.argv = ["bitalloc", *arguments]
            handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(handle, 1)
            os.dup2(handle, 2)
            arm(event, number)
            main()
        except SystemExit as error:
            code = int(error.code or 0)
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


if __name__ == "__main__":
    # A checkpoint after every step: the tiny runs are over before the first minute is.
    training_tasks.CheckpointConfig = partial(CheckpointConfig, steps=1)
    device()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    endings = [
        [attempt(job["arguments"], event, signal.Signals[job["signal"]], job["log"]) for event in job["events"]]
        for job in json.loads(sys.argv[1])
    ]
    print(json.dumps(endings))
