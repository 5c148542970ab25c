"""A pre-activation residual network (He et al., 2016): BatchNorm and ReLU come before each convolution.

The sum to which the blocks add is never normalised itself. Several BatchNorms read the same sum, each with its own
scale and shift. This makes the network hard to fold.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.batchnorm import Norm


class PreActBlock(nn.Module):
    """BN, ReLU, Conv, BN, ReLU, Conv; the shortcut is the block's input, projected from behind the first ReLU."""

    def __init__(self, in_channels: int, channels: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.bn1 = norm.bn2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn2 = norm.bn2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.relu = nn.ReLU()
        self.projection: nn.Conv2d | None = None
        if stride != 1 or in_channels != channels:
            self.projection = nn.Conv2d(in_channels, channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        activated = self.relu(self.bn1(x))
        shortcut = x if self.projection is None else self.projection(activated)
        out: Tensor = self.conv2(self.relu(self.bn2(self.conv1(activated)))) + shortcut
        return out


class PreActResNet(nn.Module):
    """[N, in_channels, H, W] to [N, classes]; every stage but the first halves H and W, rounding up."""

    def __init__(self, *, in_channels: int, channels: Sequence[int], depth: int, classes: int, norm: Norm) -> None:
        super().__init__()
        width = channels[0]
        self.conv = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        blocks: list[nn.Module] = []
        for stage, out_width in enumerate(channels):
            for block in range(depth):
                stride = 2 if stage > 0 and block == 0 else 1
                blocks.append(PreActBlock(width, out_width, stride, norm))
                width = out_width
        self.blocks = nn.Sequential(*blocks)
        self.bn = norm.bn2d(width)
        self.relu = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        features = self.relu(self.bn(self.blocks(self.conv(x))))
        logits: Tensor = self.classifier(torch.flatten(self.pool(features), 1))
        return logits


def preact_resnet(
    *,
    in_channels: int = 1,
    channels: Sequence[int] = (16, 32, 64),
    depth: int = 2,
    classes: int = 10,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> PreActResNet:
    """One stage for each entry of `channels`, with `depth` blocks of two convolutions in each."""
    return PreActResNet(
        in_channels=in_channels, channels=channels, depth=depth, classes=classes, norm=Norm(momentum, eps)
    )
