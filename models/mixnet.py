"""A small MixNet (Tan and Le, 2019): depthwise convolutions of several kernel sizes, each on its part of the channels.

The BatchNorm reads the Concat of their outputs, so each convolution absorbs a part of its scale and shift.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.batchnorm import Norm
from models.senet import SqueezeExcite


class MixConv(nn.Module):
    """A depthwise convolution of another size for each part of the channels; H and W are divided by `stride`."""

    def __init__(self, channels: int, kernels: Sequence[int], stride: int) -> None:
        super().__init__()
        # The first part gets the remainder of an even division, as in the original.
        part = channels // len(kernels)
        self.sizes = [channels - part * (len(kernels) - 1), *[part] * (len(kernels) - 1)]
        self.convs = nn.ModuleList(
            nn.Conv2d(size, size, kernel, stride, padding=kernel // 2, groups=size, bias=False)
            for size, kernel in zip(self.sizes, kernels, strict=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        parts = torch.split(x, self.sizes, dim=1)
        return torch.cat([conv(part) for conv, part in zip(self.convs, parts, strict=True)], dim=1)


class MixBlock(nn.Module):
    """1×1 expansion, MixConv, SE, 1×1 projection without activation; added to its input if the shapes agree."""

    def __init__(
        self, in_channels: int, channels: int, stride: int, expansion: int, kernels: Sequence[int], norm: Norm
    ) -> None:
        super().__init__()
        hidden = in_channels * expansion
        self.layers = nn.Sequential(
            norm.conv_bn2d(in_channels, hidden, 1),
            nn.ReLU(),
            MixConv(hidden, kernels, stride),
            norm.bn2d(hidden),
            nn.ReLU(),
            SqueezeExcite(hidden),
            norm.conv_bn2d(hidden, channels, 1),
        )
        self.residual = stride == 1 and in_channels == channels

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return out + x if self.residual else out


class MixNet(nn.Module):
    """[N, in_channels, H, W] to [N, classes]; every stage but the first halves H and W, rounding up."""

    def __init__(
        self,
        *,
        in_channels: int,
        channels: Sequence[int],
        depth: int,
        expansion: int,
        kernels: Sequence[int],
        classes: int,
        norm: Norm,
    ) -> None:
        super().__init__()
        width = channels[0]
        layers: list[nn.Module] = [norm.conv_bn2d(in_channels, width, 3), nn.ReLU()]
        for stage, out_width in enumerate(channels):
            for block in range(depth):
                stride = 2 if stage > 0 and block == 0 else 1
                layers.append(MixBlock(width, out_width, stride, expansion, kernels, norm))
                width = out_width
        layers += [norm.conv_bn2d(width, 2 * width, 1), nn.ReLU()]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(2 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(x).mean((2, 3)))
        return logits


def mixnet(
    *,
    in_channels: int = 1,
    channels: Sequence[int] = (5, 8),
    depth: int = 2,
    expansion: int = 2,
    kernels: Sequence[int] = (3, 5, 7),
    classes: int = 10,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> MixNet:
    """One stage for each entry of `channels`, `depth` blocks in each, `expansion` times as wide inside.

    `kernels` are odd, and each gets its part of the channels.
    """
    return MixNet(
        in_channels=in_channels,
        channels=channels,
        depth=depth,
        expansion=expansion,
        kernels=kernels,
        classes=classes,
        norm=Norm(momentum, eps),
    )
