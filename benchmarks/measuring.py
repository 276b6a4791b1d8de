"""How the benchmarks measure: medians with the sides taking turns, and the peak of memory of a pass."""

import statistics
import time
from collections.abc import Callable

import torch

from bitalloc.training import device

Run = Callable[[], object]


def median_seconds(runs: dict[str, Run], repeats: int) -> dict[str, float]:
    """The median seconds of each, taking turns, after one call each that compiles kernels and fills pools."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(repeats):
        for name, run in runs.items():
            synchronise()
            start = time.perf_counter()
            run()
            synchronise()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def synchronise() -> None:
    """Waits for the device."""
    if device().type == "cuda":
        torch.cuda.synchronize()


def peak_bytes(run: Run) -> int:
    """The peak that a pass allocates beyond what was there before it, by PyTorch's profiler on the CPU, by its allocator on a GPU."""
    if device().type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    changes = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    level = peak = 0
    for event in sorted(changes, key=lambda event: event.start_ns()):
        level += event.nbytes()
        peak = max(peak, level)
    return peak
