"""The CIFAR ResNets of He et al., "Deep Residual Learning for Image Recognition", 2015, section 4.2."""

import torch.nn.functional as F
from torch import Tensor, nn


class _Block(nn.Module):
    """Two 3x3 convolutions and a shortcut without parameters (option A: subsample and pad the channels with zeros)."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride = stride
        self.padding = channels - in_channels

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x
        if self.stride != 1 or self.padding:
            before = self.padding // 2
            shortcut = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, self.padding - before))
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + shortcut)


class CifarResNet(nn.Module):
    """Maps images (N, 3, 32, 32) to logits (N, num_classes); three stages of ``blocks`` blocks with 16, 32, 64 channels."""

    def __init__(self, blocks: int, num_classes: int, stem_stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, stem_stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, 1, blocks)
        self.layer2 = _stage(16, 32, 2, blocks)
        self.layer3 = _stage(32, 64, 2, blocks)
        self.linear = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of a batch of images."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits


def resnet20(num_classes: int = 10, stem_stride: int = 1) -> CifarResNet:
    """ResNet-20 for 32 x 32 images: 20 weighted layers, 0.27 million parameters.

    With ``stem_stride = 2`` for 64 x 64 images, at the cost of 32 x 32 ones behind the first layer; the parameters are the same.
    """
    return CifarResNet(3, num_classes, stem_stride)


def resnet32(num_classes: int = 10) -> CifarResNet:
    """ResNet-32 for 32 x 32 images: 32 weighted layers, 0.46 million parameters."""
    return CifarResNet(5, num_classes, 1)


def _stage(in_channels: int, channels: int, stride: int, blocks: int) -> nn.Sequential:
    first = _Block(in_channels, channels, stride)
    return nn.Sequential(first, *(_Block(channels, channels, 1) for _ in range(blocks - 1)))
