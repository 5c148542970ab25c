"""A small PyramidNet (Han et al., 2017): each block is a little wider, and its shortcut is filled up with zeros.

Zeros that Pad appends along the channels have a gauge of their own: any scale, and no shift. A block begins
and ends with a BatchNorm, so the sums that blocks write are normalised on one side only.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.batchnorm import Norm


class PyramidBlock(nn.Module):
    """BN, Conv, BN, ReLU, Conv, BN; then the shortcut is added, averaged if `stride` is 2, and padded with zeros."""

    def __init__(self, in_channels: int, channels: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            norm.bn2d(in_channels),
            nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False),
            norm.bn2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            norm.bn2d(channels),
        )
        self.pool = nn.Identity() if stride == 1 else nn.AvgPool2d(2, ceil_mode=True)
        self.extra = channels - in_channels

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x) + functional.pad(self.pool(x), (0, 0, 0, 0, 0, self.extra))
        return out


class PyramidNet(nn.Module):
    """[N, in_channels, H, W] to [N, classes]; every stage but the first halves H and W, rounding up."""

    def __init__(
        self, *, in_channels: int, channels: int, widening: int, depth: int, stages: int, classes: int, norm: Norm
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [norm.conv_bn2d(in_channels, channels, 3)]
        width = channels
        for stage in range(stages):
            for block in range(depth):
                stride = 2 if stage > 0 and block == 0 else 1
                layers.append(PyramidBlock(width, width + widening, stride, norm))
                width += widening
        layers += [norm.bn2d(width), nn.ReLU()]
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(torch.flatten(self.pool(self.features(x)), 1))
        return logits


def pyramidnet(
    *,
    in_channels: int = 1,
    channels: int = 6,
    widening: int = 2,
    depth: int = 2,
    stages: int = 2,
    classes: int = 10,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> PyramidNet:
    """`stages` of `depth` blocks; the stem has `channels`, and each block `widening` more than the one before."""
    return PyramidNet(
        in_channels=in_channels,
        channels=channels,
        widening=widening,
        depth=depth,
        stages=stages,
        classes=classes,
        norm=Norm(momentum, eps),
    )
