"""A small SENet (Hu et al., 2018): a residual network whose branches are gated, channel by channel.

The gate multiplies the output of a BatchNorm by a number that is computed from this output. Scales pass through the
product. A shift does not, so the convolution before the BatchNorm must absorb it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.batchnorm import Norm


class SqueezeExcite(nn.Module):
    """[N, channels, H, W], each channel times a number in (0, 1) that depends on the means of all channels."""

    def __init__(self, channels: int, reduction: int = 4) -> None:
        super().__init__()
        hidden = max(1, channels // reduction)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.reduce = nn.Conv2d(channels, hidden, 1)
        self.relu = nn.ReLU()
        self.expand = nn.Conv2d(hidden, channels, 1)
        self.sigmoid = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        gate: Tensor = self.sigmoid(self.expand(self.relu(self.reduce(self.pool(x)))))
        return x * gate


class GatedBlock(nn.Module):
    """Conv, BN, ReLU, Conv, BN, `gate`; then the shortcut is added, and ReLU."""

    def __init__(self, in_channels: int, channels: int, stride: int, gate: nn.Module, norm: Norm) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            norm.conv_bn2d(in_channels, channels, 3, stride=stride),
            nn.ReLU(),
            norm.conv_bn2d(channels, channels, 3),
            gate,
        )
        same = stride == 1 and in_channels == channels
        self.shortcut = nn.Identity() if same else norm.conv_bn2d(in_channels, channels, 1, stride=stride)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.relu(self.layers(x) + self.shortcut(x))
        return out


class SENet(nn.Module):
    """[N, in_channels, H, W] to [N, classes]; every stage but the first halves H and W, rounding up."""

    def __init__(
        self, *, in_channels: int, channels: Sequence[int], depth: int, classes: int, reduction: int, norm: Norm
    ) -> None:
        super().__init__()
        width = channels[0]
        layers: list[nn.Module] = [norm.conv_bn2d(in_channels, width, 3), nn.ReLU()]
        for stage, out_width in enumerate(channels):
            for block in range(depth):
                stride = 2 if stage > 0 and block == 0 else 1
                layers.append(GatedBlock(width, out_width, stride, SqueezeExcite(out_width, reduction), norm))
                width = out_width
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(torch.flatten(self.pool(self.features(x)), 1))
        return logits


def senet(
    *,
    in_channels: int = 1,
    channels: Sequence[int] = (6, 10),
    depth: int = 2,
    classes: int = 10,
    reduction: int = 2,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> SENet:
    """One stage for each entry of `channels`, `depth` blocks in each; gates have `reduction` times fewer channels."""
    return SENet(
        in_channels=in_channels,
        channels=channels,
        depth=depth,
        classes=classes,
        reduction=reduction,
        norm=Norm(momentum, eps),
    )
