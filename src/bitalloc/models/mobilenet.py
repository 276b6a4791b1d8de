"""MobileNetV1 at width 1.0. Howard et al., "MobileNets", 2017, arXiv 1704.04861, table 1."""

from torch import Tensor, nn

_STAGES = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5, (1024, 2), (1024, 1))
"""Output channels and stride of every depthwise separable convolution."""


class _Separable(nn.Module):
    """A depthwise 3x3 and a pointwise convolution, each followed by batch norm and ReLU."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(in_channels, in_channels, 3, stride, padding=1, groups=in_channels, bias=False)
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.pointwise = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.depthwise(x)))
        result: Tensor = self.relu(self.bn2(self.pointwise(x)))
        return result


class MobileNetV1(nn.Module):
    """Maps images (N, 3, 224, 224) to logits (N, num_classes)."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 32, 3, stride=2, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(32)
        self.relu = nn.ReLU()
        inputs = (32, *(channels for channels, _ in _STAGES))
        self.blocks = nn.Sequential(*(_Separable(i, channels, stride) for i, (channels, stride) in zip(inputs, _STAGES, strict=False)))
        self.fc = nn.Linear(1024, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Logits of a batch of images."""
        x = self.blocks(self.relu(self.bn(self.conv(x))))
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


def mobilenet_v1(num_classes: int = 1000) -> MobileNetV1:
    """MobileNetV1 1.0: 28 quantizable layers, 4.2 million parameters, 0.57 billion multiply-accumulates at 224 x 224."""
    return MobileNetV1(num_classes)
