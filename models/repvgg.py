"""RepVGG (Ding et al., 2021) as it is trained: a 3x3, a 1x1 and an identity branch, each with its own BatchNorm."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.batchnorm import Norm


class RepVGGBlock(nn.Module):
    """The sum of the branches, then ReLU; the identity branch exists only if the shape stays."""

    def __init__(self, in_channels: int, channels: int, stride: int, norm: Norm) -> None:
        super().__init__()
        conv3 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        conv1 = nn.Conv2d(in_channels, channels, 1, stride, bias=False)
        self.dense = nn.Sequential(conv3, norm.bn2d(channels))
        self.pointwise = nn.Sequential(conv1, norm.bn2d(channels))
        self.identity = norm.bn2d(channels) if stride == 1 and in_channels == channels else None
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        total = self.dense(x) + self.pointwise(x)
        if self.identity is not None:
            total = total + self.identity(x)
        out: Tensor = self.relu(total)
        return out


class RepVGG(nn.Module):
    """[N, in_channels, H, W] to [N, classes]; every stage but the first halves H and W, rounding up.

    The first divides them by `stride`.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        channels: Sequence[int],
        depths: Sequence[int],
        stride: int,
        classes: int,
        norm: Norm,
    ) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        width = in_channels
        for stage, (out_width, depth) in enumerate(zip(channels, depths, strict=True)):
            for block in range(depth):
                first = stride if stage == 0 else 2
                blocks.append(RepVGGBlock(width, out_width, first if block == 0 else 1, norm))
                width = out_width
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(torch.flatten(self.pool(self.blocks(x)), 1))
        return logits


def repvgg(
    *,
    in_channels: int = 1,
    channels: Sequence[int] = (24, 48),
    depth: int | Sequence[int] = 2,
    stride: int = 1,
    classes: int = 10,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> RepVGG:
    """One stage for each entry of `channels`, with `depth` blocks in each, or as many as `depth` has for it.

    `stride` is that of the first stage. RepVGG-A0 is channels (48, 48, 96, 192, 1280), depth (1, 2, 4, 14, 1) and
    stride 2. Raises `ValueError` if `channels` and a sequence `depth` differ in length.
    """
    return RepVGG(
        in_channels=in_channels,
        channels=channels,
        depths=[depth] * len(channels) if isinstance(depth, int) else depth,
        stride=stride,
        classes=classes,
        norm=Norm(momentum, eps),
    )
