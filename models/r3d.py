"""A small R3D (Tran et al., 2018): a residual network over time, height and width, with Conv3d and BatchNorm3d."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.batchnorm import Norm


def conv_bn3d(in_channels: int, channels: int, kernel: int, norm: Norm, *, stride: int = 1) -> nn.Sequential:
    """A convolution that keeps D, H and W (divided by `stride`), and BatchNorm."""
    conv = nn.Conv3d(in_channels, channels, kernel, stride, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, norm.bn3d(channels))


class Block3d(nn.Module):
    """Conv, BN, ReLU, Conv, BN; then the shortcut is added, and ReLU."""

    def __init__(self, in_channels: int, channels: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            conv_bn3d(in_channels, channels, 3, norm, stride=stride),
            nn.ReLU(),
            conv_bn3d(channels, channels, 3, norm),
        )
        same = stride == 1 and in_channels == channels
        self.shortcut = nn.Identity() if same else conv_bn3d(in_channels, channels, 1, norm, stride=stride)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.relu(self.layers(x) + self.shortcut(x))
        return out


class R3D(nn.Module):
    """[N, in_channels, D, H, W] to [N, classes]; every stage but the first halves D, H and W, rounding up."""

    def __init__(self, *, in_channels: int, channels: Sequence[int], depth: int, classes: int, norm: Norm) -> None:
        super().__init__()
        width = channels[0]
        layers: list[nn.Module] = [conv_bn3d(in_channels, width, 3, norm), nn.ReLU()]
        for stage, out_width in enumerate(channels):
            for block in range(depth):
                stride = 2 if stage > 0 and block == 0 else 1
                layers.append(Block3d(width, out_width, stride, norm))
                width = out_width
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool3d(1)
        self.classifier = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(torch.flatten(self.pool(self.features(x)), 1))
        return logits


def r3d(
    *,
    in_channels: int = 1,
    channels: Sequence[int] = (4, 6),
    depth: int = 1,
    classes: int = 10,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> R3D:
    """One stage for each entry of `channels`, with `depth` blocks of two convolutions in each."""
    return R3D(in_channels=in_channels, channels=channels, depth=depth, classes=classes, norm=Norm(momentum, eps))
