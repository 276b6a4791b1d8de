"""What fake quantization costs: forward and backward of one tensor, over ``relu`` and over plain tensor operations."""

import torch
from measuring import Run, median_seconds, peak_bytes
from torch import Tensor

from bitalloc.quantizers import FakeQuantizeMode, fake_quantize, use_fake_quantize
from bitalloc.training import device

MEGABYTES = (8, 256)


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
    report["fused_over_plain_memory"] = peak_bytes(runs["fused"]) / peak_bytes(runs["plain"])
    return report


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
