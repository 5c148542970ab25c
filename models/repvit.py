"""RepViT (Wang et al., 2024) as it is trained: a BatchNorm over the sum of a 3×3, a 1×1 and an identity branch.

The outer BatchNorm reads a sum that includes the input itself, so its scale and shift must go into all three branches
at once. This is possible if the branches are merged first. Two heads, each a BatchNorm1d before a Linear, read the
pooled features.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.batchnorm import Norm
from models.senet import SqueezeExcite


class RepVGGDW(nn.Module):
    """BN(conv3×3 + BN, plus conv1×1, plus x), all depthwise; the shape stays."""

    def __init__(self, channels: int, norm: Norm) -> None:
        super().__init__()
        self.dense = norm.conv_bn2d(channels, channels, 3, groups=channels)
        self.pointwise = nn.Conv2d(channels, channels, 1, groups=channels)
        self.bn = norm.bn2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.bn(self.dense(x) + self.pointwise(x) + x)
        return out


class ChannelMixer(nn.Module):
    """1×1 to twice the channels, GELU, 1×1 back, each with BatchNorm; added to the input."""

    def __init__(self, channels: int, norm: Norm) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            norm.conv_bn2d(channels, 2 * channels, 1), nn.GELU(), norm.conv_bn2d(2 * channels, channels, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.layers(x)
        return out


class RepViT(nn.Module):
    """[N, in_channels, H, W] to [N, classes]; the stem divides H and W by 4, every stage but the first by 2."""

    def __init__(
        self, *, in_channels: int, channels: Sequence[int], depths: Sequence[int], classes: int, norm: Norm
    ) -> None:
        super().__init__()
        width = channels[0]
        layers: list[nn.Module] = [
            norm.conv_bn2d(in_channels, width // 2, 3, stride=2),
            nn.GELU(),
            norm.conv_bn2d(width // 2, width, 3, stride=2),
        ]
        for stage, (out_width, depth) in enumerate(zip(channels, depths, strict=True)):
            if stage > 0:
                layers += [
                    norm.conv_bn2d(width, width, 3, stride=2, groups=width),
                    norm.conv_bn2d(width, out_width, 1),
                    ChannelMixer(out_width, norm),
                ]
            width = out_width
            for block in range(depth):
                layers.append(RepVGGDW(width, norm))
                if block % 2 == 0:
                    layers.append(SqueezeExcite(width))
                layers.append(ChannelMixer(width, norm))
        self.layers = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Sequential(norm.bn1d(width), nn.Linear(width, classes))
        self.distilled_head = nn.Sequential(norm.bn1d(width), nn.Linear(width, classes))

    def forward(self, x: Tensor) -> Tensor:
        features = torch.flatten(self.pool(self.layers(x)), 1)
        logits: Tensor = (self.head(features) + self.distilled_head(features)) / 2
        return logits


def repvit(
    *,
    in_channels: int = 1,
    channels: Sequence[int] = (6, 10),
    depths: Sequence[int] = (2, 1),
    classes: int = 10,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> RepViT:
    """One stage for each entry of `channels`, the first of them even, and of `depths`; SE in every other block.

    RepViT-M0.9 is channels (48, 96, 192, 384) and depths (3, 3, 15, 2). Raises `ValueError` if `channels` and
    `depths` differ in length.
    """
    return RepViT(in_channels=in_channels, channels=channels, depths=depths, classes=classes, norm=Norm(momentum, eps))
