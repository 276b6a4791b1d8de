"""CIFAR-10 in two parquet files. A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009."""

import io
from functools import partial
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from bitalloc.data import optional
from bitalloc.data.batches import ImageBatches, check_batch_size
from bitalloc.data.splits import Splits, stratified_order
from bitalloc.errors import ConfigError, FileError

_SIZE = 32
_CLASSES = 10
_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)
_VALID_SHARE = 10  # one of ten training images: 5,000 of the 50,000
_PURPOSE = "CIFAR-10 from parquet files"


def cifar10(*, batch_size: int, seed: int, root: Path | None) -> Splits:
    """60,000 images of 32 x 32 pixels in 10 classes: 45,000 to train, 5,000 to choose (stratified, fixed), 10,000 to test.

    All images are decoded once, into 180 MB of memory. Training images get a random crop from a border of 4 pixels and are
    mirrored at random. They are normalised with the ImageNet mean and standard deviation.

    Args:
        batch_size: images of a batch.
        seed: of order and augmentation; the split does not depend on it.
        root: folder with ``train.parquet`` and ``test.parquet``, or with a folder ``cifar10`` that has them. Columns: ``img``
            (struct with the encoded image in ``bytes``) and ``label`` (0..9).

    Raises:
        FileError: a file or column is missing, or an image cannot be decoded.
        MissingDependencyError: pyarrow or pillow is not installed.
        ConfigError: ``root`` is None.
    """
    check_batch_size(batch_size)
    folder = _folder(root)
    images, labels = _read(folder / "train.parquet")
    order = stratified_order(labels)
    held_out = len(order) // _VALID_SHARE
    valid, train = order[:held_out], order[held_out:]
    train_images, train_labels = images[train], labels[train]
    make = partial(ImageBatches, batch_size=batch_size, mean=_MEAN, std=_STD, seed=seed)
    calibration = make(train_images, train_labels, shuffle=True)
    return Splits(
        train=make(train_images, train_labels, shuffle=True, crop_padding=4, flip=True),
        calibration=calibration,
        valid=make(images[valid], labels[valid]),
        test=make(*_read(folder / "test.parquet")),
        example=calibration.batch(0)[0][:1],
        num_classes=_CLASSES,
    )


def _folder(root: Path | None) -> Path:
    if root is None:
        raise ConfigError("CIFAR-10 needs a data root: the folder that holds train.parquet and test.parquet, or cifar10/ with them.")
    for folder in (Path(root) / "cifar10", Path(root)):
        if (folder / "train.parquet").is_file():
            return folder
    raise FileError(f"{root} has no train.parquet and no cifar10/train.parquet: give the folder that holds the CIFAR-10 parquet files.")


def _read(path: Path) -> tuple[Tensor, Tensor]:
    """Images uint8 (N, 3, 32, 32) and labels int64 (N,)."""
    pyarrow = optional.load("pyarrow", "pyarrow", _PURPOSE)
    parquet = optional.load("pyarrow.parquet", "pyarrow", _PURPOSE)
    pillow = optional.load("PIL.Image", "pillow", _PURPOSE)
    if not path.is_file():
        raise FileError(f"{path} does not exist: expected the CIFAR-10 images of that name.")
    try:
        columns = parquet.read_schema(path).names
        missing = [name for name in ("img", "label") if name not in columns]
        if missing:
            raise FileError(f"{path} has no column {' and no column '.join(missing)}; it has {', '.join(columns)}.")
        table = parquet.read_table(path, columns=["img", "label"])
    except (pyarrow.ArrowException, OSError) as error:
        raise FileError(f"{path} cannot be read as a parquet file ({error}): it is truncated or of another format.") from error
    rows, values = table.column("img").to_pylist(), table.column("label").to_pylist()
    if not rows:
        raise FileError(f"{path} holds no images.")
    images = numpy.stack([_decode(pillow, row, f"{path}, row {number}") for number, row in enumerate(rows)])
    for number, label in enumerate(values):
        if not isinstance(label, int) or not 0 <= label < _CLASSES:
            raise FileError(f"{path}, row {number}: label {label!r}, expected a whole number from 0 to {_CLASSES - 1}.")
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.tensor(values, dtype=torch.int64)


def _decode(pillow: Any, row: Any, origin: str) -> Any:
    data = row.get("bytes") if isinstance(row, dict) else None
    if not isinstance(data, bytes):
        raise FileError(f"{origin}: column img holds no encoded image, expected a struct with the field bytes.")
    try:
        with pillow.open(io.BytesIO(data)) as image:
            pixels = numpy.asarray(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError) as error:
        raise FileError(f"{origin}: the image cannot be decoded ({error}).") from error
    if pixels.shape != (_SIZE, _SIZE, 3):
        raise FileError(f"{origin}: the image has {pixels.shape[1]} x {pixels.shape[0]} pixels, expected {_SIZE} x {_SIZE}.")
    return pixels
