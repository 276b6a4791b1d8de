"""From encoded images to pixels, and from pixels to what a model gets."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from bitalloc.data import optional
from bitalloc.errors import ConfigError, FileError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def open_image(source: bytes | Path, origin: str) -> Any:
    """The decoded RGB image (Pillow's) of a file or of its content. ``origin`` names it in errors.

    Raises:
        FileError: it is missing or corrupt.
        MissingDependencyError: pillow is not installed.
    """
    pillow = optional.load("PIL.Image", "pillow", "decoding images")
    try:
        with pillow.open(io.BytesIO(source) if isinstance(source, bytes) else source) as opened:
            return opened.convert("RGB")
    except (OSError, ValueError, SyntaxError, pillow.DecompressionBombError) as error:
        raise FileError(f"{origin} cannot be read as an image ({error}): replace it or remove it.") from error


def centre_box(width: int, height: int, margin: float = 1.0) -> tuple[float, float, float, float]:
    """The centred square of ``1 / margin`` of the shorter side: resizing it equals resizing the image and cropping."""
    side = min(width, height) / margin
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def normalise(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """``(images / 255 - mean) / std``, one mean and std a channel: uint8 (N, C, H, W) becomes float32, on the same device."""
    means, stds = (torch.tensor(values, dtype=torch.float64).view(-1, 1, 1) for values in (mean, std))
    factor, offset = (1 / (255 * stds)).float().to(images.device), (means / stds).float().to(images.device)
    return images.float().mul_(factor).sub_(offset)


@dataclass(frozen=True, slots=True)
class Crops:
    """What happens to every image of a batch at random.

    Attributes:
        padding: pixels of black border around the image, from which a crop of the image's own size is taken.
        top: int64 (N,), the crop's first row in the padded image, 0 to ``2 * padding``.
        left: int64 (N,), its first column.
        mirrored: bool (N,), left to right.
    """

    padding: int
    top: Tensor
    left: Tensor
    mirrored: Tensor

    @classmethod
    def draw(cls, count: int, padding: int, flip: bool, random: torch.Generator) -> "Crops":
        """For ``count`` images. Drawn on the CPU, so that every device sees the same crops."""
        top, left = (torch.randint(2 * padding + 1, (count,), generator=random) for _ in range(2))
        return cls(padding, top, left, torch.rand(count, generator=random) < 0.5 if flip else torch.zeros(count, dtype=torch.bool))

    def __getitem__(self, part: slice) -> "Crops":
        return Crops(self.padding, self.top[part], self.left[part], self.mirrored[part])

    def apply(self, images: Tensor) -> Tensor:
        """Of (N, C, H, W), on any device."""
        count, _, height, width = images.shape
        # All crops as a view: indexing it copies whole rows, which is several times faster than gathering single pixels.
        crops = functional.pad(images, (self.padding,) * 4).unfold(2, height, 1).unfold(3, width, 1)
        everyone, top, left = (index.to(images.device) for index in (torch.arange(count), self.top, self.left))
        chosen = crops[everyone, :, top, left]
        mirrored = self.mirrored.nonzero()[:, 0].to(images.device)
        chosen[mirrored] = chosen[mirrored].flip(3)
        return chosen


def check_split(fraction: float, valid_fraction: float) -> None:
    """Raises ConfigError unless ``fraction`` is in (0, 1] and ``valid_fraction`` between 0 and 1."""
    if not 0 < fraction <= 1:
        raise ConfigError(f"fraction is {fraction}, expected a share of the training images above 0 and at most 1.")
    if not 0 < valid_fraction < 1:
        raise ConfigError(f"valid_fraction is {valid_fraction}, expected a share of the training images between 0 and 1.")
