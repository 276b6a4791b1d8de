"""Whether the passes of a joint step are worth merging into one: a convolution a width against one grouped convolution for all.

    OMP_NUM_THREADS=1 python benchmarks/merged_passes.py [--widths 5] [--batch-size 128] [--steps 7] [--json FILE]

Every pass of a joint step has other weights, those quantized at its width. Merged, images of one batch lie side by side in the channels
and a convolution has one group a width. Forward and backward of the 3 x 3 convolutions of ResNet-20's stages and of the wider ones of
ResNet-18 at 64 x 64, medians, the sides in turn. A ratio above 1 says that merged is slower.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import torch
from measuring import median_seconds
from torch import Tensor
from torch.nn import functional as F

from bitalloc.training import device, keep_freed_memory

SHAPES = ((16, 32), (32, 16), (64, 8), (128, 16), (256, 8))
"""Channels, and pixels of a side."""


def sides(widths: int, batch_size: int, channels: int, pixels: int) -> dict[str, Callable[[], None]]:
    """Both ways, on the same numbers."""
    torch.manual_seed(0)
    images = [torch.randn(batch_size, channels, pixels, pixels, device=device(), requires_grad=True) for _ in range(widths)]
    weights = [torch.randn(channels, channels, 3, 3, device=device(), requires_grad=True) for _ in range(widths)]
    merged_images, merged_weights = (torch.cat(each, dim).detach().requires_grad_() for each, dim in ((images, 1), (weights, 0)))

    def passes() -> None:
        for image, weight in zip(images, weights, strict=True):
            _step(F.conv2d(image, weight, padding=1), image, weight)

    def merged() -> None:
        _step(F.conv2d(merged_images, merged_weights, padding=1, groups=widths), merged_images, merged_weights)

    return {"passes": passes, "merged": merged}


def _step(out: Tensor, *leaves: Tensor) -> None:
    torch.autograd.grad(out, leaves, torch.ones_like(out))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--widths", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    keep_freed_memory()
    report = {}
    for channels, pixels in SHAPES:
        medians = median_seconds(sides(arguments.widths, arguments.batch_size, channels, pixels), arguments.steps)
        ratio = report[f"{channels}x{pixels}x{pixels}"] = medians["merged"] / medians["passes"]
        told = ", ".join(f"{name} {1000 * value:.0f} ms" for name, value in medians.items())
        print(f"{channels} channels, {pixels} x {pixels}: {told}, merged over passes {ratio:.2f}", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
