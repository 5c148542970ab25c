"""ConvMixer (Trockman and Kolter, 2023): every convolution is followed by an activation, and that by a BatchNorm.

A BatchNorm after the activation feeds the depthwise convolution of the next block, which pads with zeros, and the
residual sum around it. The paper has GELU, through which no scale passes; through ReLU, scales do.
"""

import torch
from torch import Tensor, nn

from models.batchnorm import Norm

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU}


class Residual(nn.Module):
    """The output of the layers, plus the input."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x) + x
        return out


class ConvMixer(nn.Module):
    """[N, in_channels, H, W] to [N, classes]; H and W at least `patch`."""

    def __init__(
        self,
        *,
        in_channels: int,
        channels: int,
        depth: int,
        kernel: int,
        patch: int,
        classes: int,
        activation: type[nn.Module],
        norm: Norm,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(in_channels, channels, patch, patch), activation(), norm.bn2d(channels)]
        for _ in range(depth):
            depthwise = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels)
            layers += [
                Residual(depthwise, activation(), norm.bn2d(channels)),
                nn.Conv2d(channels, channels, 1),
                activation(),
                norm.bn2d(channels),
            ]
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(torch.flatten(self.pool(self.features(x)), 1))
        return logits


def convmixer(
    *,
    in_channels: int = 1,
    channels: int = 6,
    depth: int = 2,
    kernel: int = 5,
    patch: int = 2,
    classes: int = 10,
    activation: str = "relu",
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> ConvMixer:
    """`depth` blocks with a depthwise convolution of `kernel`, an odd number, over patches of `patch` by `patch`.

    Raises `ValueError` for an `activation` that is neither "relu" nor "gelu".
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation {activation!r}: expected 'relu' or 'gelu'")
    return ConvMixer(
        in_channels=in_channels,
        channels=channels,
        depth=depth,
        kernel=kernel,
        patch=patch,
        classes=classes,
        activation=ACTIVATIONS[activation],
        norm=Norm(momentum, eps),
    )
