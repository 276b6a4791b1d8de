"""Batches of images that are held in memory."""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bitalloc.data.pixels import Crops, normalise
from bitalloc.errors import ConfigError


def generator(*key: object) -> torch.Generator:
    """A random generator (on the CPU) that is a pure function of ``key``, apart from the global random state."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


@dataclass(eq=False)
class ImageBatches:
    """Images in memory, given in normalised batches.

    Order and augmentation of a batch are a pure function of (seed, epoch, position of the batch), whatever was read before
    and whatever the global random state is: a resumed run sees the same batches bit for bit.

    Attributes:
        images: uint8 (N, C, H, W). Batches are made on the device of this tensor.
        labels: int64 (N,).
        batch_size: images of a batch; the last one of an epoch may be smaller, so that every image is seen.
        mean: for every channel, of pixels scaled to 0..1; subtracted.
        std: for every channel; divided by, after the mean is subtracted.
        seed: of order and augmentation.
        shuffle: a new order every epoch.
        crop_padding: pixels of black border from which a crop of the original size is drawn at random; 0 for none.
        flip: half of the images are mirrored left to right, at random.
        part: which part of every batch is given, and of how many; see :meth:`share`.
    """

    images: Tensor
    labels: Tensor
    batch_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    seed: int = 0
    shuffle: bool = False
    crop_padding: int = 0
    flip: bool = False
    part: tuple[int, int] = (0, 1)

    def __post_init__(self) -> None:
        check_batch_size(self.batch_size)
        if self.images.dtype != torch.uint8 or self.images.dim() != 4:
            raise ConfigError(f"the images are {self.images.dtype} of shape {tuple(self.images.shape)}, expected uint8 (N, C, H, W).")
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            shape = tuple(self.labels.shape)
            raise ConfigError(f"the labels are {self.labels.dtype} of shape {shape}, expected int64 ({len(self.images)},): one an image.")
        channels = self.images.shape[1]
        if len(self.mean) != channels or len(self.std) != channels:
            raise ConfigError(f"mean and std have {len(self.mean)} and {len(self.std)} values, expected {channels}: one a channel.")
        self.set_epoch(0)

    def __len__(self) -> int:
        return math.ceil(len(self.images) / self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return (self.batch(index) for index in range(len(self)))

    @property
    def image_count(self) -> int:
        """Images of an epoch."""
        return image_count(len(self.images), self.batch_size, self.part)

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch whose order and augmentation the next batches have. The first epoch is 0."""
        self._epoch = epoch
        count = len(self.images)
        order = torch.randperm(count, generator=generator(self.seed, epoch, "order")) if self.shuffle else torch.arange(count)
        self._order = order.to(self.images.device)

    def batch(self, index: int) -> tuple[Tensor, Tensor]:
        """Batch ``index`` of the current epoch: float32 (n, C, H, W) and int64 (n,). Raises IndexError beyond the epoch."""
        check_position(index, len(self))
        whole = self._order[index * self.batch_size : (index + 1) * self.batch_size]
        own = part_of(len(whole), self.part)
        chosen = whole[own]
        images = self.images.index_select(0, chosen)
        if self.crop_padding or self.flip:
            random = generator(self.seed, self._epoch, index)
            images = Crops.draw(len(whole), self.crop_padding, self.flip, random)[own].apply(images)
        return normalise(images, self.mean, self.std), self.labels[chosen]

    def share(self, rank: int, ranks: int) -> "ImageBatches":
        """The part number ``rank`` of ``ranks`` of every batch: together they are what one process would see, bit for bit.

        Raises:
            ConfigError: the last batch of an epoch has fewer images than there are ranks.
        """
        check_share(len(self.images), self.batch_size, ranks)
        shared = replace(self, part=(rank, ranks))
        shared.set_epoch(self._epoch)
        return shared

    def fingerprint(self) -> str:
        """SHA-256 of shape, images and labels, in hexadecimal."""
        digest = hashlib.sha256(repr(tuple(self.images.shape)).encode())
        digest.update(self.images.cpu().contiguous().numpy().data)
        digest.update(self.labels.cpu().contiguous().numpy().data)
        return digest.hexdigest()

    def to(self, device: torch.device | str) -> "ImageBatches":
        """The same batches, made on ``device``: it holds all images."""
        moved = replace(self, images=self.images.to(device), labels=self.labels.to(device))
        moved.set_epoch(self._epoch)
        return moved


def check_batch_size(batch_size: int) -> None:
    """Raises ConfigError unless ``batch_size`` is at least 1."""
    if batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size}, expected at least 1.")


def part_of(count: int, part: tuple[int, int]) -> slice:
    """Where part ``(number, of)`` lies in a batch of ``count`` images; sizes differ by at most one."""
    number, parts = part
    return slice(count * number // parts, count * (number + 1) // parts)


def image_count(total: int, batch_size: int, part: tuple[int, int]) -> int:
    """Images in a part of all batches of an epoch of ``total`` images."""
    full, rest = divmod(total, batch_size)
    whole, last = part_of(batch_size, part), part_of(rest, part)
    return full * len(range(batch_size)[whole]) + len(range(rest)[last])


def check_share(total: int, batch_size: int, ranks: int) -> None:
    """Raises ConfigError if the smallest batch has fewer than ``ranks`` images."""
    smallest = min(total % batch_size or batch_size, total)
    if smallest < ranks:
        raise ConfigError(
            f"a batch of an epoch of {total} images has {smallest} of them, fewer than the {ranks} processes that share it: "
            "choose another batch_size or fewer processes."
        )


def check_position(index: int, count: int) -> None:
    """Raises IndexError unless ``index`` is one of ``count`` batches."""
    if not 0 <= index < count:
        raise IndexError(f"batch {index} of {count}")
