"""The parts of a data set, and what a part must be able to do."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Batches(Protocol):
    """An iterable of (images, labels) batches that gives the same batches again for the same epoch.

    A data factory of your own returns objects like this; any class with these members will do.
    """

    batch_size: int
    """Images in every batch but perhaps the last."""

    def __len__(self) -> int:
        """Number of batches of an epoch."""
        ...

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of the current epoch: float32 (N, C, H, W) and int64 (N,)."""
        ...

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch whose order and augmentation the next batches have."""
        ...

    def batch(self, index: int) -> tuple[Tensor, Tensor]:
        """One batch of the current epoch by its position, so that a resumed run can start in the middle."""
        ...

    def fingerprint(self) -> str:
        """A hash of the content, to notice that a run folder belongs to other data."""
        ...


@dataclass(frozen=True, slots=True)
class Splits:
    """The parts of a data set.

    Attributes:
        train: shuffled and augmented training images.
        calibration: the same training images without augmentation, for step-size initialisation and batch-norm statistics.
        valid: a held-out part of the training data, for every choice that is made along the way.
        test: for final figures only; nothing is chosen by it.
        example: one normalised image, float32 (1, C, H, W).
        num_classes: number of classes; labels are ``0 .. num_classes - 1``.
    """

    train: Batches
    calibration: Batches
    valid: Batches
    test: Batches
    example: Tensor
    num_classes: int


def stratified_order(labels: Tensor) -> Tensor:
    """A fixed order of the samples (N,) in which every stretch has about the class shares of the whole.

    The order depends on the labels alone and on no seed: a split made with it is the same in every run.
    """
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    position = torch.empty(len(labels), dtype=torch.float64)
    for label in sorted(set(labels.tolist())):
        members = (labels[shuffled] == label).nonzero()[:, 0]
        position[members] = (torch.arange(len(members), dtype=torch.float64) + 0.5) / len(members)
    return shuffled[position.argsort(stable=True)]
