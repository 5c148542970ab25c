"""A small DenseNet (Huang et al., 2017): each layer reads the Concat of all before it, through its own BatchNorm."""

import torch
from torch import Tensor, nn

from models.batchnorm import Norm


class DenseLayer(nn.Module):
    """BN, ReLU, Conv; the new channels are appended to the input's."""

    def __init__(self, in_channels: int, growth: int, norm: Norm) -> None:
        super().__init__()
        self.bn = norm.bn2d(in_channels)
        self.relu = nn.ReLU()
        self.conv = nn.Conv2d(in_channels, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv(self.relu(self.bn(x)))], dim=1)


class DenseNet(nn.Module):
    """[N, in_channels, H, W] to [N, classes]; H and W are halved between the dense blocks."""

    def __init__(
        self, *, in_channels: int, channels: int, growth: int, depth: int, blocks: int, classes: int, norm: Norm
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)]
        width = channels
        for block in range(blocks):
            if block > 0:
                transition = nn.Conv2d(width, width // 2, 1, bias=False)
                layers += [norm.bn2d(width), nn.ReLU(), transition, nn.AvgPool2d(2)]
                width //= 2
            for _ in range(depth):
                layers.append(DenseLayer(width, growth, norm))
                width += growth
        layers += [norm.bn2d(width), nn.ReLU()]
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(torch.flatten(self.pool(self.features(x)), 1))
        return logits


def densenet(
    *,
    in_channels: int = 1,
    channels: int = 24,
    growth: int = 16,
    depth: int = 3,
    blocks: int = 2,
    classes: int = 10,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> DenseNet:
    """`blocks` dense blocks of `depth` layers, each of which adds `growth` channels to the `channels` of the stem."""
    return DenseNet(
        in_channels=in_channels,
        channels=channels,
        growth=growth,
        depth=depth,
        blocks=blocks,
        classes=classes,
        norm=Norm(momentum, eps),
    )
