"""Compares BatchNorm's forward pass from its formulas with PyTorch's, and finds which normalisations can be folded.

A normalisation folds if it is an affine map with constants in eval mode. To test this, the affine map that fits one
batch best is tried on another batch.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from models.study.normalisation import batch_norm, batch_norm_eval, instance_norm, layer_norm
from models.study.section import WITH, WITHOUT, Section, Study, Table, Track, tall, untracked

MOMENTUM, EPS = 0.1, 1e-5
BATCHES = 3
"""The number of batches before running statistics are compared."""
LAYOUTS = {
    "BatchNorm1d [N, C]": (7, 5),
    "BatchNorm1d [N, C, L]": (7, 5, 6),
    "BatchNorm2d [N, C, H, W]": (7, 5, 4, 3),
}
FITTED = (400, 3, 4, 5)
"""[N, C, H, W] of each of the two batches that a map is fitted and tried on: more rows than C·H·W + 1 unknowns."""
DRAWN = 150
STRAIGHT = 1e-9
"""An affine map misses by less than this, by rounding. Another map misses by a large part of the outputs."""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Agreement:
    """One BatchNorm compared with PyTorch's: the largest differences, and the shape of every array by its name."""

    layout: str
    shapes: dict[str, tuple[int, ...]]
    training: float
    running_mean: float
    running_var: float
    evaluation: float


@dataclass(frozen=True)
class Fit:
    """The best affine map from x to y, of all numbers of a sample at once, found on one batch.

    Errors are the largest, on that batch and on another of a different mean and spread. `xs` and `ys` are one
    number of the input and what becomes of it, for samples of both batches.
    """

    name: str
    first_error: float
    second_error: float
    xs: tuple[float, ...]
    ys: tuple[float, ...]


