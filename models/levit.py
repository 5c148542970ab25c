"""A small LeViT (Graham et al., 2021): a transformer whose every Linear is followed by a BatchNorm, over all tokens.

The BatchNorm1d reads [N · tokens, C], the Linear writes [N, tokens, C]: the channel is the last axis on one side and
the second on the other. The two heads have the BatchNorm before the Linear. The attention biases of the original are
left out: no BatchNorm meets them.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.batchnorm import Norm


class LinearBN(nn.Module):
    """[N, tokens, in_features] to [N, tokens, features]: Linear, and BatchNorm over all tokens of all images."""

    def __init__(self, in_features: int, features: int, norm: Norm) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, features, bias=False)
        self.bn = norm.bn1d(features)

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(x)
        out: Tensor = self.bn(x.flatten(0, 1)).reshape_as(x)
        return out


def heads_of(x: Tensor, heads: int) -> Tensor:
    """[N, tokens, heads · width] to [N, heads, tokens, width]."""
    _, tokens, features = x.shape
    return x.reshape(-1, tokens, heads, features // heads).transpose(1, 2)


class Attention(nn.Module):
    """Attention of queries to keys and values; with `stride` 2 the queries are every other row and column.

    Keys are `key` wide in each of the `heads`, values twice as wide.
    """

    def __init__(self, in_features: int, features: int, heads: int, key: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.heads, self.key, self.stride = heads, key, stride
        self.queries = LinearBN(in_features, heads * key, norm)
        self.keys_values = LinearBN(in_features, 3 * heads * key, norm)
        self.projection = nn.Sequential(nn.Hardswish(), LinearBN(2 * heads * key, features, norm))

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        source = x
        if self.stride > 1:
            grid = x.reshape(-1, height, width, x.shape[2])[:, :: self.stride, :: self.stride]
            source = grid.flatten(1, 2)
        queries = heads_of(self.queries(source), self.heads)
        keys, values = torch.split(heads_of(self.keys_values(x), self.heads), [self.key, 2 * self.key], dim=3)
        weights = (queries @ keys.transpose(2, 3) * self.key**-0.5).softmax(3)
        out: Tensor = self.projection((weights @ values).transpose(1, 2).flatten(2))
        return out


class FeedForward(nn.Module):
    """Two Linears with BatchNorm, hard swish between them, twice as wide inside."""

    def __init__(self, features: int, norm: Norm) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            LinearBN(features, 2 * features, norm), nn.Hardswish(), LinearBN(2 * features, features, norm)
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return out


class Block(nn.Module):
    """Attention and feed-forward; each is added to its input, except an attention that changes the shape."""

    def __init__(self, in_features: int, features: int, heads: int, key: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.attention = Attention(in_features, features, heads, key, stride, norm)
        self.feed_forward = FeedForward(features, norm)
        self.residual = stride == 1 and in_features == features

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        mixed: Tensor = self.attention(x, height, width)
        x = x + mixed if self.residual else mixed
        out: Tensor = x + self.feed_forward(x)
        return out


class LeViT(nn.Module):
    """[N, in_channels, H, W] to [N, classes]; the stem divides H and W by 4, every stage but the first by 2."""

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
        self.stem = nn.Sequential(
            norm.conv_bn2d(in_channels, width // 2, 3, stride=2),
            nn.Hardswish(),
            norm.conv_bn2d(width // 2, width, 3, stride=2),
        )
        self.blocks = nn.ModuleList()
        for stage, out_width in enumerate(channels):
            for block in range(depth):
                stride = 2 if stage > 0 and block == 0 else 1
                self.blocks.append(Block(width, out_width, heads, key, stride, norm))
                width = out_width
        self.head = nn.Sequential(norm.bn1d(width), nn.Linear(width, classes))
        self.distilled_head = nn.Sequential(norm.bn1d(width), nn.Linear(width, classes))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        height, width = x.shape[2:]
        x = x.flatten(2).transpose(1, 2)
        for block in self.blocks:
            assert isinstance(block, Block)
            x = block(x, height, width)
            stride = block.attention.stride
            height, width = -(-height // stride), -(-width // stride)
        features = x.mean(1)
        logits: Tensor = (self.head(features) + self.distilled_head(features)) / 2
        return logits


def levit(
    *,
    in_channels: int = 1,
    channels: Sequence[int] = (6, 10),
    depth: int = 2,
    heads: int = 3,
    key: int = 4,
    classes: int = 10,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> LeViT:
    """One stage for each entry of `channels`, the first of them even, with `depth` blocks in each.

    Attention has `heads` with keys of `key` features.
    """
    return LeViT(
        in_channels=in_channels,
        channels=channels,
        depth=depth,
        heads=heads,
        key=key,
        classes=classes,
        norm=Norm(momentum, eps),
    )
