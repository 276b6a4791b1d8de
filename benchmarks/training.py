"""What fake quantization costs: forward and backward of one tensor, over ``relu`` and over plain tensor operations.

    OMP_NUM_THREADS=1 python benchmarks/training.py [--repeats 15] [--json FILE]

The three sides in turn in the same run, medians, float32 on the CPU, one step a tensor, unsigned 4 bits, gradients of the tensor and
of the step. Memory is the peak that a pass allocates beyond what was there before it, by PyTorch's profiler.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from bitalloc.quantizers import FakeQuantizeMode, fake_quantize, use_fake_quantize

MEGABYTES = (8, 256)


def relu_pass(x: Tensor, incoming: Tensor) -> Callable[[], None]:
    def run() -> None:
        torch.relu(x).backward(incoming)
        x.grad = None

    return run


def quantize_pass(x: Tensor, incoming: Tensor, mode: FakeQuantizeMode) -> Callable[[], None]:
    step = torch.tensor([0.2], requires_grad=True)

    def run() -> None:
        with use_fake_quantize(mode):
            fake_quantize(x, step, 0, 15, 1e-3).backward(incoming)
        x.grad = step.grad = None

    return run


def sides(megabytes: int) -> dict[str, Callable[[], None]]:
    generator = torch.Generator().manual_seed(0)
    shape = (megabytes * 2**18 // (64 * 32 * 32), 64, 32, 32)
    x, incoming = torch.randn(shape, generator=generator).requires_grad_(), torch.randn(shape, generator=generator)
    return {
        "relu": relu_pass(x, incoming),
        "fused": quantize_pass(x, incoming, "fused"),
        "plain": quantize_pass(x, incoming, "reference"),
    }


def median_seconds(runs: dict[str, Callable[[], None]], repeats: int) -> dict[str, float]:
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()  # the kernel is compiled, the pools are filled
    for _ in range(repeats):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def peak_bytes(run: Callable[[], None]) -> int:
    """The largest sum of allocations less releases from the start of a pass on."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    changes = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    level = peak = 0
    for event in sorted(changes, key=lambda event: event.start_ns()):
        level += event.nbytes()
        peak = max(peak, level)
    return peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    report: dict[str, float] = {}
    print(f"CPU, {torch.get_num_threads()} threads, median of {arguments.repeats} passes")
    for megabytes in MEGABYTES:
        runs = sides(megabytes)
        medians = median_seconds(runs, arguments.repeats)
        print(f"{megabytes} MB: " + ", ".join(f"{name} {1e3 * value:.2f} ms" for name, value in medians.items()))
        report[f"fakequant_over_relu_{megabytes}mb"] = medians["fused"] / medians["relu"]
        # The key without a size is the largest tensor's, where the ratio is the smallest.
        report["plain_over_fused_time"] = medians["plain"] / medians["fused"]
        print(f"{megabytes} MB: plain over fused {report['plain_over_fused_time']:.2f}")
    report["fused_over_plain_memory"] = peak_bytes(runs["fused"]) / peak_bytes(runs["plain"])
    for name, value in report.items():
        print(f"{name:28} {value:8.3f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
