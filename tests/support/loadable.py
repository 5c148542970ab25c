"""Small architectures that `--arch loadable:NAME` names: one for each thing that makes loading a checkpoint hard."""

import warnings

import torch
from torch import nn
from torch.nn.utils import parametrizations, spectral_norm, weight_norm


def plain(channels: int = 5, num_classes: int = 4, in_chans: int = 3) -> nn.Sequential:
    """Takes images of any size."""
    return nn.Sequential(
        nn.Conv2d(in_chans, channels, 3, padding=1),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.Conv2d(channels, channels + 1, 3),
        nn.BatchNorm2d(channels + 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(channels + 1, num_classes),
    )


def wrapped(name: str = "model") -> nn.Module:
    return nn.ModuleDict({name: plain()})


def lazy() -> nn.Sequential:
    return nn.Sequential(
        nn.LazyConv2d(5, 3, padding=1),
        nn.LazyBatchNorm2d(),
        nn.ReLU(),
        nn.LazyConv2d(6, 3),
        nn.LazyBatchNorm2d(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.LazyLinear(4),
    )


class CountingBatchNorm(nn.BatchNorm2d):
    """A subclass, as frameworks have them."""


def _with_batchnorms(kind: type[nn.Module]) -> nn.Sequential:
    module = plain()
    module[1], module[4] = kind(5), kind(6)
    return module


def synchronised() -> nn.Sequential:
    return _with_batchnorms(nn.SyncBatchNorm)


def subclassed() -> nn.Sequential:
    return _with_batchnorms(CountingBatchNorm)


def half() -> nn.Module:
    return plain().half()


def _with_norm(norm) -> nn.Sequential:
    module = plain()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the hooks are deprecated, and people have checkpoints of them
        module[0], module[7] = norm(module[0]), norm(module[7])
    return module


def weight_normed() -> nn.Sequential:
    return _with_norm(parametrizations.weight_norm)


def weight_normed_by_hooks() -> nn.Sequential:
    return _with_norm(weight_norm)


def spectral_normed() -> nn.Sequential:
    return _with_norm(parametrizations.spectral_norm)


def spectral_normed_by_hooks() -> nn.Sequential:
    return _with_norm(spectral_norm)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6, bias=False)
        self.norm = nn.BatchNorm1d(6)
        self.last = nn.Linear(6, 6, bias=False)
        self.last.weight = self.first.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.norm(self.first(x)))


class Nested(nn.Module):
    """Two inputs, one of them optional words; outputs in mappings and lists, one of them None."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.BatchNorm2d(5))
        self.words = nn.Embedding(7, 5)

    def forward(self, image: torch.Tensor, scale: torch.Tensor | None = None, word: torch.Tensor | None = None):
        y = self.body(image)
        if word is not None:
            y = y + self.words(word)[:, :, None, None]
        return {"zeta": y.mean((2, 3)), "aux": {"logits": y.amax((2, 3)), "none": None}, "maps": [y, (y + 1,)]}


class Halving(nn.Module):
    """Adds what it halved and doubled: its sizes are even."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(4, 3, 2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.up(self.down(x))


class Sized(nn.Module):
    """timm's networks say what they take."""

    def __init__(self) -> None:
        super().__init__()
        self.default_cfg = {"input_size": (3, 16, 12)}
        self.stem = plain(in_chans=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.stem(x)


class Embedded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(7, 6)
        self.mix = nn.Sequential(nn.Conv1d(6, 4, 3, padding=1), nn.BatchNorm1d(4))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.mix(self.words(tokens).transpose(1, 2)).mean(2)
