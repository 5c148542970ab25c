"""Networks of published widths and depths, for measurements on a GPU, built here or from the blocks of models/.

Weights are random, so nothing is downloaded. All but PreActResNet-18 are the networks of the papers, for 3×224×224;
RepVGG-A0, MobileOne-S0 and FastViT-T8 as they are trained, with parallel branches. PreActResNet-18 has no stem in
models/: the part behind the stem is run, at 3×56×56.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.networks import ResNet, resnet50
from models.batchnorm import Norm
from models.cnn import cnn
from models.fastvit import fastvit
from models.mobilenet import InvertedResidual, conv_bn_relu6
from models.mobileone import mobileone
from models.preact_resnet import preact_resnet
from models.repvgg import repvgg
from models.senet import SqueezeExcite

NORM = Norm()
GROWTH, BOTTLENECK, LAYERS = 32, 4, (6, 12, 24, 16)
"""DenseNet-121 (Huang et al., 2017, table 1): channels that a layer adds, how many times as wide its 1×1 is, layers of
each block."""
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""MobileNet-V2 (Sandler et al., 2018, table 2): expansion, channels, blocks and first stride of each stage."""


@dataclass(frozen=True)
class Network:
    """How a network is built, the shape of one row, and its published number of parameters in millions.
    `name` says if this is not the whole network."""

    name: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    millions: float


class DenseLayer(nn.Module):
    """BN, ReLU, 1×1, BN, ReLU, 3×3; the new channels are appended to the input's."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = BOTTLENECK * GROWTH
        self.body = nn.Sequential(
            *(NORM.bn2d(width), nn.ReLU(), nn.Conv2d(width, inner, 1, bias=False)),
            *(NORM.bn2d(inner), nn.ReLU(), nn.Conv2d(inner, GROWTH, 3, padding=1, bias=False)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.body(x)], dim=1)


def densenet121() -> nn.Module:
    """7.98 million parameters."""
    width = 2 * GROWTH
    steps: list[nn.Module] = [nn.Conv2d(3, width, 7, 2, 3, bias=False), NORM.bn2d(width), nn.ReLU()]
    steps.append(nn.MaxPool2d(3, 2, 1))
    for block, layers in enumerate(LAYERS):
        if block:
            steps += [NORM.bn2d(width), nn.ReLU(), nn.Conv2d(width, width // 2, 1, bias=False), nn.AvgPool2d(2)]
            width //= 2
        for _ in range(layers):
            steps.append(DenseLayer(width))
            width += GROWTH
    steps += [NORM.bn2d(width), nn.ReLU()]
    return ResNet(*steps, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 1000))


def mobilenetv2() -> nn.Module:
    """3.50 million parameters."""
    width = 32
    steps: list[nn.Module] = [conv_bn_relu6(3, width, 3, NORM, stride=2)]
    for expansion, channels, blocks, first in STAGES:
        for block in range(blocks):
            steps.append(InvertedResidual(width, channels, 1 if block else first, expansion, NORM))
            width = channels
    steps.append(conv_bn_relu6(width, 1280, 1, NORM))
    return ResNet(*steps, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1280, 1000))


def fastvit_t8() -> nn.Module:
    """4.03 million parameters, with the branches that it is trained with."""
    network = fastvit(in_channels=3, channels=(48, 96, 192, 384), depths=(2, 2, 4, 2), classes=1000)
    network.layers[-1].se = SqueezeExcite(768, 16)  # that of models/ is wider
    return network


A0 = partial(repvgg, in_channels=3, channels=(48, 48, 96, 192, 1280), depth=(1, 2, 4, 14, 1), stride=2, classes=1000)
S0 = partial(mobileone, in_channels=3, channels=(48, 128, 256, 1024), depths=(2, 8, 10, 1), branches=4, classes=1000)
PREACT = partial(preact_resnet, in_channels=3, channels=(64, 128, 256, 512), depth=2, classes=1000)
PICTURE = (3, 224, 224)
FIRST = ("repvgg_a0", "mobileone_s0", "fastvit_t8", "resnet50", "densenet121")
"""The networks that are measured if none is chosen, the most important first."""
NETWORKS = {
    "resnet50": Network("ResNet-50", resnet50, PICTURE, 25.6),
    "densenet121": Network("DenseNet-121", densenet121, PICTURE, 7.98),
    "repvgg_a0": Network("RepVGG-A0", A0, PICTURE, 9.11),
    "mobileone_s0": Network("MobileOne-S0", S0, PICTURE, 5.29),
    "fastvit_t8": Network("FastViT-T8", fastvit_t8, PICTURE, 4.03),
    "mobilenetv2": Network("MobileNet-V2", mobilenetv2, PICTURE, 3.50),
    "preact18": Network("PreActResNet-18 behind its stem", PREACT, (3, 56, 56), 11.7),
}
"""The networks by their name in `--only`."""
SMALL = Network("digits CNN", cnn, (1, 8, 8), 0.05)
"""The network that a dry run serves."""
