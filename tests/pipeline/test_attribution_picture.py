"""The picture of attributions: a PNG with one panel an image and network, light where the network looks."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from bitalloc.errors import TrainingError
from bitalloc.pipeline.attribution_picture import CELL, GAP, LABEL, attribution_picture


class _Corner(nn.Module):
    """Its class 1 is the brightness, seen by a feature map that passes one corner only."""

    def __init__(self, row: int, column: int) -> None:
        super().__init__()
        mask = torch.zeros(1, 1, 8, 8)
        mask[..., row : row + 4, column : column + 4] = 1
        self.register_buffer("mask", mask)
        self.relu, self.head = nn.ReLU(), nn.Linear(1, 2)
        with torch.no_grad():
            self.head.weight.copy_(torch.tensor([[0.0], [1.0]]))
            self.head.bias.zero_()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.relu(x * self.mask).mean((2, 3)))
        return out


def test_each_panel_is_light_where_its_network_looks(tmp_path: Path) -> None:
    images = 1 + torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    path = tmp_path / "maps.png"
    attribution_picture(_Corner(0, 0), {"w4a4": _Corner(0, 0), "w2a2": _Corner(4, 4)}, images, path, titles=["one", "two"])
    with Image.open(path) as picture:
        pixels = np.asarray(picture).astype(float)
    assert pixels.shape == (LABEL + 2 * (CELL + LABEL + GAP), GAP + 4 * (CELL + GAP), 3)
    half = CELL // 2
    for row in range(2):
        top = LABEL + row * (CELL + LABEL + GAP)
        for column, corner in ((1, (0, 0)), (2, (0, 0)), (3, (1, 1))):
            left = GAP + column * (CELL + GAP)
            panel = pixels[top : top + CELL, left : left + CELL].mean(2)
            quarters = panel.reshape(2, half, 2, half).mean((1, 3))
            assert np.unravel_index(quarters.argmax(), (2, 2)) == corner
        image = pixels[top : top + CELL, GAP : GAP + CELL]
        assert image.min() == 0
        assert image.max() == 255


def test_images_that_cannot_be_drawn_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"shape \(2, 5, 8, 8\), expected \(N, 1 or 3, H, W\)"):
        attribution_picture(_Corner(0, 0), {}, torch.ones(2, 5, 8, 8), tmp_path / "maps.png")
    assert not list(tmp_path.iterdir())
