"""Where single images come from when a data set is not held in memory."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bitalloc.data.pixels import open_image


class ImageSource(ABC):
    """Numbered images with labels that are read when they are needed.

    It is sent to worker processes, so it can be pickled and opens files again in each of them.

    Attributes:
        labels: int64 (N,), ``0 .. num_classes - 1``.
        num_classes: number of classes.
    """

    labels: Tensor
    num_classes: int

    @abstractmethod
    def encoded(self, number: int) -> bytes | Path:
        """The content of an image file, or its path. Raises FileError, naming file and row, if it cannot be read."""

    @abstractmethod
    def origin(self, number: int) -> str:
        """The file (and row) of an image, for messages."""

    @abstractmethod
    def fingerprint(self, numbers: Tensor) -> str:
        """A SHA-256 that changes when the files or labels of these images do, made without reading all of them."""

    def image(self, number: int) -> Any:
        """The decoded RGB image (Pillow's). Raises FileError, naming file and row, if it is missing or corrupt."""
        return open_image(self.encoded(number), self.origin(number))

    def shuffled(self, numbers: Tensor, random: torch.Generator) -> Tensor:
        """``numbers`` in a random order in which they can be read fast. By default any order is."""
        return numbers[torch.randperm(len(numbers), generator=random)]
