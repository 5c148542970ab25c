"""ResNetV2 (He et al., 2016) with bottlenecks: BatchNorm and ReLU before a 1×1, a 3×3 and a 1×1 convolution.

The first BatchNorm of a block reads the sum that all later blocks add to. Its ReLU is followed by convolutions
without padding, which can absorb a shift: the 1×1 of the branch and, at the start of a stage, that of the shortcut.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.batchnorm import Norm


class PreActBottleneck(nn.Module):
    """[N, in_channels, H, W] to [N, 4 · channels, H, W], H and W divided by `stride`."""

    def __init__(self, in_channels: int, channels: int, stride: int, norm: Norm) -> None:
        super().__init__()
        out_channels = 4 * channels
        self.bn1 = norm.bn2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn2 = norm.bn2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, padding=1, bias=False)
        self.bn3 = norm.bn2d(channels)
        self.conv3 = nn.Conv2d(channels, out_channels, 1, bias=False)
        self.relu = nn.ReLU()
        self.projection: nn.Conv2d | None = None
        if stride != 1 or in_channels != out_channels:
            self.projection = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        activated = self.relu(self.bn1(x))
        shortcut = x if self.projection is None else self.projection(activated)
        hidden = self.conv2(self.relu(self.bn2(self.conv1(activated))))
        out: Tensor = self.conv3(self.relu(self.bn3(hidden))) + shortcut
        return out


class ResNetV2(nn.Module):
    """[N, in_channels, H, W] to [N, classes]; every stage but the first halves H and W, rounding up."""

    def __init__(
        self, *, in_channels: int, stem: int, channels: Sequence[int], depth: int, classes: int, norm: Norm
    ) -> None:
        super().__init__()
        width = stem
        layers: list[nn.Module] = [nn.Conv2d(in_channels, width, 3, padding=1, bias=False)]
        for stage, hidden in enumerate(channels):
            for block in range(depth):
                stride = 2 if stage > 0 and block == 0 else 1
                layers.append(PreActBottleneck(width, hidden, stride, norm))
                width = 4 * hidden
        layers += [norm.bn2d(width), nn.ReLU()]
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(torch.flatten(self.pool(self.features(x)), 1))
        return logits


def resnetv2(
    *,
    in_channels: int = 1,
    stem: int = 6,
    channels: Sequence[int] = (3, 5),
    depth: int = 2,
    classes: int = 10,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> ResNetV2:
    """One stage for each entry of `channels`, the width inside its blocks, which are 4 times as wide outside."""
    return ResNetV2(
        in_channels=in_channels, stem=stem, channels=channels, depth=depth, classes=classes, norm=Norm(momentum, eps)
    )
