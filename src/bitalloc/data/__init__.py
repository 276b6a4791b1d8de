"""Loaders of real images. The library never imports them; recipes name them.

A data factory of your own has the signature ``f(*, batch_size: int, seed: int, root: Path | None) -> Splits``.
"""

from bitalloc.data.batches import ImageBatches
from bitalloc.data.cifar10 import cifar10
from bitalloc.data.digits import digits
from bitalloc.data.image_folder import image_folder
from bitalloc.data.parquet import parquet_images, parquet_stream
from bitalloc.data.reporting import Reporter, showing_progress
from bitalloc.data.source import ImageSource
from bitalloc.data.splits import Batches, Splits
from bitalloc.data.streamed_batches import StreamedBatches
from bitalloc.data.tiny_imagenet import tiny_imagenet

__all__ = [
    "Batches", "Splits", "ImageBatches", "StreamedBatches", "ImageSource",
    "cifar10", "digits", "image_folder", "parquet_images", "parquet_stream", "tiny_imagenet",
    "Reporter", "showing_progress",
]  # fmt: skip
