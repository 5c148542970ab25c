"""A small U-Net (Ronneberger et al., 2015): image to image, upsampled by ConvTranspose with BatchNorm behind it."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.batchnorm import Norm


def double_conv(in_channels: int, channels: int, norm: Norm) -> nn.Sequential:
    """Twice a 3x3 convolution with BatchNorm and ReLU; H and W stay."""
    return nn.Sequential(
        nn.Conv2d(in_channels, channels, 3, padding=1, bias=False),
        norm.relu2d(channels),
        nn.Conv2d(channels, channels, 3, padding=1, bias=False),
        norm.relu2d(channels),
    )


class UNet(nn.Module):
    """[N, in_channels, H, W] to [N, classes, H, W]; H and W multiples of 2 to the power of the levels less one."""

    def __init__(self, *, in_channels: int, channels: Sequence[int], classes: int, groups: int, norm: Norm) -> None:
        super().__init__()
        self.pool = nn.MaxPool2d(2)
        self.down = nn.ModuleList()
        self.up = nn.ModuleList()
        self.merge = nn.ModuleList()
        width = in_channels
        for out_width in channels:
            self.down.append(double_conv(width, out_width, norm))
            width = out_width
        for level in range(len(channels) - 2, -1, -1):
            out_width = channels[level]
            # Two kinds of upsampling: windows that tile, and, on the finest level, windows that overlap, in groups.
            upsample = (
                nn.ConvTranspose2d(width, out_width, 4, stride=2, padding=1, groups=groups, bias=False)
                if level == 0
                else nn.ConvTranspose2d(width, out_width, 2, stride=2)
            )
            self.up.append(nn.Sequential(upsample, norm.relu2d(out_width)))
            self.merge.append(double_conv(2 * out_width, out_width, norm))
            width = out_width
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips: list[Tensor] = []
        for level, down in enumerate(self.down):
            x = down(x if level == 0 else self.pool(x))
            skips.append(x)
        skips.pop()
        for up, merge in zip(self.up, self.merge, strict=True):
            x = merge(torch.cat([up(x), skips.pop()], dim=1))
        image: Tensor = self.head(x)
        return image


def unet(
    *,
    in_channels: int = 1,
    channels: Sequence[int] = (16, 32, 64),
    classes: int = 1,
    groups: int = 4,
    momentum: float = 0.1,
    eps: float = 1e-5,
    placement: str = "before",
) -> UNet:
    """One level for each entry of `channels`; the finest ConvTranspose has `groups`, which divide its channels.

    `placement` puts BatchNorm "before" or "after" the activation.
    """
    return UNet(
        in_channels=in_channels, channels=channels, classes=classes, groups=groups, norm=Norm(momentum, eps, placement)
    )
