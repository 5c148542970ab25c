"""A plain convolutional network: Conv, BatchNorm, ReLU, with max pooling between the stages."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.batchnorm import Norm


class CNN(nn.Module):
    """[N, in_channels, H, W] to [N, classes]; H and W at least 2 to the power of the stages less one."""

    def __init__(
        self, *, in_channels: int, channels: Sequence[int], depth: int, classes: int, bias: bool, norm: Norm
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = in_channels
        for stage, out_width in enumerate(channels):
            if stage > 0:
                layers.append(nn.MaxPool2d(2))
            for _ in range(depth):
                layers += [nn.Conv2d(width, out_width, 3, padding=1, bias=bias), norm.relu2d(out_width)]
                width = out_width
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(torch.flatten(self.pool(self.features(x)), 1))
        return logits


def cnn(
    *,
    in_channels: int = 1,
    channels: Sequence[int] = (24, 48),
    depth: int = 2,
    classes: int = 10,
    bias: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    placement: str = "before",
) -> CNN:
    """One stage for each entry of `channels`, with `depth` convolutions in each; `bias` gives them a bias.

    `placement` puts BatchNorm "before" or "after" the activation.
    """
    return CNN(
        in_channels=in_channels,
        channels=channels,
        depth=depth,
        classes=classes,
        bias=bias,
        norm=Norm(momentum, eps, placement),
    )
