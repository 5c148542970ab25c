"""A small ShuffleNetV2 (Ma et al., 2018): half of the channels bypass the branch, and a shuffle mixes both halves.

The shuffle is a reshape, a transposition and a reshape. Folding has to track every channel through them.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.batchnorm import Norm


def shuffle(x: Tensor) -> Tensor:
    """Interleave the two halves of the channels of [N, C, H, W]."""
    _, channels, height, width = x.shape
    return x.reshape(-1, 2, channels // 2, height, width).transpose(1, 2).reshape(-1, channels, height, width)


def branch(in_channels: int, channels: int, stride: int, norm: Norm) -> nn.Sequential:
    """1×1, 3×3 depthwise, 1×1, with BatchNorm behind each, and ReLU behind the 1×1 ones."""
    return nn.Sequential(
        norm.conv_bn2d(in_channels, channels, 1),
        nn.ReLU(),
        norm.conv_bn2d(channels, channels, 3, stride=stride, groups=channels),
        norm.conv_bn2d(channels, channels, 1),
        nn.ReLU(),
    )


class Unit(nn.Module):
    """One half of the channels goes through the branch, the other bypasses it; then they are shuffled. The shape
    stays."""

    def __init__(self, channels: int, norm: Norm) -> None:
        super().__init__()
        self.branch = branch(channels // 2, channels // 2, 1, norm)

    def forward(self, x: Tensor) -> Tensor:
        passing, changing = x.chunk(2, dim=1)
        return shuffle(torch.cat([passing, self.branch(changing)], dim=1))


class DownUnit(nn.Module):
    """All channels go through both branches; H and W are halved, rounding up."""

    def __init__(self, in_channels: int, channels: int, norm: Norm) -> None:
        super().__init__()
        half = channels // 2
        self.short = nn.Sequential(
            norm.conv_bn2d(in_channels, in_channels, 3, stride=2, groups=in_channels),
            norm.conv_bn2d(in_channels, half, 1),
            nn.ReLU(),
        )
        self.long = branch(in_channels, half, 2, norm)

    def forward(self, x: Tensor) -> Tensor:
        return shuffle(torch.cat([self.short(x), self.long(x)], dim=1))


class ShuffleNet(nn.Module):
    """[N, in_channels, H, W] to [N, classes]; every stage halves H and W, rounding up."""

    def __init__(
        self, *, in_channels: int, stem: int, channels: Sequence[int], depth: int, classes: int, norm: Norm
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [norm.conv_bn2d(in_channels, stem, 3), nn.ReLU()]
        width = stem
        for out_width in channels:
            layers.append(DownUnit(width, out_width, norm))
            layers += [Unit(out_width, norm) for _ in range(depth - 1)]
            width = out_width
        layers += [norm.conv_bn2d(width, 2 * width, 1), nn.ReLU()]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(2 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(x).mean((2, 3)))
        return logits


def shufflenet(
    *,
    in_channels: int = 1,
    stem: int = 5,
    channels: Sequence[int] = (6, 12),
    depth: int = 2,
    classes: int = 10,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> ShuffleNet:
    """One stage for each entry of `channels`, all even, with `depth` units in each, of which the first halves."""
    return ShuffleNet(
        in_channels=in_channels, stem=stem, channels=channels, depth=depth, classes=classes, norm=Norm(momentum, eps)
    )
