"""Runs of a sweep through Ray: the logic with a stand-in, and with Ray itself where it is installed."""

import os
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bitalloc.errors import MissingDependencyError
from bitalloc.pipeline import sweep_ray
from bitalloc.pipeline.sweep import run_sweep
from bitalloc.pipeline.sweep_jobs import Job, Outcome
from bitalloc.pipeline.sweep_ray import RayExecutor


class RayError(Exception):
    pass


class FakeRay:
    """Does the work when it is waited for, the job that was sent last first. Jobs named ``dies`` take their process with them."""

    exceptions = SimpleNamespace(RayError=RayError)

    def __init__(self, resources: dict[str, float], running: bool = False) -> None:
        self.resources, self.running = resources, running
        self.calls: list[str] = []
        self.options: dict[str, Any] = {}
        self.under_way: list[Job] = []
        self.most = 0

    def is_initialized(self) -> bool:
        return self.running

    def init(self, **_: Any) -> None:
        self.calls.append("init")

    def shutdown(self) -> None:
        self.calls.append("shutdown")

    def cluster_resources(self) -> dict[str, float]:
        return self.resources

    def remote(self, function: Any) -> Any:
        def options(**given: Any) -> Any:
            self.options = given
            return SimpleNamespace(remote=self._send)

        return SimpleNamespace(options=options)

    def _send(self, job: Job) -> Job:
        self.under_way.append(job)
        self.most = max(self.most, len(self.under_way))
        return job

    def wait(self, references: list[Job], num_returns: int) -> tuple[list[Job], list[Job]]:
        assert references == self.under_way
        assert num_returns == 1
        return [self.under_way.pop()], list(self.under_way)

    def get(self, job: Job) -> Outcome:
        if job.name == "dies":
            raise RayError("the worker died\nlong story")
        return Outcome(job.name, {"float_top1": 1.0, "policies": []})


def jobs(*names: str) -> list[Job]:
    return [Job(name, Path("/out", name), None, Path("/here"), ()) for name in names]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Any:
    def make(*arguments: Any) -> FakeRay:
        ray = FakeRay(*arguments)
        monkeypatch.setitem(sys.modules, "ray", ray)
        monkeypatch.setattr(sweep_ray, "find_spec", lambda name: object())
        monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        return ray

    return make


def test_so_many_runs_at_a_time_and_all_in_the_end(fake: Any) -> None:
    ray, said = fake({"CPU": 8.0}), []
    found = list(RayExecutor(2, said.append).outcomes(jobs("a", "b", "dies", "c")))
    assert ray.most == 2
    assert [outcome.name for outcome in found] == ["b", "dies", "c", "a"]
    assert [outcome.error for outcome in found if outcome.name != "dies"] == [None] * 3
    assert found[1].error == "its process died (RayError: the worker died); started again, the run goes on."
    assert said == ["a: started", "b: started", "dies: started", "c: started"]
    assert ray.calls == ["init", "shutdown"]


@pytest.mark.parametrize(
    ("resources", "parallel", "share"),
    [
        ({"CPU": 8.0}, 2, (4, 0, "4")),
        ({"CPU": 7.0}, 3, (2, 0, "2")),
        ({"CPU": 1.0}, 2, (0.5, 0, "1")),
        ({"CPU": 32.0, "GPU": 4.0}, 4, (8, 1, "8")),
        ({"CPU": 32.0, "GPU": 4.0}, 2, (16, 2, "16")),
        ({"CPU": 32.0, "GPU": 2.0}, 5, (6, 1 / 3, "6")),
    ],
)
def test_every_run_gets_its_share_of_the_machine(fake: Any, resources: Any, parallel: int, share: Any) -> None:
    ray = fake(resources)
    list(RayExecutor(parallel, lambda _: None).outcomes(jobs(*"abcdef"[:parallel])))
    variables = ray.options["runtime_env"]["env_vars"]
    assert (ray.options["num_cpus"], ray.options["num_gpus"], variables["OMP_NUM_THREADS"]) == share
    # All runs find a place at the same time.
    for name, needed in (("CPU", share[0]), ("GPU", share[1])):
        places = resources.get(name, 0) // needed if needed >= 1 else int(resources.get(name, 0)) * int(1 / needed) if needed else parallel
        assert places >= parallel
    assert variables["PYTHONPATH"].split(os.pathsep) == [path for path in sys.path if path]


def test_places_that_no_run_needs_are_shared_by_the_others(fake: Any) -> None:
    ray = fake({"CPU": 8.0})
    list(RayExecutor(8, lambda _: None).outcomes(jobs("a", "b")))
    assert ray.options["num_cpus"] == 4


def test_a_number_of_threads_that_is_set_stays(fake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = fake({"CPU": 8.0})
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    list(RayExecutor(2, lambda _: None).outcomes(jobs("a")))
    assert ray.options["runtime_env"]["env_vars"]["OMP_NUM_THREADS"] == "3"


def test_a_ray_that_runs_already_is_used_and_left_running(fake: Any) -> None:
    ray = fake({"CPU": 2.0}, True)
    list(RayExecutor(2, lambda _: None).outcomes(jobs("a", "b")))
    assert ray.calls == []


def test_ray_is_stopped_when_the_sweep_is(fake: Any) -> None:
    ray = fake({"CPU": 2.0})
    outcomes = RayExecutor(2, lambda _: None).outcomes(jobs("a", "b", "c"))
    next(outcomes)
    outcomes.close()  # type: ignore[attr-defined]
    assert ray.calls == ["init", "shutdown"]


def test_without_ray_the_error_says_what_to_do(project: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep_ray, "find_spec", lambda name: None)
    error = project.error("sweep", project.recipe(), "--out", "out", "--set", "seed=0,1", "--parallel", "2")
    assert error == (
        "2 runs at a time need Ray, which is not installed: pip install 'bitalloc[sweep]', or leave --parallel out to do the runs one "
        "after the other."
    )
    assert not Path("out").exists()
    with pytest.raises(MissingDependencyError):
        run_sweep(project.recipe(), Path("out"), {"seed": [0]}, parallel=2)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed (bitalloc[sweep])")
@pytest.mark.filterwarnings("ignore")
def test_ray_makes_the_same_folders_as_one_process(project: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    path, axes = project.recipe(), {"seed": [0, 1], "model": ["tiny_module:net", "tiny_module:nothing_to_quantize"]}
    one, several = (run_sweep(path, Path(name), axes, parallel=count) for name, count in (("one", 1), ("several", 2)))
    assert [run["status"] for run in one["runs"]] == ["done", "failed"] * 2
    assert several == one
    for path in sorted(Path("one").glob("*/*.safetensors")):
        assert path.read_bytes() == Path("several", *path.parts[1:]).read_bytes()
