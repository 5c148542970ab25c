"""Networks of sizes that people serve, without a download: ResNet-18, 50 and 152 (He et al., 2015)."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

WIDTHS = (64, 128, 256, 512)
"""Channels of each stage, within a block."""


def resnet18() -> nn.Module:
    """11.7 million parameters, for 3 channels."""
    return _resnet((2, 2, 2, 2), 1, lambda before, width, stride: [(before, width, 3, stride), (width, width, 3, 1)])


def resnet50() -> nn.Module:
    """25.6 million parameters, for 3 channels."""
    return _resnet((3, 4, 6, 3), 4, _bottleneck)


def resnet152() -> nn.Module:
    """60.2 million parameters, for 3 channels."""
    return _resnet((3, 8, 36, 3), 4, _bottleneck)


Layers = list[tuple[int, int, int, int]]
"""Inputs, outputs, kernel and stride of each convolution."""


class Block(nn.Module):
    """Convolutions with BatchNorm and ReLU, and a shortcut around them."""

    def __init__(self, layers: Layers, stride: int) -> None:
        super().__init__()
        before, behind = layers[0][0], layers[-1][1]
        units = [_unit(*layer) for layer in layers]
        body = [step for unit in units for step in (unit, nn.ReLU())]
        self.body = nn.Sequential(*body[:-1])
        self.shortcut = nn.Identity() if before == behind and stride == 1 else _unit(before, behind, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


class ResNet(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        """As in Sequential, except for the name of the input."""
        return super().forward(x)


def _resnet(counts: tuple[int, ...], wider: int, layers: Callable[[int, int, int], Layers]) -> nn.Module:
    blocks: list[nn.Module] = []
    before = WIDTHS[0]
    for index, (width, count) in enumerate(zip(WIDTHS, counts, strict=True)):
        for block in range(count):
            stride = 2 if index and not block else 1
            blocks.append(Block(layers(before, width, stride), stride))
            before = wider * width
    stem = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    return ResNet(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, 1000))


def _bottleneck(before: int, width: int, stride: int) -> Layers:
    return [(before, width, 1, 1), (width, width, 3, stride), (width, 4 * width, 1, 1)]


def _unit(inputs: int, outputs: int, kernel: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(outputs))
