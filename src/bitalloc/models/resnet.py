"""ResNet-18 and ResNet-50 for 224 x 224 images, with the parameter names and strides of torchvision (its "v1.5").

He et al., "Deep Residual Learning for Image Recognition", 2015. The stride of a bottleneck is in its 3x3 convolution, not
in the first 1x1 as in the paper.
"""

import torch
from torch import Tensor, nn


class _Basic(nn.Module):
    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.downsample = _downsample(in_channels, width * self.expansion, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        shortcut = x if self.downsample is None else self.downsample(x)
        result: Tensor = self.relu(out + shortcut)
        return result


class _Bottleneck(nn.Module):
    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, width * self.expansion, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width * self.expansion)
        self.relu = nn.ReLU()
        self.downsample = _downsample(in_channels, width * self.expansion, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        shortcut = x if self.downsample is None else self.downsample(x)
        result: Tensor = self.relu(out + shortcut)
        return result


class ResNet(nn.Module):
    """Maps images (N, 3, 224, 224) to logits (N, num_classes); other sizes from 32 on work too."""

    def __init__(
        self, block: type[_Basic] | type[_Bottleneck], depths: tuple[int, int, int, int], num_classes: int, small_images: bool = False
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=1 if small_images else 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU()
        self.maxpool = nn.Identity() if small_images else nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = _stage(block, 64, 64, 1, depths[0])
        self.layer2 = _stage(block, 64 * block.expansion, 128, 2, depths[1])
        self.layer3 = _stage(block, 128 * block.expansion, 256, 2, depths[2])
        self.layer4 = _stage(block, 256 * block.expansion, 512, 2, depths[3])
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(512 * block.expansion, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Logits of a batch of images."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.fc(torch.flatten(self.avgpool(x), 1))
        return logits


def resnet18(num_classes: int = 1000, small_images: bool = False) -> ResNet:
    """ResNet-18: 21 quantizable layers, 11.7 million parameters, 1.81 billion multiply-accumulates at 224 x 224.

    With ``small_images`` for 32 x 32: the first layer has stride 1 and no pooling follows it; the parameters are the same.
    """
    return ResNet(_Basic, (2, 2, 2, 2), num_classes, small_images)


def resnet50(num_classes: int = 1000) -> ResNet:
    """ResNet-50: 54 quantizable layers, 25.6 million parameters, 4.09 billion multiply-accumulates at 224 x 224."""
    return ResNet(_Bottleneck, (3, 4, 6, 3), num_classes)


def _downsample(in_channels: int, out_channels: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels))


def _stage(block: type[_Basic] | type[_Bottleneck], in_channels: int, width: int, stride: int, depth: int) -> nn.Sequential:
    first = block(in_channels, width, stride)
    return nn.Sequential(first, *(block(width * block.expansion, width, 1) for _ in range(depth - 1)))
