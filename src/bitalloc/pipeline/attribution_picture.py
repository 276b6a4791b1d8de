"""Where networks look, as a picture: image, float map, and the maps of quantized networks side by side."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from bitalloc.attribution import Attribution, GradCAM, spearman
from bitalloc.data import optional
from bitalloc.errors import TrainingError
from bitalloc.files import AnyPath, replacing

CELL = 112
"""Height and width of a panel in pixels."""

GAP = 8
LABEL = 20
LETTERS = 18
"""Of a name, that fit over a panel."""

_COLOURS = ((0.05, 0.03, 0.35), (0.45, 0.05, 0.60), (0.85, 0.25, 0.40), (0.98, 0.60, 0.15), (0.99, 0.95, 0.35))
"""From no attribution to the most, in equal steps; lighter is more, also in grey."""


def attribution_picture(
    reference: nn.Module,
    networks: Mapping[str, nn.Module],
    images: Tensor,
    path: AnyPath,
    *,
    attribution: Attribution | None = None,
    titles: Sequence[str] | None = None,
) -> None:
    """Writes a PNG: one row an image, with the image, the reference's map over it, and each network's map.

    Under a map stand the class that its network predicts and Spearman's correlation with the reference's map. Every map is scaled from 0
    to its own largest value, so panels compare where networks look rather than how strongly.

    Args:
        reference: the float network.
        networks: by the name that stands over their column.
        images: (N, 1 or 3, H, W), as the networks read them, on their device; each is shown between its smallest and largest value.
        path: of the PNG; replaced atomically.
        attribution: default :class:`~bitalloc.attribution.GradCAM` at the last feature map of ``reference``.
        titles: N labels of the images; none by default.

    Raises:
        TrainingError: the images have another shape, or there is no attribution.
        FileError: the file cannot be written.
        MissingDependencyError: pillow is not installed.
    """
    check_drawable(images)
    purpose = "the picture of attributions"
    pillow, draw = optional.load("PIL.Image", "pillow", purpose), optional.load("PIL.ImageDraw", "pillow", purpose)
    attribution = (attribution or GradCAM()).resolved(reference, images)
    found = [(name, attribution.explain(network, images)) for name, network in (("float", reference), *networks.items())]
    wanted = found[0][1].maps[0]
    shown = _panels(_stretched(images))
    sheet = pillow.new("RGB", _size(len(images), 1 + len(found)), "white")
    pen = draw.Draw(sheet)
    pen.text((GAP, GAP // 2), "image", fill="black")
    for row in range(len(images)):
        top = LABEL + row * (CELL + LABEL + GAP)
        sheet.paste(_picture(pillow, shown[row]), (GAP, top))
        pen.text((GAP, top + CELL + 2), "" if titles is None else titles[row], fill="black")
    for column, (name, one) in enumerate(found, 1):
        left = GAP + column * (CELL + GAP)
        pen.text((left, GAP // 2), name[:LETTERS], fill="black")
        agreement, heat = spearman(wanted, one.maps[0]).tolist(), _heat(one.maps[0], shown)
        for row, number in enumerate(one.logits.argmax(1).tolist()):
            top = LABEL + row * (CELL + LABEL + GAP)
            sheet.paste(_picture(pillow, heat[row]), (left, top))
            pen.text((left, top + CELL + 2), f"class {number}" + (f", rho {agreement[row]:.2f}" if column > 1 else ""), fill="black")
    content = io.BytesIO()
    sheet.save(content, format="PNG")
    with replacing(path) as temporary:
        temporary.write_bytes(content.getvalue())


def check_drawable(images: Tensor) -> None:
    """Raises TrainingError if the images have another shape than (N, 1 or 3, H, W)."""
    if images.dim() != 4 or images.shape[1] not in (1, 3) or len(images) == 0:
        raise TrainingError(f"the images have shape {tuple(images.shape)}, expected (N, 1 or 3, H, W) to draw them.")


def _size(rows: int, columns: int) -> tuple[int, int]:
    return GAP + columns * (CELL + GAP), LABEL + rows * (CELL + LABEL + GAP)


def _stretched(images: Tensor) -> Tensor:
    low, high = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
    return ((images - low) / (high - low).clamp_min(1e-12)).expand(-1, 3, -1, -1).float().cpu()


def _panels(images: Tensor) -> Tensor:
    return functional.interpolate(images, (CELL, CELL), mode="nearest-exact")


def _heat(maps: Tensor, shown: Tensor) -> Tensor:
    """The maps (N, 1, h, w) or (N, 1, T) in colour, half and half with the images (N, 3, CELL, CELL) in grey."""
    maps = (maps if maps.dim() == 4 else maps.unsqueeze(2)).float().cpu()
    maps = maps / maps.amax((1, 2, 3), keepdim=True).clamp_min(1e-12)
    place = functional.interpolate(maps, (CELL, CELL), mode="bilinear", align_corners=False).clamp(0, 1)[:, 0] * (len(_COLOURS) - 1)
    colours = torch.tensor(_COLOURS)
    below = place.floor().long().clamp(max=len(_COLOURS) - 2)
    part = (place - below)[..., None]
    colour = colours[below] * (1 - part) + colours[below + 1] * part
    return 0.6 * colour.permute(0, 3, 1, 2) + 0.4 * shown.mean(1, keepdim=True)


def _picture(pillow: Any, panel: Tensor) -> Any:
    return pillow.fromarray((panel.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy())
