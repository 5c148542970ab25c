"""A residual network with frozen BatchNorm, as in detectors: in the graph it is a product and a sum.

The frozen layer computes `x · scale + bias` from four buffers with the names of BatchNorm, and folds in the same way.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.resnet import ResNet, resnet


class FrozenBatchNorm2d(nn.Module):
    """[N, channels, H, W] normalised by fixed statistics, with a fixed γ (`weight`) and β (`bias`)."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.num_features = channels
        self.eps = eps
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        bias = self.bias - self.running_mean * scale
        return x * scale.reshape(1, -1, 1, 1) + bias.reshape(1, -1, 1, 1)


def frozen_resnet(
    *,
    in_channels: int = 1,
    channels: Sequence[int] = (6, 10),
    depth: int = 1,
    classes: int = 10,
    eps: float = 1e-5,
) -> ResNet:
    """`models.resnet:resnet` of that size with every BatchNorm frozen; its state_dict fits, except for the batch
    counters."""
    module = resnet(in_channels=in_channels, channels=channels, depth=depth, classes=classes, eps=eps)
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                setattr(parent, name, FrozenBatchNorm2d(child.num_features, child.eps))
    return module
