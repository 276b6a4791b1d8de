"""CIFAR-10 in two parquet files. A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009."""

from pathlib import Path

from bitalloc.data.parquet import parquet_images
from bitalloc.data.splits import Splits, folder_with


def cifar10(*, batch_size: int, seed: int, root: Path | None, fraction: float = 1.0) -> Splits:
    """60,000 images of 32 x 32 pixels in 10 classes: 45,000 to train, 5,000 to choose (stratified, fixed), 10,000 to test.

    All images are decoded once, into 180 MB of memory. Training images get a random crop from a border of 4 pixels and are
    mirrored at random. They are normalised with the ImageNet mean and standard deviation.

    Args:
        batch_size: images of a batch.
        seed: of order, augmentation and subset; the split does not depend on it.
        root: folder with ``train.parquet`` and ``test.parquet``, or with a folder ``cifar10`` that has them. Columns: ``img``
            (struct with the encoded image in ``bytes``) and ``label`` (0..9).
        fraction: share of the 45,000 training images to use, the same of every class. Default: all.

    Raises:
        FileError: a file or column is missing, an image cannot be decoded or has another size, a label is out of range.
        MissingDependencyError: pyarrow or pillow is not installed.
        ConfigError: ``root`` is None, or a number is out of range.
    """
    return parquet_images(
        batch_size=batch_size,
        seed=seed,
        root=folder_with("train.parquet", root, "cifar10"),
        train="train.parquet",
        test="test.parquet",
        image_column="img",
        num_classes=10,
        image_size=32,
        fraction=fraction,
    )
