"""FastViT (Vasu et al., 2023) as it is trained: token mixing by a depthwise convolution that is overparametrised.

RepMixer is `x + layer_scale · (mixer(x) - norm(x))`, where `norm` is a BatchNorm alone and `mixer` is a sum of
convolutions and a BatchNorm. All of it is one depthwise convolution, if scales pass through the subtraction and
product.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.batchnorm import Norm
from models.mobileone import MobileOneBlock


def layer_scale(channels: int, value: float) -> nn.Parameter:
    """A learned factor for each channel, [channels, 1, 1]."""
    return nn.Parameter(torch.full((channels, 1, 1), value))


class RepMixer(nn.Module):
    """Mixes neighbouring positions, each channel for itself; the shape stays."""

    def __init__(self, channels: int, kernel: int, scale: float, norm: Norm) -> None:
        super().__init__()
        self.mixer = MobileOneBlock(channels, channels, kernel, norm, groups=channels)
        self.norm = MobileOneBlock(channels, channels, kernel, norm, branches=0, pointwise=False)
        self.layer_scale = layer_scale(channels, scale)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.layer_scale * (self.mixer(x) - self.norm(x))
        return out


class ConvFFN(nn.Module):
    """7×7 depthwise with BatchNorm, then 1×1, GELU, 1×1; scaled and added to the input."""

    def __init__(self, channels: int, expansion: int, scale: float, norm: Norm) -> None:
        super().__init__()
        self.conv = norm.conv_bn2d(channels, channels, 7, groups=channels)
        self.fc1 = nn.Conv2d(channels, expansion * channels, 1)
        self.gelu = nn.GELU()
        self.fc2 = nn.Conv2d(expansion * channels, channels, 1)
        self.layer_scale = layer_scale(channels, scale)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.layer_scale * self.fc2(self.gelu(self.fc1(self.conv(x))))
        return out


class PatchEmbed(nn.Module):
    """Halves H and W: a large and a small depthwise kernel in parallel, over overlapping windows, then 1×1.

    `channels` is a multiple of `in_channels`.
    """

    def __init__(self, in_channels: int, channels: int, norm: Norm) -> None:
        super().__init__()
        self.large = norm.conv_bn2d(in_channels, channels, 7, stride=2, groups=in_channels)
        self.small = norm.conv_bn2d(in_channels, channels, 3, stride=2, groups=in_channels)
        self.gelu = nn.GELU()
        self.pointwise = MobileOneBlock(channels, channels, 1, norm, activation=nn.GELU())

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.pointwise(self.gelu(self.large(x) + self.small(x)))
        return out


class FastViT(nn.Module):
    """[N, in_channels, H, W] to [N, classes]; the stem divides H and W by 4, every stage but the first by 2."""

    def __init__(
        self,
        *,
        in_channels: int,
        channels: Sequence[int],
        depths: Sequence[int],
        expansion: int,
        scale: float,
        classes: int,
        norm: Norm,
    ) -> None:
        super().__init__()
        width = channels[0]
        layers: list[nn.Module] = [
            MobileOneBlock(in_channels, width, 3, norm, stride=2, activation=nn.GELU()),
            MobileOneBlock(width, width, 3, norm, stride=2, groups=width, activation=nn.GELU()),
            MobileOneBlock(width, width, 1, norm, activation=nn.GELU()),
        ]
        for stage, (out_width, depth) in enumerate(zip(channels, depths, strict=True)):
            if stage > 0:
                layers.append(PatchEmbed(width, out_width, norm))
            width = out_width
            for _ in range(depth):
                layers += [RepMixer(width, 3, scale, norm), ConvFFN(width, expansion, scale, norm)]
        layers.append(MobileOneBlock(width, 2 * width, 3, norm, groups=width, se=True, activation=nn.GELU()))
        self.layers = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(2 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(torch.flatten(self.pool(self.layers(x)), 1))
        return logits


def fastvit(
    *,
    in_channels: int = 1,
    channels: Sequence[int] = (6, 12),
    depths: Sequence[int] = (1, 2),
    expansion: int = 3,
    scale: float = 0.1,
    classes: int = 10,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> FastViT:
    """One stage for each entry of `channels`, each a multiple of the one before, and of `depths`.

    `expansion` is how much wider the feed-forward parts are inside, `scale` what layer scales start from (the paper has
    1e-5, which is for deep networks). FastViT-T8 is channels (48, 96, 192, 384) and depths (2, 2, 4, 2). Raises
    `ValueError` if `channels` and `depths` differ in length.
    """
    return FastViT(
        in_channels=in_channels,
        channels=channels,
        depths=depths,
        expansion=expansion,
        scale=scale,
        classes=classes,
        norm=Norm(momentum, eps),
    )
