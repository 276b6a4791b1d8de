"""Starts a program in two processes on this machine, as a launcher does."""

import os
import socket
import subprocess
import sys
from pathlib import Path


def start(program: str | Path, *arguments: object, ranks: int = 2) -> list[subprocess.Popen]:
    """``python PROGRAM ARGUMENTS`` once a rank, on one thread each."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "OMP_NUM_THREADS": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "ACCELERATE_USE_CPU": "1",
    }
    return [
        subprocess.Popen(
            [sys.executable, str(program), *map(str, arguments)],
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(ranks)
    ]


def run(program: str | Path, *arguments: object) -> None:
    """Runs it to the end; it must succeed on every rank."""
    processes = start(program, *arguments)
    ended = [(*process.communicate(timeout=120), process.returncode) for process in processes]
    assert all(code == 0 for *_, code in ended), "\n".join(error for _, error, _ in ended)
