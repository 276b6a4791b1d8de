"""Batches of images that are decoded when they are needed."""

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from bitalloc.data import optional
from bitalloc.data.batches import generator
from bitalloc.errors import FileError

_MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
_STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
_RESIZE = 256 / 224  # shorter side before the centre crop, over the crop: the usual ImageNet evaluation
_AREA = (0.08, 1.0)
_RATIO = (3 / 4, 4 / 3)


@dataclass(frozen=True, slots=True)
class Sample:
    """One image file and its class."""

    path: Path
    label: int


@dataclass(eq=False)
class FolderBatches:
    """Image files, given in normalised batches; order and augmentation are a pure function of (seed, epoch, position).

    Attributes:
        samples: the images.
        root: folder to which the paths in :meth:`fingerprint` are relative.
        batch_size: images of a batch; the last one of an epoch may be smaller.
        image_size: pixels of a side.
        num_workers: processes that decode; 0 decodes in this process.
        seed: of order and augmentation.
        shuffle: a new order every epoch.
        augment: random resized crop and mirroring instead of the centre.
    """

    samples: Sequence[Sample]
    root: Path
    batch_size: int
    image_size: int
    num_workers: int
    seed: int
    shuffle: bool = False
    augment: bool = False

    def __post_init__(self) -> None:
        self.set_epoch(0)

    def __len__(self) -> int:
        return math.ceil(len(self.samples) / self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        if self.num_workers == 0:
            yield from (self.batch(index) for index in range(len(self)))
            return
        # The loader draws a seed for its workers; from a generator of its own it leaves the global random state alone.
        loader = DataLoader(_WholeBatches(self), batch_size=None, num_workers=self.num_workers, generator=torch.Generator())
        for item in loader:
            if isinstance(item, str):
                raise FileError(item)
            yield item

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch whose order and augmentation the next batches have. The first epoch is 0."""
        self._epoch = epoch
        count = len(self.samples)
        self._order = torch.randperm(count, generator=generator(self.seed, epoch, "order")) if self.shuffle else torch.arange(count)

    def batch(self, index: int) -> tuple[Tensor, Tensor]:
        """Batch ``index`` of the current epoch: float32 (n, 3, size, size) and int64 (n,).

        Raises:
            IndexError: beyond the epoch.
            FileError: an image is missing or corrupt.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"batch {index} of {len(self)}")
        chosen = self._order[index * self.batch_size : (index + 1) * self.batch_size].tolist()
        return torch.stack([self.load(i) for i in chosen]), torch.tensor([self.samples[i].label for i in chosen])

    def load(self, sample: int) -> Tensor:
        """One image, as the current epoch shows it: float32 (3, size, size). Raises FileError if it is missing or corrupt."""
        path, size = self.samples[sample].path, self.image_size
        pillow = optional.load("PIL.Image", "pillow", "reading an image folder")
        try:
            with pillow.open(path) as opened:
                image = opened.convert("RGB")
        except (OSError, ValueError, SyntaxError) as error:
            raise FileError(f"{path} cannot be read as an image ({error}): replace the file or remove it.") from error
        mirrored = False
        box = _centre_box(image.width, image.height, round(size * _RESIZE) / size)
        if self.augment:
            random = generator(self.seed, self._epoch, "image", sample)
            box = _random_box(image.width, image.height, random)
            mirrored = bool(torch.rand((), generator=random) < 0.5)
        pixels = torch.from_numpy(numpy.array(image.resize((size, size), pillow.Resampling.BILINEAR, box=box)))
        tensor = (pixels.permute(2, 0, 1).float() / 255 - _MEAN) / _STD
        return tensor.flip(2) if mirrored else tensor

    def fingerprint(self) -> str:
        """SHA-256 of the relative paths, sizes and labels; the images themselves are not read, which would take hours."""
        digest = hashlib.sha256()
        for sample in self.samples:
            path = sample.path.relative_to(self.root).as_posix()
            digest.update(f"{path}\0{sample.path.stat().st_size}\0{sample.label}\n".encode())
        return digest.hexdigest()


class _WholeBatches(Dataset[Any]):
    """Batches as items, so that a worker makes a whole one. A bad file is given as its message: a worker would wrap the error."""

    def __init__(self, batches: FolderBatches) -> None:
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor] | str:
        try:
            return self._batches.batch(index)
        except FileError as error:
            return str(error)


def _centre_box(width: int, height: int, margin: float) -> tuple[float, float, float, float]:
    """The centred square of ``1 / margin`` of the shorter side: resizing it equals resizing the image and cropping."""
    side = min(width, height) / margin
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def _random_box(width: int, height: int, random: torch.Generator) -> tuple[float, float, float, float]:
    """A box of random area and aspect ratio inside the image; after ten misses, the largest centred square."""
    for _ in range(10):
        share, shape, x, y = torch.rand(4, generator=random, dtype=torch.float64).tolist()
        area = width * height * (_AREA[0] + share * (_AREA[1] - _AREA[0]))
        ratio = math.exp(math.log(_RATIO[0]) + shape * (math.log(_RATIO[1]) - math.log(_RATIO[0])))
        box_width, box_height = math.sqrt(area * ratio), math.sqrt(area / ratio)
        if box_width <= width and box_height <= height:
            left, top = x * (width - box_width), y * (height - box_height)
            return left, top, left + box_width, top + box_height
    return _centre_box(width, height, 1.0)
