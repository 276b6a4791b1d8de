"""Small networks with the constructs that users bring."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Residual(nn.Module):
    """Two convolutions with batch norms and a shortcut, between a stem and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.conv1, self.bn1 = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.relu(self.bn1(self.conv1(x)))
        x = F.relu(x + self.bn2(self.conv2(y)))
        return self.head(x.mean((2, 3)))


class Attention(nn.Module):
    """Separate projections, with a scaled product of queries and keys or PyTorch's function for it."""

    def __init__(self, fused: bool = True) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.q, self.k, self.v, self.out = (nn.Linear(8, 8) for _ in range(4))
        self.fused = fused

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        q, k, v = (layer(y).unflatten(-1, (2, 4)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v) if self.fused else torch.softmax(q * 0.5 @ k.transpose(-2, -1), -1) @ v
        return x + self.out(y.transpose(1, 2).flatten(2))


class Concatenated(nn.Module):
    """A dense block: what is made is concatenated with what was there; then depthwise and pointwise convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.grow = nn.Conv2d(2, 2, 3, padding=1)
        self.depthwise = nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False)
        self.norm, self.act = nn.BatchNorm2d(4), nn.Hardswish()
        self.pointwise = nn.Conv2d(4, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise(self.act(self.norm(self.depthwise(torch.cat([x, self.grow(x)], 1)))))


class Language(nn.Module):
    """Tokens to logits through the table that made the vectors, called as a module of its own or as a function."""

    def __init__(self, functional: bool) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 8)
        self.block = Attention()
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.table.weight
        self.functional = functional

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.block(self.table(tokens))
        return F.linear(x, self.table.weight) if self.functional else self.head(x)


@pytest.fixture(scope="session")
def networks() -> SimpleNamespace:
    """The networks above."""
    return SimpleNamespace(Residual=Residual, Attention=Attention, Concatenated=Concatenated, Language=Language)


EXAMPLES = {
    "residual": lambda: (Residual(), torch.zeros(1, 1, 4, 4)),
    "fused attention": lambda: (Attention(fused=True), torch.zeros(1, 5, 8)),
    "attention": lambda: (Attention(fused=False), torch.zeros(1, 5, 8)),
    "concatenation": lambda: (Concatenated(), torch.zeros(1, 2, 4, 4)),
    "functional tied table": lambda: (Language(functional=True), torch.zeros(1, 5, dtype=torch.long)),
    "tied table": lambda: (Language(functional=False), torch.zeros(1, 5, dtype=torch.long)),
    "transformer layer": lambda: (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), torch.zeros(1, 5, 8)),
}


@pytest.fixture(params=EXAMPLES)
def network(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor]:
    """One of the networks with an example input."""
    model, example = EXAMPLES[request.param]()
    return model, example
