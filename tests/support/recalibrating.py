"""Networks for the tests of recalibration, and the statistics that they should get, written out."""

import numpy as np
import torch
from torch import Tensor, nn

from fold.recalibration.population import layers_with_statistics

ROWS = 23


class Net(nn.Module):
    """A convolution and BatchNorm, Dropout, another pair, and a BatchNorm1d behind the flattened rest."""

    def __init__(self, channels: int = 5) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, channels, 3), nn.BatchNorm2d(channels)
        self.dropout = nn.Dropout(0.9)
        self.conv2, self.bn2 = nn.Conv2d(channels, 4, 2), nn.BatchNorm2d(4)
        self.bn3 = nn.BatchNorm1d(4)

    def forward(self, image: Tensor) -> Tensor:
        x = self.dropout(self.bn1(self.conv1(image)).relu())
        return self.bn3(self.bn2(self.conv2(x)).relu().amax((2, 3)))


class Unusual(nn.Module):
    """One layer under two names, one that eval mode leaves out, casts to float32, and two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.BatchNorm1d(3)
        self.also = self.first
        self.auxiliary = nn.BatchNorm1d(3)
        self.table = nn.Embedding(7, 3)

    def forward(self, values: Tensor, index: Tensor, scale: None = None) -> Tensor:
        x = self.first(values.float() + self.table(index))
        return self.auxiliary(x) if self.training else x.to(torch.float32) @ torch.ones(3, 2)


class Unreached(nn.Linear):
    """Its BatchNorm is for training alone."""

    def __init__(self) -> None:
        super().__init__(7, 2)
        self.auxiliary = nn.BatchNorm1d(2)


def plain() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 2))


class Shared(nn.Module):
    """One BatchNorm on two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x) - self.norm(3 * x + 1)


def net(seed: int = 0) -> nn.Module:
    """`Net` with every parameter and statistic at random, γ of both signs, zero and tiny."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = Net().eval()
    spoil(module, seed)
    return module


def spoil(module: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in layers_with_statistics(module).values():
            layer.running_mean.copy_(3 * torch.randn(layer.num_features, generator=generator))
            layer.running_var.copy_(5 * torch.rand(layer.num_features, generator=generator) + 0.01)
            layer.num_batches_tracked.fill_(1000)
            if layer.weight is not None:
                layer.weight.copy_(torch.randn(layer.num_features, generator=generator))
                layer.weight[0], layer.weight[1] = 0, 1e-7


def images(rows: int = ROWS, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(40, 3, (rows, 3, 6, 7)).astype(np.float32)


def directly(module: nn.Module, x: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """What `Net` sees, written out layer by layer in float64: each one's population mean and variance."""
    module = module.double()
    found = {}

    def normalised(name: str, values: Tensor) -> Tensor:
        layer = module.get_submodule(name)
        axes = [axis for axis in range(values.ndim) if axis != 1]
        mean = values.mean(axes, keepdim=True)
        variance = ((values - mean) ** 2).mean(axes, keepdim=True)
        found[name] = (mean.flatten(), variance.flatten())
        shape = [1, -1, *[1] * (values.ndim - 2)]
        weight, bias = layer.weight.reshape(shape), layer.bias.reshape(shape)
        return (values - mean) / (variance + layer.eps).sqrt() * weight + bias

    with torch.no_grad():
        x = normalised("bn1", module.conv1(x.double())).relu()
        normalised("bn3", normalised("bn2", module.conv2(x)).relu().amax((2, 3)))
    return found


def assert_close(found: dict[str, tuple[Tensor, Tensor]], expected: dict[str, tuple[Tensor, Tensor]]) -> None:
    """To 1e-12 of the deviation, for a mean, and of the variance."""
    assert found.keys() == expected.keys()
    for name, (mean, variance) in expected.items():
        np.testing.assert_allclose(found[name][0] / variance.sqrt(), mean / variance.sqrt(), rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(found[name][1], variance, rtol=1e-12)
