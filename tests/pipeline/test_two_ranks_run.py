"""The command line on two processes: one sound folder; a process that dies ends the run with a sentence, and it goes on where it was."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SAME = ("importance.json", "policy.json", "float.safetensors", "mixed.safetensors", "uniform.safetensors")
KILLED_AT = 9  # of 4 steps of the float training, 3 of the joint one, 4 of each fine-tuning


@pytest.fixture(scope="module")
def ranks(project_in: Callable[[Path], Any], module_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A whole run and one that is killed, started by one process and started by two again: folder, logs and endings."""
    folder = tmp_path_factory.mktemp("ranks")
    recipe = str(project_in(folder).recipe())

    def job(name: str, command: str, out: str, ranks: int = 2, kill_at: int = 0) -> dict[str, Any]:
        return {"arguments": [command, recipe, "--out", str(folder / out)], "ranks": ranks, "kill_at": kill_at, "log": str(folder / name)}

    jobs = [
        job("whole", "run", "whole"),
        job("killed", "finetune", "out", kill_at=KILLED_AT),
        job("alone", "finetune", "out", ranks=1),
        job("resumed", "finetune", "out"),
    ]
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("killed_rank.py")), json.dumps(jobs)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(module_folder), *sys.path]), "OMP_NUM_THREADS": "1"},
        cwd=module_folder,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=120,
    )
    endings = dict(zip(("whole", "killed", "alone", "resumed"), json.loads(done.stdout), strict=True))
    return {"folder": folder, "endings": endings, "log": {path.name: path.read_text() for path in folder.glob("*.[01]")}}


def test_two_ranks_write_one_sound_folder(ranks: dict[str, Any], project: Any) -> None:
    """Rank 0 reports; a run of one process finds every stage done, by the same digests."""
    assert ranks["endings"]["whole"] == [0, 0]
    assert "float model" in ranks["log"]["whole.0"]
    assert ranks["log"]["whole.1"] == ""
    again = project.good("run", project.recipe(), "--out", str(ranks["folder"] / "whole"))
    assert "started" not in again.stderr
    assert "onnx" in json.loads((ranks["folder"] / "whole" / "summary.json").read_text())["versions"]


def test_a_killed_rank_ends_the_run_and_it_goes_on_at_its_step(ranks: dict[str, Any]) -> None:
    assert ranks["endings"]["killed"] == [1, -signal.SIGKILL]
    last = ranks["log"]["killed.0"].splitlines()[-1]
    assert last.startswith("Error: rank 0 of 2 lost the others: one of them was killed or is out of reach (")
    assert ranks["endings"]["resumed"] == [0, 0]
    assert re.search(r"fine-tuning first mixed: \w+\W+1 of 4", ranks["log"]["resumed.0"])
    out, whole = ranks["folder"] / "out", ranks["folder"] / "whole"
    assert {file: (out / file).read_bytes() == (whole / file).read_bytes() for file in SAME} == dict.fromkeys(SAME, True)
    assert list((out / "checkpoints").iterdir()) == []


def test_another_number_of_processes_is_refused_in_a_sentence(ranks: dict[str, Any]) -> None:
    assert ranks["endings"]["alone"] == [1]
    last = ranks["log"]["alone.0"].splitlines()[-1]
    assert last.startswith("Error: the checkpoint was made by 2 processes, this run has one process: start it with as many as before")
