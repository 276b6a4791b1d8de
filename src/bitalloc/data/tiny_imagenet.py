"""Tiny-ImageNet with 100 classes in two parquet files. Y. Le and X. Yang, "Tiny ImageNet Visual Recognition Challenge", 2015."""

from pathlib import Path

from bitalloc.data.parquet import parquet_images
from bitalloc.data.splits import Splits, folder_with


def tiny_imagenet(*, batch_size: int, seed: int, root: Path | None, resize: int | None = None, fraction: float = 1.0) -> Splits:
    """30,000 images of 64 x 64 pixels in 100 classes: 22,500 to train, 2,500 to choose (stratified, fixed), 5,000 to test.

    All images are decoded once, into 369 MB of memory (92 MB at 32 pixels). Training images get a random crop from a border of
    an eighth of their width (8 pixels) and are mirrored at random. They are normalised with the ImageNet mean and standard deviation.

    Args:
        batch_size: images of a batch.
        seed: of order, augmentation and subset; the split does not depend on it.
        root: folder with ``train.parquet`` and ``val.parquet`` (the latter is the test split), or with a folder ``tiny_imagenet_100``
            that has them. Columns: ``image`` (struct with the encoded image in ``bytes``) and ``label`` (0..99).
        resize: pixels of a side, such as 32 for cheap experiments. Default: 64, as they are.
        fraction: share of the 22,500 training images to use, the same of every class. Default: all.

    Raises:
        FileError: a file or column is missing, an image cannot be decoded or has another size, a label is out of range.
        MissingDependencyError: pyarrow or pillow is not installed.
        ConfigError: ``root`` is None, or a number is out of range.
    """
    return parquet_images(
        batch_size=batch_size,
        seed=seed,
        root=folder_with("train.parquet", root, "tiny_imagenet_100"),
        train="train.parquet",
        test="val.parquet",
        num_classes=100,
        image_size=64,
        resize=resize,
        fraction=fraction,
    )
