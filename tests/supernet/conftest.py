"""A tiny network with a residual, a depthwise convolution and a shared input, and data that it can learn."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bitalloc.choices import search_space
from bitalloc.costs import BitOps, Costs
from bitalloc.wrap.describe import describe

WIDTHS = (6, 4, 2)


class Net(nn.Module):
    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.depthwise, self.norm = nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False), nn.BatchNorm2d(4)
        self.left, self.right = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(x + self.norm(self.depthwise(x)))
        x = F.relu(self.left(x) + self.right(x))
        return self.head(x.mean((2, 3)))


def cross_entropy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


@pytest.fixture
def case() -> SimpleNamespace:
    torch.manual_seed(0)
    model = Net()
    labels = [torch.arange(12) % 3 for _ in range(3)]
    loader = [(torch.randn(12, 1, 6, 6) * 0.3 + y.reshape(-1, 1, 1, 1), y) for y in labels]
    description = describe(model, loader[0][0])
    space = search_space(description, WIDTHS, pins={"stem": "w8a8", "head": "w8a8"})
    return SimpleNamespace(
        Net=Net,
        model=model,
        loader=loader,
        description=description,
        space=space,
        costs=Costs(description, space),
        table=BitOps().table(description.layers, space),
        loss_fn=cross_entropy,
    )
