"""A small NASNet (Zoph et al., 2018): cells of separable branches that are added in pairs and concatenated.

The Concat is read by the next two cells, each time through ReLU, Conv and BatchNorm. Inside a cell the same normalised
tensor goes through convolutions behind a ReLU, through pools, and directly into sums. If the resolution of the older
input is halved, one BatchNorm reads the Concat of two convolutions.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.batchnorm import Norm


def relu_conv_bn(in_channels: int, channels: int, norm: Norm) -> nn.Sequential:
    """ReLU, 1×1 convolution, BatchNorm."""
    return nn.Sequential(nn.ReLU(), norm.conv_bn2d(in_channels, channels, 1))


def separable(channels: int, kernel: int, norm: Norm, *, stride: int = 1) -> nn.Sequential:
    """Twice ReLU, depthwise, 1×1 and BatchNorm; the first depthwise convolution has the `stride`."""
    layers: list[nn.Module] = []
    for step in (stride, 1):
        layers += [
            nn.ReLU(),
            nn.Conv2d(channels, channels, kernel, step, padding=kernel // 2, groups=channels, bias=False),
            norm.conv_bn2d(channels, channels, 1),
        ]
    return nn.Sequential(*layers)


def average(stride: int = 1) -> nn.AvgPool2d:
    """The mean over 3×3; padding is not counted."""
    return nn.AvgPool2d(3, stride, padding=1, count_include_pad=False)


class FactorizedReduction(nn.Module):
    """Halves H and W, rounding up: two 1×1 convolutions read positions that lie one apart, and one BatchNorm both."""

    def __init__(self, in_channels: int, channels: int, norm: Norm) -> None:
        super().__init__()
        self.relu = nn.ReLU()
        self.even = nn.Conv2d(in_channels, channels // 2, 1, stride=2, bias=False)
        self.odd = nn.Conv2d(in_channels, channels - channels // 2, 1, stride=2, bias=False)
        self.bn = norm.bn2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(x)
        shifted = functional.pad(x, (0, 1, 0, 1))[:, :, 1:, 1:]
        out: Tensor = self.bn(torch.cat([self.even(x), self.odd(shifted)], dim=1))
        return out


class NormalCell(nn.Module):
    """Reads `x` and the input before it, `previous`, which has twice the resolution if `reduced`; 6 · channels wide."""

    def __init__(self, previous_channels: int, in_channels: int, channels: int, reduced: bool, norm: Norm) -> None:
        super().__init__()
        older = FactorizedReduction if reduced else relu_conv_bn
        self.left = older(previous_channels, channels, norm)
        self.right = relu_conv_bn(in_channels, channels, norm)
        self.right5 = separable(channels, 5, norm)
        self.right3 = separable(channels, 3, norm)
        self.left5 = separable(channels, 5, norm)
        self.left3 = separable(channels, 3, norm)
        self.other_left3 = separable(channels, 3, norm)
        self.pool = average()

    def forward(self, previous: Tensor, x: Tensor) -> Tensor:
        left, right = self.left(previous), self.right(x)
        pooled = self.pool(left)
        pairs = [
            self.right5(right) + self.left3(left),
            self.left5(left) + self.other_left3(left),
            self.pool(right) + left,
            pooled + pooled,
            self.right3(right) + right,
        ]
        return torch.cat([left, *pairs], dim=1)


class ReductionCell(nn.Module):
    """As a normal cell, but halves H and W, rounding up; 4 · channels wide."""

    def __init__(self, previous_channels: int, in_channels: int, channels: int, norm: Norm) -> None:
        super().__init__()
        self.left = relu_conv_bn(previous_channels, channels, norm)
        self.right = relu_conv_bn(in_channels, channels, norm)
        self.right5 = separable(channels, 5, norm, stride=2)
        self.left7 = separable(channels, 7, norm, stride=2)
        self.other_left7 = separable(channels, 7, norm, stride=2)
        self.left5 = separable(channels, 5, norm, stride=2)
        self.inner3 = separable(channels, 3, norm)
        self.max = nn.MaxPool2d(3, 2, padding=1)
        self.average = average(2)
        self.inner_average = average()

    def forward(self, previous: Tensor, x: Tensor) -> Tensor:
        left, right = self.left(previous), self.right(x)
        inner = self.right5(right) + self.left7(left)
        largest = self.max(right)
        second = largest + self.other_left7(left)
        third = self.average(right) + self.left5(left)
        fourth = self.inner_average(inner) + third
        fifth = self.inner3(inner) + largest
        return torch.cat([second, third, fourth, fifth], dim=1)


class NASNet(nn.Module):
    """[N, in_channels, H, W] to [N, classes]; every stage but the first halves H and W, rounding up."""

    def __init__(
        self, *, in_channels: int, stem: int, channels: int, depth: int, stages: int, classes: int, norm: Norm
    ) -> None:
        super().__init__()
        self.stem = norm.conv_bn2d(in_channels, stem, 3)
        self.cells = nn.ModuleList()
        older, width, reduced = stem, stem, False
        for stage in range(stages):
            if stage > 0:
                channels *= 2
                self.cells.append(ReductionCell(older, width, channels, norm))
                older, width, reduced = width, 4 * channels, True
            for _ in range(depth):
                self.cells.append(NormalCell(older, width, channels, reduced, norm))
                older, width, reduced = width, 6 * channels, False
        self.relu = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        previous = x = self.stem(x)
        for cell in self.cells:
            previous, x = x, cell(previous, x)
        logits: Tensor = self.classifier(torch.flatten(self.pool(self.relu(x)), 1))
        return logits


def nasnet(
    *,
    in_channels: int = 1,
    stem: int = 5,
    channels: int = 3,
    depth: int = 1,
    stages: int = 2,
    classes: int = 10,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> NASNet:
    """`stages` of `depth` normal cells with a reduction cell between; `channels` is doubled with every reduction."""
    return NASNet(
        in_channels=in_channels,
        stem=stem,
        channels=channels,
        depth=depth,
        stages=stages,
        classes=classes,
        norm=Norm(momentum, eps),
    )
