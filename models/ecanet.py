"""A small ECA-Net (Wang et al., 2020): as in SENet, but the gate is one short convolution along the channels.

For this Conv1d the channels are positions of a sequence, and all have the same weights. A scale or shift that differs
between channels cannot be folded into it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.batchnorm import Norm
from models.senet import GatedBlock


class EfficientChannelAttention(nn.Module):
    """[N, channels, H, W], each channel times a number in (0, 1) that the means of its neighbours decide."""

    def __init__(self, kernel: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.conv = nn.Conv1d(1, 1, kernel, padding=kernel // 2, bias=False)
        self.sigmoid = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        means = self.pool(x).squeeze(-1).transpose(1, 2)
        gate: Tensor = self.sigmoid(self.conv(means)).transpose(1, 2).unsqueeze(-1)
        return x * gate


class ECANet(nn.Module):
    """[N, in_channels, H, W] to [N, classes]; every stage but the first halves H and W, rounding up."""

    def __init__(
        self, *, in_channels: int, channels: Sequence[int], depth: int, classes: int, kernel: int, norm: Norm
    ) -> None:
        super().__init__()
        width = channels[0]
        layers: list[nn.Module] = [norm.conv_bn2d(in_channels, width, 3), nn.ReLU()]
        for stage, out_width in enumerate(channels):
            for block in range(depth):
                stride = 2 if stage > 0 and block == 0 else 1
                layers.append(GatedBlock(width, out_width, stride, EfficientChannelAttention(kernel), norm))
                width = out_width
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(torch.flatten(self.pool(self.features(x)), 1))
        return logits


def ecanet(
    *,
    in_channels: int = 1,
    channels: Sequence[int] = (6, 10),
    depth: int = 2,
    classes: int = 10,
    kernel: int = 3,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> ECANet:
    """One stage for each entry of `channels`, `depth` blocks in each; a gate sees `kernel` channels, an odd number."""
    return ECANet(
        in_channels=in_channels,
        channels=channels,
        depth=depth,
        classes=classes,
        kernel=kernel,
        norm=Norm(momentum, eps),
    )
