"""A run that is killed or interrupted, at whatever moment, goes on and ends in the same weights."""

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bitalloc.training import read_journal

RECIPES: dict[str, dict[str, Any]] = {
    "one loader for all": {"data_options": {"shared": True}, "float": {"epochs": 1.5}},
    "data loaders": {"data": "tiny_module:loaders"},
    "from the joint training": {"finetune": {"start": "joint", "distillation": 0.5}},
}
# What is done stays done, so every attempt comes nearer to the end, unless it dies before its first task is done.
MOMENTS = random.Random(7)
EVENTS = {name: [MOMENTS.randint(6, 15) for _ in range(7)] for name in RECIPES}
SAME = ("importance.json", "policy.json", "float.safetensors", "mixed.safetensors", "uniform.safetensors")


@pytest.fixture(scope="module")
def killed(project_in: Callable[[Path], Any], module_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Runs every recipe with kill -9 at many moments, and one with Ctrl-C: folder and endings of each."""
    jobs: dict[str, Any] = {}
    for name, changes in RECIPES.items():
        folder = tmp_path_factory.mktemp("killed")
        arguments = ["finetune", str(project_in(folder).recipe(**changes)), "--out", str(folder / "out")]
        jobs[name] = {"arguments": arguments, "events": EVENTS[name], "signal": "SIGKILL", "log": str(folder / "log")}
    jobs["interrupt"] = {**_in_a_new_folder(tmp_path_factory, project_in), "events": [1, 5], "signal": "SIGINT"}
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("killed.py")), json.dumps(list(jobs.values()))],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(module_folder), *sys.path]), "OMP_NUM_THREADS": "1"},
        cwd=module_folder,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    endings = json.loads(done.stdout)
    return {name: {**job, "endings": ended} for (name, job), ended in zip(jobs.items(), endings, strict=True)}


def _in_a_new_folder(factory: pytest.TempPathFactory, project_in: Callable[[Path], Any]) -> dict[str, Any]:
    folder = factory.mktemp("interrupted")
    return {"arguments": ["finetune", str(project_in(folder).recipe()), "--out", str(folder / "out")], "log": str(folder / "log")}


@pytest.mark.parametrize("name", RECIPES)
def test_a_run_that_was_killed_many_times_ends_in_the_same_bits(killed: dict[str, Any], name: str, project: Any) -> None:
    job = killed[name]
    assert job["endings"].count(-signal.SIGKILL) >= 5
    project.good(*job["arguments"])
    project.good("finetune", project.recipe(**RECIPES[name]), "--out", "whole")
    out = Path(job["arguments"][-1])
    assert {file: (out / file).read_bytes() == Path("whole", file).read_bytes() for file in SAME} == dict.fromkeys(SAME, True)
    # Every step is read once, with the loss that lasted.
    assert _steps(out) == _steps(Path("whole"))
    # Nor is anything left behind of the attempts.
    assert list(out.rglob("*.tmp")) == []
    assert list((out / "checkpoints").iterdir()) == []


def _steps(out: Path) -> dict[str, list[tuple[int, float]]]:
    found: dict[str, list[tuple[int, float]]] = {}
    for entry in read_journal(out / "training.jsonl"):
        if entry.event == "step":
            found.setdefault(entry.task, []).append((entry.step, entry.values["loss"]))
    return found


def test_every_kind_of_training_went_on_at_a_step(killed: dict[str, Any]) -> None:
    log = "".join(Path(killed[name]["log"]).read_text() for name in RECIPES)
    names = ("float training", "joint training", "fine-tuning first mixed")
    assert [name for name in names if f"{name}: resumed, " not in log] == []


def test_an_interrupt_is_one_sentence_and_the_run_goes_on_at_the_step(killed: dict[str, Any], project: Any) -> None:
    job = killed["interrupt"]
    assert job["endings"] == [130, 130]  # while layers.json is written, and in the first step of training
    log = Path(job["log"]).read_text()
    assert "Traceback" not in log
    assert log.splitlines()[-1] == "Interrupted. What was finished is kept: the same command goes on from there."
    assert "float training: resumed, 1 of 4 done before" in project.good(*job["arguments"]).stderr
