"""Image data sets in parquet files: held in memory, or read from the disk batch by batch."""

from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from bitalloc.data.batches import ImageBatches, check_batch_size
from bitalloc.data.memory import check_memory, into_memory, shape_of
from bitalloc.data.parquet_images import ParquetImages
from bitalloc.data.parquet_schema import Columns
from bitalloc.data.pixels import IMAGENET_MEAN, IMAGENET_STD, check_split
from bitalloc.data.splits import Splits, stratified_order, subset
from bitalloc.data.streamed_batches import StreamedBatches
from bitalloc.errors import ConfigError, FileError


def parquet_images(
    *,
    batch_size: int,
    seed: int,
    root: Path | None,
    train: str = "train*.parquet",
    test: str = "test*.parquet",
    image_column: str = "image",
    label_column: str = "label",
    num_classes: int | None = None,
    image_size: int | None = None,
    resize: int | None = None,
    valid_fraction: float = 0.1,
    fraction: float = 1.0,
    crop_padding: int | None = None,
    flip: bool = True,
    memory_gb: float = 4.0,
) -> Splits:
    """Small images of one size, decoded once into memory as bytes and augmented by batch on the device that trains.

    The held-out part is a fixed, stratified part of the training rows. Training images get a random crop from a black border and are
    mirrored at random. Normalised with ImageNet's mean and standard deviation.

    Args:
        batch_size: images of a batch.
        seed: of order, augmentation and subset; the split does not depend on it.
        root: the folder that holds the files.
        train: pattern of the names of the training files.
        test: pattern of the names of the test files.
        image_column: the column with encoded images: bytes, or a struct with them in the field ``bytes``.
        label_column: the column with labels, whole numbers from 0.
        num_classes: number of classes; by default the largest training label and one.
        image_size: pixels of a side that every image must have; by default the size of the first image, or any with ``resize``.
        resize: pixels of a side that the centred square of every image is resized to; by default images stay as they are.
        valid_fraction: share of the training rows that is held out for every choice.
        fraction: share of the remaining training images to use, about the same of every class; others are not decoded.
        crop_padding: pixels of the border; by default an eighth of the image's width, 4 at 32 pixels.
        flip: mirror half of the training images. Not for digits or text.
        memory_gb: most that all decoded images together may take, in 10^9 bytes.

    Raises:
        FileError: a file or column is missing, an image is corrupt or of another size, a label is out of range, a class is empty.
        MissingDependencyError: pyarrow or pillow is not installed.
        ConfigError: ``root`` is None, a number is out of range, or the images take more memory than allowed.
    """
    check_batch_size(batch_size)
    check_split(fraction, valid_fraction)
    folder, columns = _root(root), Columns(image_column, label_column)
    source = ParquetImages(_files(folder, train), columns, num_classes)
    tests = ParquetImages(_files(folder, test), columns, source.num_classes)
    shape = shape_of(source, image_size, resize)
    train_rows, valid_rows = _hold_out(source, valid_fraction, fraction, seed)
    check_memory(len(train_rows) + len(valid_rows) + len(tests.labels), shape, memory_gb)
    decoded = into_memory(source, torch.cat([train_rows, valid_rows]), shape, "training images")
    images, valid = decoded[: len(train_rows)], decoded[len(train_rows) :]
    labels = source.labels[train_rows]
    make = partial(ImageBatches, batch_size=batch_size, mean=IMAGENET_MEAN, std=IMAGENET_STD, seed=seed)
    calibration = make(images, labels, shuffle=True)
    padding = shape.result[0] // 8 if crop_padding is None else crop_padding
    return Splits(
        train=make(images, labels, shuffle=True, crop_padding=padding, flip=flip),
        calibration=calibration,
        valid=make(valid, source.labels[valid_rows]),
        test=make(into_memory(tests, torch.arange(len(tests.labels)), shape, "test images"), tests.labels),
        example=calibration.batch(0)[0][:1],
        num_classes=source.num_classes,
    )


