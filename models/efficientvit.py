"""A small EfficientViT (Liu et al., 2023): attention with cascaded heads, and BatchNorm everywhere.

Each head reads its part of the channels plus the output of the head before it; a convolution with BatchNorm is split
into query, key and value. The head of the network is a BatchNorm1d before a Linear. Attention is over the whole image,
not over windows. The attention biases of the original are left out: no BatchNorm meets them.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.batchnorm import Norm
from models.convmixer import Residual
from models.senet import SqueezeExcite


def feed_forward(channels: int, norm: Norm) -> Residual:
    """1×1 to twice the channels, ReLU, 1×1 back; added to the input."""
    return Residual(norm.conv_bn2d(channels, 2 * channels, 1), nn.ReLU(), norm.conv_bn2d(2 * channels, channels, 1))


def depthwise(channels: int, norm: Norm) -> Residual:
    """3×3 depthwise with BatchNorm, added to the input."""
    return Residual(norm.conv_bn2d(channels, channels, 3, groups=channels))


class CascadedGroupAttention(nn.Module):
    """[N, channels, H, W] to the same; `heads` divides `channels`, queries and keys have `key` channels in each."""

    def __init__(self, channels: int, heads: int, key: int, norm: Norm) -> None:
        super().__init__()
        self.key, self.value = key, channels // heads
        self.qkv = nn.ModuleList(norm.conv_bn2d(self.value, 2 * key + self.value, 1) for _ in range(heads))
        self.local = nn.ModuleList(norm.conv_bn2d(key, key, 3, groups=key) for _ in range(heads))
        self.projection = nn.Sequential(nn.ReLU(), norm.conv_bn2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        parts = x.chunk(len(self.qkv), dim=1)
        written: list[Tensor] = []
        for part, qkv, local in zip(parts, self.qkv, self.local, strict=True):
            read = part + written[-1] if written else part
            query, key, value = qkv(read).split([self.key, self.key, self.value], dim=1)
            query, key, value = local(query).flatten(2), key.flatten(2), value.flatten(2)
            weights = (query.transpose(1, 2) * self.key**-0.5 @ key).softmax(2)
            written.append((value @ weights.transpose(1, 2)).reshape(part.shape))
        out: Tensor = self.projection(torch.cat(written, dim=1))
        return out


class EfficientViT(nn.Module):
    """[N, in_channels, H, W] to [N, classes]; the stem and every stage but the first halve H and W, rounding up."""

    def __init__(
        self,
        *,
        in_channels: int,
        channels: Sequence[int],
        depth: int,
        heads: int,
        key: int,
        classes: int,
        norm: Norm,
    ) -> None:
        super().__init__()
        width = channels[0]
        layers: list[nn.Module] = [
            norm.conv_bn2d(in_channels, width // 2, 3),
            nn.ReLU(),
            norm.conv_bn2d(width // 2, width, 3, stride=2),
        ]
        for stage, out_width in enumerate(channels):
            if stage > 0:
                hidden = 2 * width
                layers += [
                    norm.conv_bn2d(width, hidden, 1),
                    nn.ReLU(),
                    norm.conv_bn2d(hidden, hidden, 3, stride=2, groups=hidden),
                    nn.ReLU(),
                    SqueezeExcite(hidden),
                    norm.conv_bn2d(hidden, out_width, 1),
                ]
            width = out_width
            for _ in range(depth):
                layers += [
                    depthwise(width, norm),
                    feed_forward(width, norm),
                    Residual(CascadedGroupAttention(width, heads, key, norm)),
                    depthwise(width, norm),
                    feed_forward(width, norm),
                ]
        self.layers = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Sequential(norm.bn1d(width), nn.Linear(width, classes))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.flatten(self.pool(self.layers(x)), 1))
        return logits


def efficientvit(
    *,
    in_channels: int = 1,
    channels: Sequence[int] = (6, 10),
    depth: int = 1,
    heads: int = 2,
    key: int = 4,
    classes: int = 10,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> EfficientViT:
    """One stage for each entry of `channels`, multiples of `heads` and the first even, with `depth` blocks in each."""
    return EfficientViT(
        in_channels=in_channels,
        channels=channels,
        depth=depth,
        heads=heads,
        key=key,
        classes=classes,
        norm=Norm(momentum, eps),
    )
