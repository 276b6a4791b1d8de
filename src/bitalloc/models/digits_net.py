"""A small convolutional network for 8 x 8 images of handwritten digits."""

from torch import Tensor, nn


class _Residual(nn.Module):
    """Two 3x3 convolutions whose result is added to their input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        result: Tensor = self.relu(self.bn2(self.conv2(out)) + x)
        return result


class _Separable(nn.Module):
    """A depthwise 3x3 convolution with stride 2 and a pointwise convolution."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(in_channels, in_channels, 3, stride=2, padding=1, groups=in_channels, bias=False)
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.pointwise = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.depthwise(x)))
        result: Tensor = self.relu(self.bn2(self.pointwise(x)))
        return result


class DigitsNet(nn.Module):
    """Maps images (N, 1, 8, 8) to logits (N, num_classes)."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(16)
        self.relu = nn.ReLU()
        self.reduce1 = _Separable(16, 32)
        self.residual1 = _Residual(32)
        self.reduce2 = _Separable(32, 48)
        self.residual2 = _Residual(48)
        self.linear = nn.Linear(48 * 2 * 2, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of a batch of images."""
        x = self.relu(self.bn(self.stem(x)))
        x = self.residual1(self.reduce1(x))
        x = self.residual2(self.reduce2(x))
        logits: Tensor = self.linear(x.flatten(1))
        return logits


def digits_net(num_classes: int = 10) -> DigitsNet:
    """A network with 10 quantizable layers (two depthwise, two residual adds, one linear) that trains in seconds on a CPU."""
    return DigitsNet(num_classes)
