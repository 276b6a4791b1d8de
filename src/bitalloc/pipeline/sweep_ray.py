"""The runs of a sweep several at a time, through Ray."""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, final

from bitalloc.errors import MissingDependencyError
from bitalloc.pipeline.sweep_jobs import Executor, Job, Outcome, Say, do


def require_ray(parallel: int) -> None:
    """Raises MissingDependencyError if Ray is not installed."""
    if find_spec("ray") is None:
        raise MissingDependencyError(
            f"{parallel} runs at a time need Ray, which is not installed: pip install 'bitalloc[sweep]', or leave --parallel out to do the "
            "runs one after the other."
        )


@final
class RayExecutor(Executor):
    """Each run in a process of its own, which has its share of the processors and GPUs.

    If Ray is not running it is started on this machine and stopped at the end; ``RAY_ADDRESS`` names a cluster, whose machines have to
    see the same folders. A run whose process dies is started again up to three times and goes on from its last checkpoint.

    Args:
        parallel: runs at a time.
        say: gets a line when a run starts.
    """

    def __init__(self, parallel: int, say: Say) -> None:
        require_ray(parallel)
        self._parallel, self._say = parallel, say

    def outcomes(self, jobs: Sequence[Job]) -> Iterator[Outcome]:
        """As they end."""
        import ray

        with _running(ray):
            task = ray.remote(_do).options(**_share(ray.cluster_resources(), min(self._parallel, len(jobs))))
            waiting = list(jobs)
            running: dict[Any, Job] = {}
            while waiting or running:
                while waiting and len(running) < self._parallel:
                    job = waiting.pop(0)
                    self._say(f"{job.name}: started")
                    running[task.remote(job)] = job
                (ready, *_), _ = ray.wait(list(running), num_returns=1)
                yield _outcome(ray, ready, running.pop(ready))


def _do(job: Job) -> Outcome:
    os.chdir(job.here)
    return do(job)


@contextmanager
def _running(ray: Any) -> Iterator[None]:
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a sweep reports to nobody
    ray.init(log_to_driver=False, include_dashboard=False, logging_level="ERROR")
    try:
        yield
    finally:
        ray.shutdown()


def _share(resources: dict[str, float], parallel: int) -> dict[str, Any]:
    """What one of ``parallel`` runs gets: whole processors and GPUs where there are enough, else a part of one."""
    cpus, gpus = (_part(resources.get(name, 0), parallel) for name in ("CPU", "GPU"))
    threads = os.environ.get("OMP_NUM_THREADS", str(max(1, int(cpus))))
    # The path, so that a process finds the same packages and modules as this one.
    variables = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": threads}
    return {"num_cpus": cpus, "num_gpus": gpus, "max_retries": 3, "runtime_env": {"env_vars": variables}}


def _part(count: float, parallel: int) -> float:
    whole = int(count) // parallel
    if whole or not count:
        return whole
    return 1 / -(-parallel // int(count))  # as many runs on each as it takes for all to find a place


def _outcome(ray: Any, ready: Any, job: Job) -> Outcome:
    try:
        found: Outcome = ray.get(ready)
    except ray.exceptions.RayError as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else ""
        return Outcome(job.name, None, f"its process died ({type(error).__name__}: {reason}); started again, the run goes on.")
    return found