def parquet_stream(
    *,
    batch_size: int,
    seed: int,
    root: Path | None,
    train: str = "train*.parquet",
    test: str = "val*.parquet",
    image_column: str = "image",
    label_column: str = "label",
    num_classes: int | None = None,
    image_size: int = 224,
    num_workers: int = 4,
    valid_fraction: float = 0.01,
    fraction: float = 1.0,
    shuffle_rows: int = 2048,
) -> Splits:
    """Images of any size and number, read from the disk when they are needed; augmented like :func:`image_folder`.

    Args:
        batch_size: images of a batch.
        seed: of order, augmentation and subset; the split does not depend on it.
        root: the folder that holds the files.
        train: pattern of the names of the training files.
        test: pattern of the names of the test files.
        image_column: the column with encoded images: bytes, or a struct with them in the field ``bytes``.
        label_column: the column with labels, whole numbers from 0.
        num_classes: number of classes; by default the largest training label and one.
        image_size: pixels of a side of the square images that the model gets.
        num_workers: processes that read and decode ahead of the training; 0 reads in this process.
        valid_fraction: share of the training rows that is held out for every choice; fixed and stratified.
        fraction: share of the remaining training images to use, about the same of every class.
        shuffle_rows: row groups are taken in a random order, and the rows of as many as hold so many are mixed. A worker holds about so
            many encoded images in memory, and one row group more. Files whose rows are sorted by class need more.

    Raises:
        FileError: a file or column is missing, a label is out of range, a class is empty, or (while reading batches) an image is corrupt.
        MissingDependencyError: pyarrow or pillow is not installed.
        ConfigError: ``root`` is None or a number is out of range.
        TrainingError: (while reading batches) a worker died.
    """
    check_split(fraction, valid_fraction)
    if shuffle_rows < 1:
        raise ConfigError(f"shuffle_rows is {shuffle_rows}, expected at least 1.")
    folder, columns = _root(root), Columns(image_column, label_column)
    source = ParquetImages(_files(folder, train), columns, num_classes, shuffle_rows)
    tests = ParquetImages(_files(folder, test), columns, source.num_classes, shuffle_rows)
    train_rows, valid_rows = _hold_out(source, valid_fraction, fraction, seed)
    make = partial(StreamedBatches, batch_size=batch_size, image_size=image_size, num_workers=num_workers, seed=seed)
    calibration = make(source, train_rows, shuffle=True)
    return Splits(
        train=make(source, train_rows, shuffle=True, augment=True),
        calibration=calibration,
        valid=make(source, valid_rows.sort().values),
        test=make(tests, torch.arange(len(tests.labels))),
        example=calibration.example(),
        num_classes=source.num_classes,
    )


def _root(root: Path | None) -> Path:
    if root is None:
        raise ConfigError("parquet files need a data root: the folder that holds them.")
    return Path(root)


def _files(folder: Path, pattern: str) -> list[Path]:
    found = sorted(folder.glob(pattern))
    if not found:
        raise FileError(f"{folder / pattern} does not exist: expected one or more parquet files of that name.")
    return found


def _hold_out(source: ParquetImages, valid_fraction: float, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Rows to train and rows to choose. Raises FileError for a class without rows, ConfigError for one without rows to train."""
    present = source.labels.bincount(minlength=source.num_classes)
    if not present.all():
        file = source.origin(0).removesuffix(", row 0")
        raise FileError(f"{file} has no image of class {int(present.argmin())}, expected images of all classes 0 to {len(present) - 1}.")
    order = stratified_order(source.labels)
    count = round(valid_fraction * len(order))
    left = source.labels[order[count:]].bincount(minlength=source.num_classes)
    if count == 0 or not left.all():
        trouble = "holds out none" if count == 0 else f"leaves none of class {int(left.argmin())} to train"
        raise ConfigError(f"valid_fraction = {valid_fraction:g} of {len(order)} images {trouble}: give another share.")
    return subset(order[count:], source.labels, fraction, seed), order[:count]
