"""Batches of images that are decoded when they are needed."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy
import torch
from torch import Tensor

from bitalloc.data import optional
from bitalloc.data.batches import check_batch_size, check_position, check_share, generator, image_count, part_of
from bitalloc.data.pixels import IMAGENET_MEAN, IMAGENET_STD, centre_box, normalise
from bitalloc.data.source import ImageSource
from bitalloc.data.workers import from_workers
from bitalloc.errors import ConfigError

_RESIZE = 256 / 224  # shorter side before the centre crop, over the crop: the usual ImageNet evaluation
_AREA = (0.08, 1.0)
_RATIO = (3 / 4, 4 / 3)


@dataclass(eq=False)
class StreamedBatches:
    """Images read when they are needed, given in normalised batches; each is decoded once an epoch.

    Order and augmentation are a pure function of (seed, epoch, image), whichever process reads and whatever was read before.
    Normalised with ImageNet's mean and standard deviation.

    Attributes:
        source: where the images come from.
        numbers: int64 (N,), those of the source's images that belong to this part of the data.
        batch_size: images of a batch; the last one of an epoch may be smaller.
        image_size: pixels of a side.
        num_workers: processes that read and decode ahead of the training, two batches each; 0 reads in this process.
        seed: of order and augmentation.
        shuffle: a new order every epoch.
        augment: a crop of 8 to 100 % of the area at an aspect ratio of 3/4 to 4/3, half of them mirrored, instead of the centre.
        device: where batches are normalised; workers hand over bytes.
        part: which part of every batch is given, and of how many; see :meth:`share`.
    """

    source: ImageSource
    numbers: Tensor
    batch_size: int
    image_size: int
    num_workers: int
    seed: int
    shuffle: bool = False
    augment: bool = False
    device: torch.device | str = "cpu"
    part: tuple[int, int] = (0, 1)

    def __post_init__(self) -> None:
        check_batch_size(self.batch_size)
        if self.image_size < 1 or self.num_workers < 0:
            raise ConfigError(
                f"image_size is {self.image_size}, num_workers {self.num_workers}; expected at least 1 and 0 or more: "
                "0 reads in this process."
            )
        self.set_epoch(0)

    def __len__(self) -> int:
        return math.ceil(len(self.numbers) / self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self.batches_from(0)

    @property
    def image_count(self) -> int:
        """Images of an epoch."""
        return image_count(len(self.numbers), self.batch_size, self.part)

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch whose order and augmentation the next batches have. The first epoch is 0."""
        self._epoch = epoch
        self._order = self.source.shuffled(self.numbers, generator(self.seed, epoch, "order")) if self.shuffle else self.numbers

    def batch(self, index: int) -> tuple[Tensor, Tensor]:
        """Batch ``index`` of the current epoch, read in this process: float32 (n, 3, size, size) and int64 (n,).

        Raises:
            IndexError: beyond the epoch.
            FileError: an image is missing or corrupt.
        """
        return self._finish(self.pixels(index))

    def batches_from(self, index: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of the current epoch from position ``index`` on, read ahead by the workers.

        Raises:
            FileError: an image is missing or corrupt.
            TrainingError: a worker died.
        """
        if self.num_workers == 0:
            return (self.batch(number) for number in range(index, len(self)))
        return (self._finish(made) for made in from_workers(self, index))

    def pixels(self, index: int) -> tuple[Tensor, Tensor]:
        """As :meth:`batch`, not normalised: uint8 images on the CPU. What a worker makes."""
        chosen = self._members(index)
        return torch.stack([self._load(number) for number in chosen.tolist()]), self.source.labels[chosen]

    def origin(self, index: int) -> str:
        """The file (and row) of the first image of a batch, for messages."""
        return self.source.origin(int(self._members(index)[0]))

    def example(self) -> Tensor:
        """One image: float32 (1, 3, size, size)."""
        return normalise(self._load(int(self.numbers[0]))[None], IMAGENET_MEAN, IMAGENET_STD)

    def fingerprint(self) -> str:
        """A SHA-256 of what the source knows of these images without reading all of them."""
        return self.source.fingerprint(self.numbers)

    def to(self, device: torch.device | str) -> "StreamedBatches":
        """The same batches, sent to ``device`` as bytes and normalised there."""
        moved = replace(self, device=device)
        moved.set_epoch(self._epoch)
        return moved

    def share(self, rank: int, ranks: int) -> "StreamedBatches":
        """The part number ``rank`` of ``ranks`` of every batch; only its images are read.

        Raises:
            ConfigError: the last batch of an epoch has fewer images than there are ranks.
        """
        check_share(len(self.numbers), self.batch_size, ranks)
        shared = replace(self, part=(rank, ranks))
        shared.set_epoch(self._epoch)
        return shared

    def _members(self, index: int) -> Tensor:
        check_position(index, len(self))
        whole = self._order[index * self.batch_size : (index + 1) * self.batch_size]
        return whole[part_of(len(whole), self.part)]

    def _finish(self, made: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        images, labels = (tensor.to(self.device) for tensor in made)
        return normalise(images, IMAGENET_MEAN, IMAGENET_STD), labels

    def _load(self, number: int) -> Tensor:
        """One image, as the current epoch shows it: uint8 (3, size, size)."""
        image: Any = self.source.image(number)
        size, mirrored = self.image_size, False
        box = centre_box(image.width, image.height, round(size * _RESIZE) / size)
        if self.augment:
            random = generator(self.seed, self._epoch, "image", number)
            box = _random_box(image.width, image.height, random)
            mirrored = bool(torch.rand((), generator=random) < 0.5)
        resampling = optional.load("PIL.Image", "pillow", "resizing images").Resampling.BILINEAR
        pixels = torch.from_numpy(numpy.array(image.resize((size, size), resampling, box=box))).permute(2, 0, 1)
        return pixels.flip(2) if mirrored else pixels


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
    return centre_box(width, height)
