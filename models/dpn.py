"""Dual path network (Chen et al., 2017) in small: one part of the channels is added to, the other is appended to.

Each BatchNorm is before its activation and reads the Concat of both parts. The next block reads the same Concat through
another BatchNorm. The output of a block is sliced into one part for each path.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.batchnorm import Norm


def bn_relu_conv(
    in_channels: int, channels: int, kernel: int, norm: Norm, *, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    """BatchNorm, ReLU, and a convolution that keeps H and W (divided by `stride`)."""
    conv = nn.Conv2d(in_channels, channels, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
    return nn.Sequential(norm.bn2d(in_channels), nn.ReLU(), conv)


class DualPathBlock(nn.Module):
    """A bottleneck whose first `residual` channels are added to the first path, and the other `growth` appended.

    The first block of a stage (`project`) makes both paths by a convolution of its own, with twice `growth` channels to
    begin with.
    """

    def __init__(
        self,
        in_channels: int,
        hidden: int,
        residual: int,
        growth: int,
        norm: Norm,
        *,
        groups: int,
        stride: int,
        project: bool,
    ) -> None:
        super().__init__()
        self.residual = residual
        self.projection: nn.Module | None = None
        if project:
            self.projection = bn_relu_conv(in_channels, residual + 2 * growth, 1, norm, stride=stride)
        self.layers = nn.Sequential(
            bn_relu_conv(in_channels, hidden, 1, norm),
            bn_relu_conv(hidden, hidden, 3, norm, stride=stride, groups=groups),
            bn_relu_conv(hidden, residual + growth, 1, norm),
        )

    def forward(self, x: Tensor) -> Tensor:
        out = self.layers(x)
        paths = x if self.projection is None else self.projection(x)
        added = paths[:, : self.residual] + out[:, : self.residual]
        return torch.cat([added, paths[:, self.residual :], out[:, self.residual :]], dim=1)


class DPN(nn.Module):
    """[N, in_channels, H, W] to [N, classes]; every stage but the first halves H and W, rounding up."""

    def __init__(
        self,
        *,
        in_channels: int,
        stem: int,
        channels: Sequence[int],
        growth: int,
        depth: int,
        groups: int,
        classes: int,
        norm: Norm,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [norm.conv_bn2d(in_channels, stem, 3), nn.ReLU()]
        width = stem
        for stage, residual in enumerate(channels):
            for block in range(depth):
                layers.append(
                    DualPathBlock(
                        width,
                        groups * growth,
                        residual,
                        growth,
                        norm,
                        groups=groups,
                        stride=2 if stage > 0 and block == 0 else 1,
                        project=block == 0,
                    )
                )
                width = residual + 3 * growth if block == 0 else width + growth
        layers += [norm.bn2d(width), nn.ReLU()]
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(torch.flatten(self.pool(self.features(x)), 1))
        return logits


def dpn(
    *,
    in_channels: int = 1,
    stem: int = 5,
    channels: Sequence[int] = (6, 10),
    growth: int = 3,
    depth: int = 2,
    groups: int = 4,
    classes: int = 10,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> DPN:
    """One stage for each entry of `channels`, the width of its residual path, with `depth` blocks in each.

    A block appends `growth` channels, and has `groups` times as many inside, in `groups`.
    """
    return DPN(
        in_channels=in_channels,
        stem=stem,
        channels=channels,
        growth=growth,
        depth=depth,
        groups=groups,
        classes=classes,
        norm=Norm(momentum, eps),
    )
