"""Batches of images that are held in memory."""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

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
        self._epoch = 0
        self._order = self._epoch_order()

    def __len__(self) -> int:
        return math.ceil(len(self.images) / self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return (self.batch(index) for index in range(len(self)))

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch whose order and augmentation the next batches have. The first epoch is 0."""
        self._epoch = epoch
        self._order = self._epoch_order()

    def batch(self, index: int) -> tuple[Tensor, Tensor]:
        """Batch ``index`` of the current epoch: float32 (n, C, H, W) and int64 (n,). Raises IndexError beyond the epoch."""
        if not 0 <= index < len(self):
            raise IndexError(f"batch {index} of {len(self)}")
        chosen = self._order[index * self.batch_size : (index + 1) * self.batch_size]
        images = self.images[chosen]
        if self.crop_padding or self.flip:
            images = self._augment(images, generator(self.seed, self._epoch, index))
        mean = images.new_tensor(self.mean, dtype=torch.float32).view(-1, 1, 1)
        std = images.new_tensor(self.std, dtype=torch.float32).view(-1, 1, 1)
        return (images.float() / 255 - mean) / std, self.labels[chosen]

    def fingerprint(self) -> str:
        """SHA-256 of shape, images and labels, in hexadecimal."""
        digest = hashlib.sha256(repr(tuple(self.images.shape)).encode())
        digest.update(self.images.cpu().contiguous().numpy().data)
        digest.update(self.labels.cpu().contiguous().numpy().data)
        return digest.hexdigest()

    def to(self, device: torch.device | str) -> "ImageBatches":
        """The same batches, made on ``device``."""
        moved = replace(self, images=self.images.to(device), labels=self.labels.to(device))
        moved.set_epoch(self._epoch)
        return moved

    def _epoch_order(self) -> Tensor:
        if not self.shuffle:
            return torch.arange(len(self.images), device=self.images.device)
        order = torch.randperm(len(self.images), generator=generator(self.seed, self._epoch, "order"))
        return order.to(self.images.device)

    def _augment(self, images: Tensor, random: torch.Generator) -> Tensor:
        # Random numbers are drawn on the CPU, so that every device sees the same augmentation.
        count, channels, height, width = images.shape
        padding = self.crop_padding
        top = torch.randint(2 * padding + 1, (count, 1), generator=random)
        left = torch.randint(2 * padding + 1, (count, 1), generator=random)
        rows, columns = torch.arange(height) + top, torch.arange(width) + left
        if self.flip:
            mirrored = torch.rand(count, 1, generator=random) < 0.5
            columns = torch.where(mirrored, columns.flip(1), columns)
        rows, columns = rows.to(images.device), columns.to(images.device)
        padded = torch.nn.functional.pad(images, (padding,) * 4)
        sample = torch.arange(count, device=images.device).view(-1, 1, 1, 1)
        channel = torch.arange(channels, device=images.device).view(1, -1, 1, 1)
        return padded[sample, channel, rows[:, None, :, None], columns[:, None, None, :]]


def check_batch_size(batch_size: int) -> None:
    """Raises ConfigError unless ``batch_size`` is at least 1."""
    if batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size}, expected at least 1.")
