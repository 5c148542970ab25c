"""A residual network (He et al., 2015): BatchNorm after every convolution, also in the projections of the shortcuts."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.batchnorm import Norm


class BasicBlock(nn.Module):
    """Conv, BN, ReLU, Conv, BN; then the shortcut is added, and ReLU."""

    def __init__(self, in_channels: int, channels: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = norm.bn2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = norm.bn2d(channels)
        self.relu = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != channels:
            projection = nn.Conv2d(in_channels, channels, 1, stride, bias=False)
            self.shortcut = nn.Sequential(projection, norm.bn2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        residual = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out: Tensor = self.relu(residual + self.shortcut(x))
        return out


class ResNet(nn.Module):
    """[N, in_channels, H, W] to [N, classes]; every stage but the first halves H and W, rounding up."""

    def __init__(self, *, in_channels: int, channels: Sequence[int], depth: int, classes: int, norm: Norm) -> None:
        super().__init__()
        width = channels[0]
        self.conv = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.bn = norm.bn2d(width)
        self.relu = nn.ReLU()
        blocks: list[nn.Module] = []
        for stage, out_width in enumerate(channels):
            for block in range(depth):
                stride = 2 if stage > 0 and block == 0 else 1
                blocks.append(BasicBlock(width, out_width, stride, norm))
                width = out_width
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        features = self.blocks(self.relu(self.bn(self.conv(x))))
        logits: Tensor = self.classifier(torch.flatten(self.pool(features), 1))
        return logits


def resnet(
    *,
    in_channels: int = 1,
    channels: Sequence[int] = (16, 32, 64),
    depth: int = 2,
    classes: int = 10,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> ResNet:
    """One stage for each entry of `channels`, with `depth` blocks of two convolutions in each."""
    return ResNet(in_channels=in_channels, channels=channels, depth=depth, classes=classes, norm=Norm(momentum, eps))
