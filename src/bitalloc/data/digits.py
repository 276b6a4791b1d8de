"""Handwritten digits, 8 x 8 pixels, that come with scikit-learn: real images without a download.

E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998.
"""

from functools import partial
from pathlib import Path

import torch

from bitalloc.data import optional
from bitalloc.data.batches import ImageBatches
from bitalloc.data.splits import Splits, stratified_order

_TEST = 357
_VALID = 240
_SCALE = 15  # pixels are 0..16; 240 is the largest multiple of 16 that a byte holds
_MEAN = (0.2873,)
_STD = (0.3539,)


def digits(*, batch_size: int, seed: int, root: Path | None = None) -> Splits:
    """1797 digits in a fixed stratified split: 1200 to train, 240 to choose, 357 to test.

    Training images are shifted by up to one pixel each way; they are not mirrored, which would make other digits.

    Args:
        batch_size: images of a batch.
        seed: of order and augmentation; the split does not depend on it.
        root: not read, the images come with scikit-learn. It is there because every data factory has it.

    Raises:
        MissingDependencyError: scikit-learn is not installed.
    """
    bunch = optional.load("sklearn.datasets", "scikit-learn", "the digits data set").load_digits()
    images = (torch.from_numpy(bunch.images)[:, None] * _SCALE).to(torch.uint8)
    labels = torch.from_numpy(bunch.target).to(torch.int64)
    order = stratified_order(labels)
    test, valid, train = order[:_TEST], order[_TEST : _TEST + _VALID], order[_TEST + _VALID :]
    make = partial(ImageBatches, batch_size=batch_size, mean=_MEAN, std=_STD, seed=seed)
    calibration = make(images[train], labels[train], shuffle=True)
    return Splits(
        train=make(images[train], labels[train], shuffle=True, crop_padding=1),
        calibration=calibration,
        valid=make(images[valid], labels[valid]),
        test=make(images[test], labels[test]),
        example=calibration.batch(0)[0][:1],
        num_classes=10,
    )
