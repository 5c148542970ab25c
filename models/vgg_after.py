"""VGG with BatchNorm after the activation: Conv, ReLU, BatchNorm.

A BatchNorm is followed by the next convolution. If this pads with zeros, it cannot absorb a shift. The last BatchNorm,
before pooling and the classifier, always folds; with `padding=0` the others fold too.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.batchnorm import Norm


class VGGAfter(nn.Module):
    """[N, in_channels, H, W] to [N, classes].

    H and W are halved between stages, and shrink by `2 - 2 * padding` at each convolution.
    """

    def __init__(
        self, *, in_channels: int, channels: Sequence[int], depth: int, classes: int, padding: int, norm: Norm
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = in_channels
        for stage, out_width in enumerate(channels):
            if stage > 0:
                layers.append(nn.MaxPool2d(2))
            for _ in range(depth):
                layers += [nn.Conv2d(width, out_width, 3, padding=padding), norm.relu2d(out_width)]
                width = out_width
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(torch.flatten(self.pool(self.features(x)), 1))
        return logits


def vgg_after(
    *,
    in_channels: int = 1,
    channels: Sequence[int] = (24, 48),
    depth: int = 2,
    classes: int = 10,
    padding: int = 1,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> VGGAfter:
    """One stage for each entry of `channels`, `depth` 3x3 convolutions in each, padded with `padding` zeros."""
    return VGGAfter(
        in_channels=in_channels,
        channels=channels,
        depth=depth,
        classes=classes,
        padding=padding,
        norm=Norm(momentum, eps, placement="after"),
    )
