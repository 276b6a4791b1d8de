"""Runs the command line on two ranks, each a forked process, one of which may be killed. Called by test_two_ranks_run.py.

Prints for every attempt how each rank ended: the signal that killed it, or its exit code.
"""

import json
import os
import signal
import socket
import sys
from functools import partial
from pathlib import Path

import torch._dynamo  # loaded once here, not in every child by the first optimiser
import torch.onnx  # noqa: F401

from bitalloc.cli import main
from bitalloc.pipeline import run as _run  # noqa: F401
from bitalloc.pipeline import training_tasks
from bitalloc.training import CheckpointConfig
from bitalloc.training.run import Run


def die_at(step: int) -> None:
    """Kills this process when its training step number ``step`` begins, counted over all trainings."""
    left, advance = step, Run.advance

    def watched(run: Run) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        advance(run)

    Run.advance = watched


def child(rank: int, ranks: int, port: int, arguments: list[str], kill_at: int, log: Path) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 99
    try:
        if ranks > 1:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "1"}
        sys.argv = ["bitalloc", *arguments]
        handle = os.open(log.with_suffix(f".{rank}"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        if kill_at and rank == 1:
            die_at(kill_at)
        main()
    except SystemExit as error:
        code = int(error.code or 0)
    finally:
        os._exit(code)
    raise AssertionError


def attempt(arguments: list[str], ranks: int, kill_at: int, log: str) -> list[int]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    endings = []
    for pid in [child(rank, ranks, port, arguments, kill_at, Path(log)) for rank in range(ranks)]:
        _, status = os.waitpid(pid, 0)
        endings.append(-os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status))
    return endings


if __name__ == "__main__":
    # A checkpoint after every step: the tiny runs are over before the first minute is.
    training_tasks.CheckpointConfig = partial(CheckpointConfig, steps=1)
    print(json.dumps([attempt(**job) for job in json.loads(sys.argv[1])]))
