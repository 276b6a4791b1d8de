"""What a W4A4 fine-tuning step costs over a float step: time in turn in one process, peak memory in a process of each side's own."""

import argparse
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from measuring import median_seconds
from torch import Tensor, nn

from bitalloc import Bits, Policy, describe, first_last_pins, quantize
from bitalloc.models import resnet18, resnet20
from bitalloc.training import cross_entropy_loss, device, keep_freed_memory, loss_step, sgd

BATCH_SIZE = 128
Batch = tuple[Tensor, Tensor]
NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "resnet20": (lambda: resnet20(10), 32),
    "resnet18": (lambda: resnet18(100), 64),
}


def figures(steps: int) -> dict[str, float]:
    """``qat_over_float_<network>`` and ``qat_peak_over_float``, the greater of the two networks'."""
    report, peaks = {}, []
    for network in NETWORKS:
        models, batch = sides(network)
        medians = median_seconds({side: training_step(model, batch) for side, model in models.items()}, steps)
        report[f"qat_over_float_{network}"] = medians["fine-tuning"] / medians["float"]
        bytes_of = {side: peak_bytes(network, side) for side in models}
        peaks.append(bytes_of["fine-tuning"] / bytes_of["float"])
        told = ", ".join(f"{side} {medians[side]:.3f} s and {bytes_of[side] / 2**20:.0f} MB" for side in models)
        print(f"{network}, batch {BATCH_SIZE}: {told}; peak {peaks[-1]:.3f}", flush=True)
    return {**report, "qat_peak_over_float": max(peaks)}


def sides(network: str) -> tuple[dict[str, nn.Module], Batch]:
    """The float network and the same at W4A4 (first and last layer at 8 bits), with a batch of random images."""
    torch.manual_seed(0)
    make, size = NETWORKS[network]
    images = torch.randn(BATCH_SIZE, 3, size, size, device=device())
    labels = torch.randint(10, (BATCH_SIZE,), device=device())
    floating = make().to(device())
    description = describe(floating, images[:1])
    policy = Policy.uniform(description.layers, Bits(4, 4), first_last_pins(description))
    few = [(images[:2], labels[:2])]  # so that calibration does not set the peak of memory
    return {"float": floating, "fine-tuning": quantize(floating, policy, calibration=few)}, (images, labels)


def training_step(model: nn.Module, batch: Batch) -> Callable[[], None]:
    """One step of SGD."""
    optimizer, step = sgd(model.train(), 0.01), loss_step(cross_entropy_loss())

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        step(model, batch)
        optimizer.step()

    return run


def peak_bytes(network: str, side: str) -> int:
    """What two steps allocate at most beyond what was there before; on the CPU by the resident set of a process of its own (Linux)."""
    if device().type == "cuda":
        models, batch = sides(network)
        run = training_step(models[side], batch)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        run()
        return torch.cuda.max_memory_allocated() - before
    command = [sys.executable, __file__, "--network", network, "--side", side]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _resident_peak() -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def main() -> None:
    """Prints the peak of one side."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", choices=NETWORKS, required=True)
    parser.add_argument("--side", choices=("float", "fine-tuning"), required=True)
    arguments = parser.parse_args()
    keep_freed_memory()
    models, batch = sides(arguments.network)
    run = training_step(models[arguments.side], batch)
    Path("/proc/self/clear_refs").write_text("5")  # from here on
    before = _resident_peak()
    run()
    run()
    print(_resident_peak() - before)


if __name__ == "__main__":
    main()
