"""Loaders of real images. The library never imports them; recipes name them.

A data factory of your own has the signature ``f(*, batch_size: int, seed: int, root: Path | None) -> Splits``.
"""

from bitalloc.data.batches import ImageBatches
from bitalloc.data.cifar10 import cifar10
from bitalloc.data.digits import digits
from bitalloc.data.image_folder import image_folder
from bitalloc.data.splits import Batches, Splits

__all__ = ["Batches", "ImageBatches", "Splits", "cifar10", "digits", "image_folder"]
