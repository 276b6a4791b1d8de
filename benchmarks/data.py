"""Whether the data keep up: images a second of every loader alone, and the share of a float ResNet-20 step that reading takes.

    python benchmarks/data.py --data-root DIR [--batches 20] [--batch-size 128] [--workers 2] [--json FILE]

The data root has cifar10/{train,test}.parquet and tiny_imagenet_100/{train,val}.parquet. For the folder some of Tiny-ImageNet's images are
written to a temporary one as files. Batches and steps (forward, backward, SGD, on the device that trains) are taken in turn, medians. The
loader alone and in turn is timed without the model beside it; with workers the share is what a training waits.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bitalloc.data import Batches, cifar10, image_folder, parquet_stream, showing_progress, tiny_imagenet
from bitalloc.data.parquet_images import ParquetImages
from bitalloc.data.parquet_schema import Columns
from bitalloc.models import resnet20
from bitalloc.training import cross_entropy_loss, device, loss_step, make_progress, sgd

_SIZE = 64
_CLASSES = 100
Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True, slots=True)
class Result:
    """Of one loader.

    Attributes:
        images_per_second: of the loader alone.
        step_seconds: of the model on its batches, without reading.
        share: of the time of a training that goes into waiting for batches.
    """

    images_per_second: float
    step_seconds: float
    share: float


def now() -> float:
    if device().type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def endless(batches: Batches) -> Iterator[Batch]:
    epoch = 0
    while True:
        batches.set_epoch(epoch)
        yield from batches
        epoch += 1


def alone(batches: Batches, count: int) -> float:
    """Images a second; the first batch, which starts the workers, is left out."""
    source = endless(batches)
    next(source)
    start = now()
    images = sum(len(next(source)[1]) for _ in range(count))
    return images / (now() - start)


def trained(batches: Batches, count: int) -> tuple[float, float]:
    """Seconds of a step, and the share of step and wait together that is wait; medians."""
    step, source = training_step(), endless(batches)
    step(next(source))
    waits, steps = [], []
    for _ in range(count):
        start = now()
        batch = next(source)
        there = now()
        step(batch)
        waits.append(there - start)
        steps.append(now() - there)
    wait, computing = statistics.median(waits), statistics.median(steps)
    return computing, wait / (wait + computing)


def training_step() -> Callable[[Batch], None]:
    model = resnet20(_CLASSES).to(device()).train()
    optimizer, step = sgd(model, 0.01), loss_step(cross_entropy_loss())

    def run(batch: Batch) -> None:
        optimizer.zero_grad(set_to_none=True)
        step(model, (batch[0].to(device()), batch[1].to(device())))
        optimizer.step()

    return run


def write_folder(source: Path, target: Path, images: int) -> None:
    """Images of Tiny-ImageNet as files, one folder a class."""
    rows = ParquetImages([source / "train.parquet"], Columns("image", "label"), _CLASSES)
    wanted = rows.labels.argsort(stable=True).view(_CLASSES, -1)[:, : max(2, images // _CLASSES)]
    for split in ("train", "val"):
        for label, members in enumerate(wanted.tolist()):
            folder = target / split / f"{label:03d}"
            folder.mkdir(parents=True)
            for number in members if split == "train" else members[:1]:
                (folder / f"{number}.jpeg").write_bytes(rows.encoded(number))


def measure(root: Path, count: int, batch_size: int, workers: int) -> dict[str, Result]:
    options: dict[str, Any] = {"batch_size": batch_size, "seed": 0}
    stream = {**options, "image_size": _SIZE, "num_workers": workers}
    tiny = root / "tiny_imagenet_100"
    with tempfile.TemporaryDirectory() as folder, showing_progress(make_progress(quiet=False)):
        write_folder(tiny, Path(folder), 2 * count * batch_size)
        loaders: dict[str, Callable[[], Any]] = {
            "cifar10_memory": lambda: cifar10(**options, root=root).to(device()),
            "tiny_imagenet_memory": lambda: tiny_imagenet(**options, root=root).to(device()),
            "tiny_imagenet_stream": lambda: parquet_stream(**stream, root=tiny).to(device()),
            "tiny_imagenet_folder": lambda: image_folder(**stream, root=Path(folder)).to(device()),
        }
        results = {}
        for name, load in loaders.items():
            batches = load().train
            rate = alone(batches, count)
            results[name] = Result(rate, *trained(batches, count))
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--batches", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    results = measure(arguments.data_root, arguments.batches, arguments.batch_size, arguments.workers)
    for name, result in results.items():
        print(f"{name}: {result.images_per_second:.0f} images/s alone, {100 * result.share:.1f} % of a step of {result.step_seconds:.3f} s")
    if arguments.json:
        values = {f"{name}_{key}": value for name, result in results.items() for key, value in asdict(result).items()}
        arguments.json.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
