"""The moving average of batch statistics, for several momenta, and the effect of recomputing the statistics.

PyTorch's rule: the average keeps 1 − momentum of itself and takes momentum of the batch's statistic. A small momentum
is slow; a large one keeps the noise of single batches. Eval mode, and so the folded network, computes with the average
at the end of training.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from numpy.typing import NDArray
from torch import Tensor, nn

from fold.reports.svg import INK
from models import digits
from models.digits import Digits
from models.study import training
from models.study.section import (
    THIRD,
    WITH,
    WITHOUT,
    Section,
    Study,
    Table,
    Track,
    legend_above,
    tall,
    untracked,
)

MEAN, SPREAD = 1.5, 2.0
MOMENTA = (0.01, 0.1, 0.5)
BATCH = 32
STEPS, MOVING = 600, 300
"""The true mean moves for the first `MOVING` steps."""
SETTLED = 150
"""The noise is measured over as many steps at the end."""
TRAINED = tuple((batch, momentum) for batch in (4, 16, 64) for momentum in (0.01, 0.1, 0.9))
TRAINED_STEPS, TRAINED_RATE = 100, 0.1


@dataclass(frozen=True)
class Following:
    """The moving average of the mean, [steps], and its distance from the true one (root of the mean square): while the
    true mean moves, and at the end, long after it stopped."""

    momentum: float
    average: tuple[float, ...]
    off_moving: float
    off_settled: float


@dataclass(frozen=True)
class Recalibrated:
    """Held-out accuracy of one trained network in eval mode: with the moving averages, and with the statistics of the
    whole training set in their place."""

    batch: int
    momentum: float
    moving: float
    population: float


@dataclass(frozen=True)
class MovingAverage:
    """`true_mean` [steps] is what the moving averages follow."""

    true_mean: tuple[float, ...]
    following: tuple[Following, ...]
    recalibrated: tuple[Recalibrated, ...]

    def to_dict(self) -> dict[str, Any]:
        return {"batch": BATCH, "spread": SPREAD, **asdict(self)}


def compute(
    seed: int = 0, track: Track = untracked, *, trained: Sequence[tuple[int, float]] = TRAINED
) -> MovingAverage:
    """Follow the mean with every momentum, and train a network for each batch size and momentum of `trained`."""
    true_mean = MEAN * np.sin(0.5 * np.pi * np.minimum(np.arange(STEPS) / MOVING, 1))
    following = tuple(_follow(seed, momentum, true_mean) for momentum in MOMENTA)
    data = digits.load()
    recalibrated = tuple(_recalibrated(data, seed, *setting) for setting in track(trained, "trainings"))
    return MovingAverage(tuple(true_mean.tolist()), following, recalibrated)


def _follow(seed: int, momentum: float, true_mean: NDArray[np.float64]) -> Following:
    random = np.random.default_rng(seed)
    means = (true_mean + SPREAD * random.standard_normal((BATCH, STEPS))).mean(0)
    average, kept = 0.0, []
    for mean in means.tolist():
        average = (1 - momentum) * average + momentum * mean
        kept.append(average)
    squares = (np.array(kept) - true_mean) ** 2
    moving, settled = np.sqrt(squares[:MOVING].mean()), np.sqrt(squares[-SETTLED:].mean())
    return Following(momentum, tuple(kept), float(moving), float(settled))


def _recalibrated(data: Digits, seed: int, batch: int, momentum: float) -> Recalibrated:
    module = training.network("before", seed, momentum=momentum)
    for _ in training.descend(module, data, rate=TRAINED_RATE, steps=TRAINED_STEPS, seed=seed, batch=batch):
        pass
    moving = training.accuracy(module, data)
    take_anew(module, torch.from_numpy(data.train_images).flatten(1))
    return Recalibrated(batch, momentum, moving, training.accuracy(module, data))


def take_anew(module: nn.Sequential, images: Tensor) -> None:
    """Put mean and variance over all of `images` [N, features] into each BatchNorm, from the first layer to the last.

    When a layer is computed, the BatchNorms before it already have their new statistics, as in eval mode.
    """
    module.eval()
    x = images
    with torch.no_grad():
        for layer in module:
            if isinstance(layer, nn.BatchNorm1d):
                assert layer.running_mean is not None
                assert layer.running_var is not None
                layer.running_mean.copy_(x.mean(0, dtype=torch.float64))
                layer.running_var.copy_(x.double().var(0, unbiased=False))
            x = layer(x)


def show(found: MovingAverage) -> Section:
    """The averages beside the mean that they follow, and the accuracy before and after recomputing the statistics."""
    figure = tall(6.2)
    grid = figure.add_gridspec(2, 1)
    axes = figure.add_subplot(grid[0])
    for one, colour in reversed(list(zip(found.following, (WITHOUT, WITH, THIRD), strict=True))):
        axes.plot(one.average, color=colour, linewidth=0.9, label=f"momentum {one.momentum:g}")
    axes.plot(found.true_mean, "--", color=INK, linewidth=1.4, label="true mean")
    axes.set(xlabel="step", ylabel="moving average of the mean")
    legend_above(axes)
    _draw_recalibrated(figure.add_subplot(grid[1]), found)
    return Section(figure, _seen(found), (_followed(found), _repaired(found)))


def _draw_recalibrated(axes: Axes, found: MovingAverage) -> None:
    places = np.arange(len(found.recalibrated))
    moving, population = ([getattr(one, name) for one in found.recalibrated] for name in ("moving", "population"))
    axes.vlines(places, moving, population, color=INK, linewidth=0.8)
    axes.plot(places, moving, "o", color=WITHOUT, label="moving averages")
    axes.plot(places, population, "s", color=WITH, label="recomputed")
    axes.set_xticks(places, [f"{one.momentum:g}\n{one.batch}" for one in found.recalibrated])
    axes.set(xlabel="momentum, and the batch size below it", ylabel="held-out accuracy")
    legend_above(axes)


def _seen(found: MovingAverage) -> str:
    slow, fast = found.following[0], found.following[-1]
    most = max(found.recalibrated, key=lambda one: one.population - one.moving)
    least = min(found.recalibrated, key=lambda one: one.population - one.moving)
    return (
        f"A moving average of momentum {slow.momentum:g} is {slow.off_moving:.2f} off while the mean moves and "
        f"{slow.off_settled:.3f} after it stopped; momentum {fast.momentum:g} is {fast.off_moving:.2f} and "
        f"{fast.off_settled:.3f} off. Statistics that are recomputed over the training set, as by bnfold recalibrate, "
        f"bring the network trained with batches of {most.batch} and momentum {most.momentum:g} from "
        f"{most.moving:.1%} to {most.population:.1%} of the held-out images. The effect is smallest for batches of "
        f"{least.batch} and momentum {least.momentum:g}: {least.moving:.1%} before, {least.population:.1%} after."
    )


def _followed(found: MovingAverage) -> Table:
    rows = tuple((f"{one.momentum:g}", f"{one.off_moving:.3f}", f"{one.off_settled:.3f}") for one in found.following)
    header = ("momentum", "off while the mean moves", "off after it stops")
    return Table(f"The moving average and the true mean, for batches of {BATCH}, σ = {SPREAD:g}.", header, rows)


def _repaired(found: MovingAverage) -> Table:
    rows = tuple(
        (str(one.batch), f"{one.momentum:g}", f"{one.moving:.1%}", f"{one.population:.1%}")
        for one in found.recalibrated
    )
    caption = f"Held-out accuracy after {TRAINED_STEPS} steps of training on digits."
    return Table(caption, ("batch", "momentum", "moving averages", "recomputed"), rows)


STUDY = Study(
    "moving_average",
    "The moving average, and what recalibration repairs",
    f"A moving average follows a mean that moves for {MOVING} steps and then stops, from batches of {BATCH} "
    f"values. Below, small networks learn digits for {TRAINED_STEPS} steps, with several batch sizes and momenta; then "
    "their moving averages are replaced by the statistics of the whole training set, and nothing else is changed.",
    compute,
    show,
)
