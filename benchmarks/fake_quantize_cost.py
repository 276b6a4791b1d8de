"""What fake quantization costs: forward and backward of one tensor, over ``relu`` and over plain tensor operations."""

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from bitalloc.quantizers import FakeQuantizeMode, fake_quantize, use_fake_quantize
from bitalloc.training import device

MEGABYTES = (8, 256)
Run = Callable[[], object]


def figures(repeats: int) -> dict[str, float]:
    """The sides in turn in the same run, medians, float32, one step a tensor, unsigned 4 bits, gradients of the tensor and of the step."""
    report: dict[str, float] = {}
    for megabytes in MEGABYTES:
        runs = _sides(megabytes)
        medians = median_seconds(runs, repeats)
        print(f"{megabytes} MB: " + ", ".join(f"{name} {1e3 * value:.2f} ms" for name, value in medians.items()), flush=True)
        report[f"fakequant_over_relu_{megabytes}mb"] = medians["fused"] / medians["relu"]
        # The key without a size is the largest tensor's, where the ratio is the smallest.
        report["plain_over_fused_time"] = medians["plain"] / medians["fused"]
        print(f"{megabytes} MB: plain over fused {report['plain_over_fused_time']:.2f}", flush=True)
    report["fused_over_plain_memory"] = _peak_bytes(runs["fused"]) / _peak_bytes(runs["plain"])
    return report


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


def _sides(megabytes: int) -> dict[str, Run]:
    generator = torch.Generator().manual_seed(0)
    shape = (megabytes * 2**18 // (64 * 32 * 32), 64, 32, 32)
    x = torch.randn(shape, generator=generator).to(device()).requires_grad_()
    incoming = torch.randn(shape, generator=generator).to(device())
    return {"relu": _relu(x, incoming), "fused": _quantize(x, incoming, "fused"), "plain": _quantize(x, incoming, "reference")}


def _relu(x: Tensor, incoming: Tensor) -> Run:
    def run() -> None:
        torch.relu(x).backward(incoming)
        x.grad = None

    return run


def _quantize(x: Tensor, incoming: Tensor, mode: FakeQuantizeMode) -> Run:
    step = torch.tensor([0.2], device=x.device, requires_grad=True)

    def run() -> None:
        with use_fake_quantize(mode):
            fake_quantize(x, step, 0, 15, 1e-3).backward(incoming)
        x.grad = step.grad = None

    return run


def _peak_bytes(run: Run) -> int:
    """The peak that a pass allocates beyond what was there before it."""
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
