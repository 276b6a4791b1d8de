"""The real launchers start a training on two ranks, as docs/scale-out.md says."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

PROGRAM = Path(__file__).with_name("launched.py")


def launched(folder: Path, *launcher: str) -> list[dict[str, Any]]:
    """What the ranks wrote that ``python LAUNCHER launched.py FOLDER`` started."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ACCELERATE_", "MASTER_", "TORCHELASTIC_"))}
    environment = {**kept, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1"}
    environment["HF_HOME"] = str(folder)  # no configuration of the user's
    command = [sys.executable, *launcher, str(PROGRAM), str(folder)]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert ended.returncode == 0, ended.stderr
    return [json.loads(path.read_text()) for path in sorted(folder.glob("[0-9].json"))]


def assert_one_training(ranks: list[dict[str, Any]]) -> None:
    """Both ranks have the same numbers, those of one process up to the order of sums."""
    assert [found["ranks"] for found in ranks] == [2, 2]
    assert ranks[0] == ranks[1]
    spec = importlib.util.spec_from_file_location("launched", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    alone = program.trained()
    assert alone["ranks"] == 1
    assert ranks[0]["losses"] == pytest.approx(alone["losses"], rel=1e-5)
    torch.testing.assert_close(torch.tensor(ranks[0]["weight"]), torch.tensor(alone["weight"]), rtol=1e-5, atol=1e-6)


def test_torchrun(tmp_path: Path) -> None:
    rendezvous = ("--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "--local-addr", "127.0.0.1")
    assert_one_training(launched(tmp_path, "-m", "torch.distributed.run", "--nproc-per-node", "2", *rendezvous))


def test_accelerate_launch(tmp_path: Path) -> None:
    pytest.importorskip("accelerate.commands.launch", reason="the command line of accelerate cannot be imported", exc_type=ImportError)
    # With --cpu it starts one process only, unless MPI does it. Any free port: 29500, its default, may be taken.
    launcher = ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0")
    assert_one_training(launched(tmp_path, *launcher))
