"""Images in one folder a class, as ImageNet is usually laid out; read from the disk batch by batch."""

import hashlib
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from bitalloc.data import optional
from bitalloc.data.batches import check_batch_size
from bitalloc.data.folder_images import FolderImages, class_names
from bitalloc.data.pixels import check_split
from bitalloc.data.splits import Splits, subset
from bitalloc.data.streamed_batches import StreamedBatches
from bitalloc.errors import ConfigError, FileError


def image_folder(
    *,
    batch_size: int,
    seed: int,
    root: Path | None,
    image_size: int = 224,
    num_workers: int = 4,
    valid_fraction: float = 0.01,
    fraction: float = 1.0,
) -> Splits:
    """Images under ``root/train/<class>/`` and ``root/val/<class>/`` (the latter are the test split).

    Training images: a crop of 8 to 100 % of the area at an aspect ratio of 3/4 to 4/3, resized to ``image_size``, mirrored at random.
    Others: the centre after the shorter side is resized to ``image_size * 256 / 224``. Normalised with ImageNet's mean and
    standard deviation. Labels number the class folders of ``train`` in alphabetical order.

    Args:
        batch_size: images of a batch.
        seed: of order, augmentation and subset; the split does not depend on it.
        root: the folder that holds ``train`` and ``val``.
        image_size: pixels of a side of the square images that the model gets.
        num_workers: processes that decode images ahead of the training; 0 decodes in this process.
        valid_fraction: share of every class of ``train`` that is held out, at least one image; chosen by a hash of the path.
        fraction: share of the remaining training images to use, about the same of every class.

    Raises:
        FileError: a folder is missing or empty, or (while reading batches) an image is corrupt.
        MissingDependencyError: pillow is not installed.
        ConfigError: ``root`` is None or a number is out of range.
        TrainingError: (while reading batches) a worker died.
    """
    check_batch_size(batch_size)
    check_split(fraction, valid_fraction)
    optional.load("PIL.Image", "pillow", "reading an image folder")
    if root is None:
        raise ConfigError("an image folder needs a data root: the folder that holds train/<class>/ and val/<class>/.")
    root = Path(root)
    classes = class_names(root / "train")
    images, test = FolderImages(root / "train", classes), FolderImages(root / "val", classes)
    held_out = _hold_out(images, valid_fraction)
    numbers = torch.arange(len(images.labels))
    train = subset(numbers[~held_out], images.labels, fraction, seed)
    make = partial(StreamedBatches, batch_size=batch_size, image_size=image_size, num_workers=num_workers, seed=seed)
    calibration = make(images, train, shuffle=True)
    return Splits(
        train=make(images, train, shuffle=True, augment=True),
        calibration=calibration,
        valid=make(images, numbers[held_out]),
        test=make(test, torch.arange(len(test.labels))),
        example=calibration.example(),
        num_classes=len(classes),
    )


def _hold_out(images: FolderImages, fraction: float) -> Tensor:
    """Which images (bool, one an image) are held out: of every class those with the smallest hash of their path."""
    held_out = torch.zeros(len(images.labels), dtype=torch.bool)
    by_class: dict[int, list[int]] = {}
    for number, label in enumerate(images.labels.tolist()):
        by_class.setdefault(label, []).append(number)
    for members in by_class.values():
        if len(members) < 2:
            folder = images.paths[members[0]].parent
            raise FileError(f"{folder} holds one image, expected at least two: one to train and one to hold out.")
        members.sort(key=lambda number: hashlib.sha256(f"train/{images.name(number)}".encode()).digest())
        held_out[members[: max(1, round(fraction * len(members)))]] = True
    return held_out