@dataclass(frozen=True)
class Formulas:
    """`beside` holds the largest difference between each layer's formula and PyTorch, all in eval mode."""

    agreements: tuple[Agreement, ...]
    beside: dict[str, float]
    fits: tuple[Fit, ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def compute(seed: int = 0, track: Track = untracked) -> Formulas:
    """Every layout compared with PyTorch in float64, the other norms, and which of them an affine map can replace."""
    agreements = tuple(_agreement(seed, layout) for layout in track(list(LAYOUTS), "layouts"))
    norms = _norms(seed)
    x = np.random.default_rng(seed).standard_normal(FITTED)
    beside = {name: float(np.abs(ours(x) - _torch(module, x)).max()) for name, (module, ours) in norms.items()}
    fits = tuple(_fit(seed, name, norms[name][0]) for name in track(list(norms), "fits"))
    return Formulas(agreements, beside, fits)


def _agreement(seed: int, layout: str) -> Agreement:
    """Differences after `BATCHES` batches, each with parameters of both signs and a running average begun at random."""
    random = np.random.default_rng(seed)
    shape = LAYOUTS[layout]
    channels = shape[1]
    module = (nn.BatchNorm2d if len(shape) == 4 else nn.BatchNorm1d)(channels, EPS, MOMENTUM, dtype=torch.float64)
    gamma, beta, mean = random.standard_normal((3, channels))
    variance = random.uniform(0.1, 3, channels)
    _give(module, weight=gamma, bias=beta, running_mean=mean, running_var=variance)
    worst = 0.0
    for _ in range(BATCHES):
        x = 3 * random.standard_normal(shape) + 2
        forward = batch_norm(x, gamma, beta, mean, variance, momentum=MOMENTUM, eps=EPS)
        worst = max(worst, float(np.abs(forward.y - _torch(module, x)).max()))
        mean, variance = forward.running_mean, forward.running_var
    state = module.state_dict()
    module.eval()
    evaluated = batch_norm_eval(x, gamma, beta, mean, variance, eps=EPS)
    shapes = {"x": x.shape, "μ, batch mean": forward.mean.shape, "σ², batch variance": forward.variance.shape}
    shapes |= {"x̂, normalised": forward.normalised.shape, "γ, weight": gamma.shape, "β, bias": beta.shape}
    shapes |= {"y": forward.y.shape, "running_mean": mean.shape, "running_var": variance.shape}
    return Agreement(
        layout,
        shapes,
        training=worst,
        running_mean=float(np.abs(mean - state["running_mean"].numpy()).max()),
        running_var=float(np.abs(variance - state["running_var"].numpy()).max()),
        evaluation=float(np.abs(evaluated - _torch(module, x)).max()),
    )


def _norms(seed: int) -> dict[str, tuple[nn.Module, Callable[[Array], Array]]]:
    """PyTorch's modules in eval mode with random parameters, and the formula of each; the first two are affine maps."""
    random = np.random.default_rng([seed, 1])
    channels, whole = FITTED[1], FITTED[1:]
    gamma, beta, mean = random.standard_normal((3, channels))
    variance = random.uniform(0.1, 3, channels)
    gammas, betas = random.standard_normal((2, *whole))
    batchnorm = nn.BatchNorm2d(channels, dtype=torch.float64)
    layernorm = nn.LayerNorm(whole, dtype=torch.float64)
    instancenorm = nn.InstanceNorm2d(channels, affine=True, dtype=torch.float64)
    tracked = nn.InstanceNorm2d(channels, affine=True, track_running_stats=True, dtype=torch.float64)
    for module in (batchnorm, tracked):
        _give(module, weight=gamma, bias=beta, running_mean=mean, running_var=variance)
    _give(layernorm, weight=gammas, bias=betas)
    _give(instancenorm, weight=gamma, bias=beta)

    def affine(x: Array) -> Array:
        return batch_norm_eval(x, gamma, beta, mean, variance, eps=EPS)

    return {
        "BatchNorm": (batchnorm.eval(), affine),
        "InstanceNorm, running statistics": (tracked.eval(), affine),
        "LayerNorm": (layernorm.eval(), lambda x: layer_norm(x, gammas, betas, eps=EPS)),
        "InstanceNorm": (instancenorm.eval(), lambda x: instance_norm(x, gamma, beta, eps=EPS)),
    }


def _fit(seed: int, name: str, module: nn.Module) -> Fit:
    random = np.random.default_rng([seed, 2])
    first = random.standard_normal(FITTED)
    second = 3 * random.standard_normal(FITTED) + 1
    wide = [np.hstack([x.reshape(len(x), -1), np.ones((len(x), 1))]) for x in (first, second)]
    outputs = [_torch(module, x) for x in (first, second)]
    affine = np.linalg.lstsq(wide[0], outputs[0].reshape(len(first), -1), rcond=None)[0]
    errors = [float(np.abs(x @ affine - y.reshape(len(y), -1)).max()) for x, y in zip(wide, outputs, strict=True)]
    xs, ys = (np.concatenate([part[: DRAWN // 2, 0, 0, 0] for part in both]) for both in ((first, second), outputs))
    return Fit(name, errors[0], errors[1], tuple(xs.tolist()), tuple(ys.tolist()))


def _give(module: nn.Module, **state: Array) -> None:
    """Copy arrays into the module's parameters and buffers of these names."""
    module.load_state_dict({name: torch.from_numpy(array) for name, array in state.items()}, strict=False)


def _torch(module: nn.Module, x: Array) -> Array:
    with torch.no_grad():
        y: Array = module(torch.from_numpy(x)).numpy()
    return y


def show(found: Formulas) -> Section:
    """One number of the output over the same number of the input: a line for an affine map, otherwise a cloud."""
    figure = tall(4.9)
    for place, fit in enumerate(found.fits, start=1):
        axes = figure.add_subplot(2, 2, place)
        foldable = fit.second_error < STRAIGHT
        axes.plot(fit.xs, fit.ys, "s" if foldable else "o", color=WITH if foldable else WITHOUT, markersize=2.5)
        axes.set_title(fit.name.replace(", ", ",\n"))
        axes.set(xlabel="input", ylabel="output")
        axes.locator_params(nbins=5)
    return Section(figure, _seen(found), (_shapes(found), _differences(found), _fits(found)))


def _seen(found: Formulas) -> str:
    worst = max(max(a.training, a.running_mean, a.running_var, a.evaluation) for a in found.agreements)
    fits = {fit.name: fit for fit in found.fits}
    return (
        f"The formulas and torch.nn.BatchNorm1d and 2d differ by {worst:.1e} at most in float64, over outputs and "
        "running statistics. Each picture plots one number of the output over the same number of the input, for two "
        "batches of different mean and spread: in eval mode BatchNorm is a straight line, and so is InstanceNorm with "
        "running statistics; the best affine map of one batch misses the other by "
        f"{fits['BatchNorm'].second_error:.1e} and {fits['InstanceNorm, running statistics'].second_error:.1e}. "
        f"LayerNorm and InstanceNorm are clouds, and it misses by {fits['LayerNorm'].second_error:.2g} and "
        f"{fits['InstanceNorm'].second_error:.2g}: their mean and variance come from each input, so no constant "
        "weights can take them up."
    )


def _shapes(found: Formulas) -> Table:
    rows = tuple(
        (name, *(str(list(one.shapes[name])) for one in found.agreements)) for name in found.agreements[0].shapes
    )
    header = ("array", *(one.layout.removeprefix("BatchNorm") for one in found.agreements))
    return Table("The shape of every array in BatchNorm1d and 2d; N = 7, C = 5, L = 6, H = 4, W = 3.", header, rows)


def _differences(found: Formulas) -> Table:
    rows = tuple(
        (one.layout, *(f"{value:.1e}" for value in (one.training, one.running_mean, one.running_var, one.evaluation)))
        for one in found.agreements
    )
    rows += tuple((f"{name}, eval mode", "", "", "", f"{value:.1e}") for name, value in found.beside.items())
    header = ("layer", "training output", "running mean", "running var", "eval output")
    return Table("Largest difference between the formulas and PyTorch, float64.", header, rows)


def _fits(found: Formulas) -> Table:
    rows = tuple((fit.name, f"{fit.first_error:.1e}", f"{fit.second_error:.1e}") for fit in found.fits)
    header = ("layer, eval mode", "error on the batch it was fitted to", "error on another batch")
    return Table("The best affine map of all numbers of a sample, by least squares.", header, rows)


STUDY = Study(
    "formulas",
    "The formulas compared with PyTorch, and what can be folded",
    "Batch mean and variance, ε, γ, β and the moving average are written out in numpy, in float64, and compared with "
    f"PyTorch over {BATCHES} training batches and in eval mode. LayerNorm and InstanceNorm are shown too. A layer "
    "can be folded if it is an affine map with constants: then the map that fits one batch holds for any other.",
    compute,
    show,
)
