"""What quantization-aware training costs: seconds and peak memory of a fine-tuning step and of a joint step over a float step.

    python benchmarks/training_cost.py [--steps 5] [--batch-size 128] [--json FILE]

ResNet-20 on random 32 x 32 images, the three sides in turn in the same run, medians. Peak memory is what the process allocates
for two steps beyond what it holds before: the resident set of a fresh process on the CPU (Linux), PyTorch's allocator on a GPU.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from bitalloc import Bits, JointSettings, Policy, describe, first_last_pins, quantize, search_space
from bitalloc.models import resnet20
from bitalloc.sensitivity import JointStep
from bitalloc.training import cross_entropy_loss, device, loss_step, sgd
from bitalloc.wrap import calibrate, prepare_joint

CANDIDATES = (6, 5, 4, 3, 2)
Batch = tuple[Tensor, Tensor]


def training_step(model: nn.Module, step: Callable[[nn.Module, Batch], float], batch: Batch) -> Callable[[], None]:
    optimizer = sgd(model.train(), 0.01)

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        step(model, batch)
        optimizer.step()

    run()  # momentum buffers, memory pools
    return run


def seconds(run: Callable[[], None]) -> float:
    start = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def peak_bytes(name: str, batch_size: int) -> int:
    """Peak memory of two steps beyond what was there before; on the CPU in a process of its own, by its resident set."""
    if torch.cuda.is_available():
        run = sides(random_batch(batch_size))[name]
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    command = [sys.executable, __file__, "--batch-size", str(batch_size), "--peak-of", name]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def print_peak(name: str, batch_size: int) -> None:
    batch = random_batch(batch_size)
    model, step = models(batch)[name]
    reset_resident_peak()
    before = resident_peak()
    run = training_step(model, step, batch)
    run()
    print(resident_peak() - before)


def resident_peak() -> int:
    """The largest resident set since the last reset, in bytes (Linux)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def reset_resident_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def random_batch(batch_size: int) -> Batch:
    torch.manual_seed(0)
    return torch.randn(batch_size, 3, 32, 32, device=device()), torch.randint(10, (batch_size,), device=device())


def models(batch: Batch) -> dict[str, tuple[nn.Module, Callable[[nn.Module, Batch], float]]]:
    loss_fn = cross_entropy_loss()
    floating = resnet20().to(device())
    description = describe(floating, batch[0][:1])
    space = search_space(description.layers, CANDIDATES, pins=first_last_pins(description))
    # Calibrated on few images, so that it does not set the peak.
    few = [(batch[0][:2], batch[1][:2])]
    joint = prepare_joint(floating, space, description)
    calibrate(joint, few)
    w4a4 = quantize(floating, Policy.uniform(description.layers, Bits(4, 4), first_last_pins(description)), calibration=few)
    return {
        "float": (floating, loss_step(loss_fn)),
        "fine-tuning w4a4": (w4a4, loss_step(loss_fn)),
        "joint": (joint, JointStep(space, loss_fn, JointSettings())),
    }


def sides(batch: Batch) -> dict[str, Callable[[], None]]:
    return {name: training_step(model, step, batch) for name, (model, step) in models(batch).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak_of:
        print_peak(arguments.peak_of, arguments.batch_size)
        return
    runs = sides(random_batch(arguments.batch_size))
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(arguments.steps):
        for name, run in runs.items():
            times[name].append(seconds(run))
    medians = {name: statistics.median(values) for name, values in times.items()}
    peaks = {name: peak_bytes(name, arguments.batch_size) for name in runs}
    passes = len(CANDIDATES) + 1
    report = {
        "float_seconds": medians["float"],
        "finetune_over_float_time": medians["fine-tuning w4a4"] / medians["float"],
        "joint_over_float_time": medians["joint"] / medians["float"],
        "joint_over_passes_float_time": medians["joint"] / medians["float"] / passes,
        "finetune_over_float_peak": peaks["fine-tuning w4a4"] / peaks["float"],
        "joint_over_float_peak": peaks["joint"] / peaks["float"],
    }
    print(f"ResNet-20, batch {arguments.batch_size}, {device()}, {torch.get_num_threads()} threads, median of {arguments.steps} steps")
    for name, value in report.items():
        print(f"{name:30} {value:8.3f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
