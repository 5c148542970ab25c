"""The statistics of mini-batches: their noise against the batch size, and the bias of small batches.

For n values of variance σ²: the mean of a batch has standard deviation σ/√n, its unbiased variance has √(2/(n−1))·σ²,
and its biased variance, divided by n, is (n−1)/n·σ² on average. BatchNorm normalises with the biased one and lets
`running_var` follow the unbiased one.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from numpy.typing import NDArray
from torch import nn

from fold.reports.svg import INK
from models.study.section import (
    THIRD,
    WITH,
    WITHOUT,
    Section,
    Study,
    Table,
    Track,
    legend_above,
    logarithmic,
    tall,
    untracked,
)

MEAN, SPREAD = 1.5, 2.0
SIZES = (2, 4, 8, 16, 32, 64, 128, 256)


@dataclass(frozen=True)
class BatchSize:
    """Statistics of batches of `size` values from a normal distribution of variance σ², over many batches.

    Noise is a standard deviation, in σ for means and σ² for variances; the three variances are averages in σ².
    `output_training` is the standard deviation of the output of `torch.nn.BatchNorm1d` in training mode,
    `output_unbiased` and `output_biased` in eval mode with the average of the unbiased (as PyTorch keeps it) or of the
    biased variances. `gain` is the average of σ/√(variance + ε) in training mode: what σ is stretched to.
    """

    size: int
    mean_noise: float
    variance_noise: float
    biased_variance: float
    unbiased_variance: float
    running_variance: float
    output_training: float
    output_unbiased: float
    output_biased: float
    gain: float


@dataclass(frozen=True)
class BatchStatistics:
    """One entry for each batch size, in ascending order."""

    batches: int
    sizes: tuple[BatchSize, ...]

    def to_dict(self) -> dict[str, Any]:
        return {"true_mean": MEAN, "true_variance": SPREAD**2, **asdict(self)}


def compute(seed: int = 0, track: Track = untracked, *, batches: int = 20_000) -> BatchStatistics:
    """Noise and bias over `batches` batches of each size."""
    return BatchStatistics(batches, tuple(_batch_size(seed, size, batches) for size in track(SIZES, "batch sizes")))


def _batch_size(seed: int, size: int, batches: int) -> BatchSize:
    """Each batch is a channel of one BatchNorm, so that one call of PyTorch normalises them all."""
    random = np.random.default_rng([seed, size])
    x = MEAN + SPREAD * random.standard_normal((size, batches))
    bn = nn.BatchNorm1d(batches, momentum=1.0, affine=False, dtype=torch.float64)
    with torch.no_grad():
        normalised = bn(torch.from_numpy(x)).numpy()
    assert bn.running_var is not None
    biased, unbiased, running = x.var(0), x.var(0, ddof=1), bn.running_var.numpy()
    unseen = SPREAD * random.standard_normal(size * batches)
    return BatchSize(
        size=size,
        mean_noise=float(x.mean(0).std() / SPREAD),
        variance_noise=float(unbiased.std() / SPREAD**2),
        biased_variance=float(biased.mean() / SPREAD**2),
        unbiased_variance=float(unbiased.mean() / SPREAD**2),
        running_variance=float(running.mean() / SPREAD**2),
        output_training=float(normalised.std()),
        output_unbiased=float(unseen.std() / np.sqrt(running.mean() + bn.eps)),
        output_biased=float(unseen.std() / np.sqrt(biased.mean() + bn.eps)),
        gain=float(np.mean(SPREAD / np.sqrt(biased + bn.eps))),
    )


def show(found: BatchStatistics) -> Section:
    """Noise over the batch size; below it the bias and its effect in eval mode."""
    figure = tall(6.4)
    grid = figure.add_gridspec(2, 1)
    sizes = np.array([one.size for one in found.sizes])
    _draw_noise(figure.add_subplot(grid[0]), found, sizes)
    _draw_bias(figure.add_subplot(grid[1]), found, sizes)
    return Section(figure, _seen(found), (_table(found),))


def _draw_noise(axes: Axes, found: BatchStatistics, sizes: NDArray[np.int64]) -> None:
    axes.plot(sizes, [one.mean_noise for one in found.sizes], "o", color=WITHOUT, label="batch mean / σ")
    axes.plot(sizes, 1 / np.sqrt(sizes), ":", color=INK, linewidth=1, label="1/√n")
    axes.plot(sizes, [one.variance_noise for one in found.sizes], "s", color=WITH, label="batch variance / σ²")
    axes.plot(sizes, np.sqrt(2 / (sizes - 1)), "--", color=INK, linewidth=1, label="√(2/(n−1))")
    logarithmic(axes, "both")
    _sizes_below(axes, sizes)
    axes.set_ylabel("noise (standard deviation)")


def _draw_bias(axes: Axes, found: BatchStatistics, sizes: NDArray[np.int64]) -> None:
    axes.plot(sizes, [one.biased_variance for one in found.sizes], "o", color=WITHOUT, label="biased variance / σ²")
    axes.plot(sizes, (sizes - 1) / sizes, ":", color=INK, linewidth=1, label="(n−1)/n")
    axes.plot(sizes, [one.running_variance for one in found.sizes], "s", color=WITH, label="running_var / σ²")
    axes.plot(sizes, [one.output_biased for one in found.sizes], "^", color=THIRD, label="eval output, if biased")
    logarithmic(axes, "x")
    _sizes_below(axes, sizes)
    axes.set_ylabel("1 is right")


def _sizes_below(axes: Axes, sizes: NDArray[np.int64]) -> None:
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.set_xlabel("n, the values in a batch")
    legend_above(axes)


def _seen(found: BatchStatistics) -> str:
    first, last = found.sizes[0], found.sizes[-1]
    four = next(one for one in found.sizes if one.size == 4)
    return (
        f"The mean of {first.size} values has a noise of {first.mean_noise:.2f} σ, that of {last.size} values "
        f"{last.mean_noise:.3f} σ. Batches of {first.size} show {first.biased_variance:.2f} of the true variance by "
        f"the biased formula, with which BatchNorm normalises, and {first.running_variance:.2f} by the unbiased one, "
        f"which PyTorch's running_var follows; if it followed the biased one, outputs in eval mode would be "
        f"{first.output_biased:.2f} times too broad. Batches of {four.size} stretch σ to {four.gain:.2f} on average in "
        f"training mode, those of {last.size} to {last.gain:.3f}, and eval mode to {four.output_unbiased:.2f}: with "
        "small batches the two modes are different functions."
    )


def _table(found: BatchStatistics) -> Table:
    rows = tuple(
        (
            str(one.size),
            f"{one.biased_variance:.3f}",
            f"{one.running_variance:.3f}",
            f"{one.output_training:.3f}",
            f"{one.output_biased:.3f}",
            f"{one.gain:.3f}",
        )
        for one in found.sizes
    )
    header = ("n", "biased var", "running var", "output, training", "eval, if biased", "σ becomes")
    outputs = [one.output_unbiased for one in found.sizes]
    caption = (
        "Averages over the batches: both variances in σ², the standard deviation of the output in training mode and of "
        "that in eval mode if running_var followed the biased variance (as it is, it lies between "
        f"{min(outputs):.3f} and {max(outputs):.3f}), and what training mode stretches σ to."
    )
    return Table(caption, header, rows)


STUDY = Study(
    "batch_statistics",
    "Statistics of mini-batches: noise and bias",
    f"Batches of 2 to 256 values are drawn from a normal distribution of mean {MEAN:g} and standard deviation "
    f"σ = {SPREAD:g}, 20,000 of each size, and normalised by torch.nn.BatchNorm1d. For a convolution, n is the number "
    "of images times height times width.",
    compute,
    show,
)
