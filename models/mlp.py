"""A perceptron with BatchNorm1d behind every hidden Linear."""

import torch
from torch import Tensor, nn

from models.batchnorm import Norm


class MLP(nn.Module):
    """[N, in_channels, image_size, image_size], or anything that flattens to as many features, to [N, classes]."""

    def __init__(self, *, in_features: int, channels: int, depth: int, classes: int, norm: Norm) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        features = in_features
        for _ in range(depth):
            layers += [nn.Linear(features, channels), norm.relu1d(channels)]
            features = channels
        self.hidden = nn.Sequential(*layers)
        self.classifier = nn.Linear(features, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.hidden(torch.flatten(x, 1)))
        return logits


def mlp(
    *,
    in_channels: int = 1,
    image_size: int = 8,
    channels: int = 128,
    depth: int = 2,
    classes: int = 10,
    momentum: float = 0.1,
    eps: float = 1e-5,
    placement: str = "before",
) -> MLP:
    """`depth` hidden layers of `channels` features each, for square images of `image_size` pixels a side.

    `placement` puts BatchNorm "before" or "after" the activation.
    """
    return MLP(
        in_features=in_channels * image_size**2,
        channels=channels,
        depth=depth,
        classes=classes,
        norm=Norm(momentum, eps, placement),
    )
