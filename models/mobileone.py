"""MobileOne (Vasu et al., 2023) as it is trained: parallel branches, each with a BatchNorm, add up to one convolution.

Once the BatchNorms are folded, the k×k branches, the 1×1 branch and the identity are one convolution, and the network
is a plain chain. The architecture was made for this merge.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.batchnorm import Norm
from models.senet import SqueezeExcite


class MobileOneBlock(nn.Module):
    """The sum of the branches, then perhaps SE, then `activation`.

    There are `branches` convolutions with BatchNorm of the full kernel, one of 1×1 if the kernel is larger and
    `pointwise` is true, and a BatchNorm alone where input and output have the same shape.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        kernel: int,
        norm: Norm,
        *,
        stride: int = 1,
        groups: int = 1,
        branches: int = 1,
        pointwise: bool = True,
        se: bool = False,
        activation: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            norm.conv_bn2d(in_channels, channels, kernel, stride=stride, groups=groups) for _ in range(branches)
        )
        if pointwise and kernel > 1:
            self.branches.append(norm.conv_bn2d(in_channels, channels, 1, stride=stride, groups=groups))
        if stride == 1 and in_channels == channels:
            self.branches.append(norm.bn2d(channels))
        self.se = SqueezeExcite(channels) if se else nn.Identity()
        self.activation = nn.Identity() if activation is None else activation

    def forward(self, x: Tensor) -> Tensor:
        total: Tensor = self.branches[0](x)
        for branch in self.branches[1:]:
            total = total + branch(x)
        out: Tensor = self.activation(self.se(total))
        return out


class MobileOne(nn.Module):
    """[N, in_channels, H, W] to [N, classes]; the stem and every stage halve H and W, rounding up."""

    def __init__(
        self,
        *,
        in_channels: int,
        channels: Sequence[int],
        depths: Sequence[int],
        branches: int,
        se: bool,
        classes: int,
        norm: Norm,
    ) -> None:
        super().__init__()
        width = channels[0]
        blocks: list[nn.Module] = [MobileOneBlock(in_channels, width, 3, norm, stride=2, activation=nn.ReLU())]
        for stage, (out_width, depth) in enumerate(zip(channels, depths, strict=True)):
            gated = se and stage == len(channels) - 1
            for block in range(depth):
                blocks += [
                    MobileOneBlock(
                        width,
                        width,
                        3,
                        norm,
                        stride=2 if block == 0 else 1,
                        groups=width,
                        branches=branches,
                        se=gated,
                        activation=nn.ReLU(),
                    ),
                    MobileOneBlock(width, out_width, 1, norm, branches=branches, se=gated, activation=nn.ReLU()),
                ]
                width = out_width
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(torch.flatten(self.pool(self.blocks(x)), 1))
        return logits


def mobileone(
    *,
    in_channels: int = 1,
    channels: Sequence[int] = (6, 10, 12),
    scale: float = 1.0,
    depths: Sequence[int] = (1, 2, 1),
    branches: int = 2,
    se: bool = False,
    classes: int = 10,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> MobileOne:
    """One stage for each entry of `channels` (times `scale`) and `depths`, each block a depthwise and a 1×1 part.

    With `se`, the last stage has squeeze-and-excite. MobileOne-S0 is channels (48, 128, 256, 1024), depths
    (2, 8, 10, 1) and 4 branches. Raises `ValueError` if `channels` and `depths` differ in length.
    """
    return MobileOne(
        in_channels=in_channels,
        channels=[round(width * scale) for width in channels],
        depths=depths,
        branches=branches,
        se=se,
        classes=classes,
        norm=Norm(momentum, eps),
    )
