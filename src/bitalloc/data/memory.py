"""Decoding images into memory, once, on all cores."""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from bitalloc.data import optional
from bitalloc.data.pixels import centre_box, open_image
from bitalloc.data.reporting import reporter
from bitalloc.data.source import ImageSource
from bitalloc.errors import ConfigError, FileError

_CHUNK = 64  # images a piece of work for a thread
_ROUND = 32  # pieces whose encoded images are in memory at the same time


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of images before and after they are decoded.

    Attributes:
        expected: width and height that every image must have; None for any.
        resize: pixels of a side that the centred square of every image is resized to; None leaves images as they are.
    """

    expected: tuple[int, int] | None
    resize: int | None

    @property
    def result(self) -> tuple[int, int]:
        """Width and height in memory."""
        if self.resize is not None:
            return self.resize, self.resize
        assert self.expected is not None
        return self.expected


def shape_of(source: ImageSource, image_size: int | None, resize: int | None) -> Shape:
    """The shape with ``image_size`` pixels a side; if it is None any size if images are resized, else the size of the first image.

    Raises:
        ConfigError: a size is below 1.
    """
    for name, value in (("image_size", image_size), ("resize", resize)):
        if value is not None and value < 1:
            raise ConfigError(f"{name} is {value}, expected at least 1 pixel.")
    if image_size is not None:
        return Shape((image_size, image_size), resize)
    return Shape(source.image(0).size if resize is None else None, resize)


def check_memory(count: int, shape: Shape, limit: float) -> None:
    """Raises ConfigError if ``count`` images take more than ``limit`` GB."""
    width, height = shape.result
    needed = count * 3 * width * height / 1e9
    if needed > limit:
        raise ConfigError(
            f"{count} images of {width} x {height} pixels take {needed:.2g} GB in memory, more than memory_gb = {limit:g}: raise it, give "
            "resize or fraction, or read them from the disk with bitalloc.data:parquet_stream."
        )


def into_memory(source: ImageSource, numbers: Tensor, shape: Shape, name: str) -> Tensor:
    """The images ``numbers`` (int64 (N,)) of ``source`` as uint8 (N, 3, H, W). Threads decode: the decoders release Python's lock.

    ``name`` is that of the work in the progress.

    Raises:
        FileError: an image is missing, corrupt or of another size.
    """
    width, height = shape.result
    pixels = torch.empty(len(numbers), 3, height, width, dtype=torch.uint8)
    view, members = pixels.numpy(), numbers.tolist()

    def decode(work: list[tuple[int, bytes | Path]]) -> int:
        for place, content in work:
            view[place] = _decode(content, source.origin(members[place]), shape)
        return len(work)

    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        with reporter().task(f"decoding {name}", len(members)):
            # In the order of the files, and not all encoded images at once.
            places = numbers.argsort().tolist()
            for start in range(0, len(places), _CHUNK * _ROUND):
                contents = [(place, source.encoded(members[place])) for place in places[start : start + _CHUNK * _ROUND]]
                pieces = [contents[first : first + _CHUNK] for first in range(0, len(contents), _CHUNK)]
                for count in pool.map(decode, pieces):
                    reporter().advance(count)
    finally:
        pool.shutdown(cancel_futures=True)
    return pixels


def _decode(content: bytes | Path, origin: str, shape: Shape) -> Any:
    """uint8 (3, H, W)."""
    image = open_image(content, origin)
    if shape.expected not in (None, image.size):
        found, wanted = (f"{width} x {height}" for width, height in (image.size, shape.expected))
        raise FileError(f"{origin}: the image has {found} pixels, expected {wanted}.")
    if shape.resize is not None and image.size != shape.result:
        resampling = optional.load("PIL.Image", "pillow", "resizing images").Resampling.BILINEAR
        image = image.resize(shape.result, resampling, box=centre_box(image.width, image.height))
    return numpy.asarray(image).transpose(2, 0, 1)
