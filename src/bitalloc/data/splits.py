"""The parts of a data set, and what a part must be able to do."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from bitalloc.errors import ConfigError, FileError


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
        num_classes: number of classes, labels are ``0 .. num_classes - 1``; for the reader, as the library takes the classes from
            the model's output. Default None: not known.
    """

    train: Batches
    calibration: Batches
    valid: Batches
    test: Batches
    example: Tensor
    num_classes: int | None = None

    def to(self, device: torch.device | str) -> "Splits":
        """Parts that can make their batches on ``device`` (they have a method ``to``) do so; the rest stays as it is."""
        parts = {name: getattr(self, name) for name in ("train", "calibration", "valid", "test")}
        return replace(self, **{name: part.to(device) for name, part in parts.items() if hasattr(part, "to")})


def stratified_order(labels: Tensor, seed: int = 0) -> Tensor:
    """An order of the samples (N,) in which every stretch has about the class shares of the whole.

    The order depends on the labels and on ``seed`` alone: a split made with the default is the same in every run.
    """
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    position = torch.empty(len(labels), dtype=torch.float64)
    for label in sorted(set(labels.tolist())):
        members = (labels[shuffled] == label).nonzero()[:, 0]
        position[members] = (torch.arange(len(members), dtype=torch.float64) + 0.5) / len(members)
    return shuffled[position.argsort(stable=True)]


def subset(numbers: Tensor, labels: Tensor, fraction: float, seed: int) -> Tensor:
    """A share of the images ``numbers``, about the same of every class, drawn by ``seed``; all of them as they are if it is 1.

    Args:
        numbers: int64 (N,).
        labels: of all images; ``labels[numbers]`` are those of the images to draw from.
        fraction: above 0 and at most 1.
        seed: of the draw.

    Raises:
        ConfigError: a class would be left without an image.
    """
    if fraction == 1:
        return numbers
    members = labels[numbers]
    chosen = stratified_order(members, seed)[: round(fraction * len(numbers))]
    lost = sorted(set(members.tolist()) - set(members[chosen].tolist()))
    if lost:
        raise ConfigError(f"fraction = {fraction:g} leaves {len(chosen)} images and none of class {lost[0]}: give a larger fraction.")
    return numbers[chosen]


def folder_with(file: str, root: Path | None, name: str) -> Path:
    """The folder that holds ``file``: ``root / name`` or ``root`` itself.

    Raises:
        ConfigError: ``root`` is None.
        FileError: neither holds it.
    """
    if root is None:
        raise ConfigError(f"{name} needs a data root: the folder that holds {file}, or {name}/ with it.")
    for folder in (Path(root) / name, Path(root)):
        if (folder / file).is_file():
            return folder
    raise FileError(f"{root} has no {file} and no {name}/{file}: give the folder that holds the {name} files.")
