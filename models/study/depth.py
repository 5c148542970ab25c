"""How mean and spread of activations drift with depth, with and without BatchNorm; what x @ w does to both.

A sum of n products of independent numbers has variance n·E[x²]·Var(w): each layer multiplies the spread by a factor,
and depth raises that factor to a power. BatchNorm sets it to 1 in every layer.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

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

EPS = 1e-5
FAN_INS = (4, 16, 64, 256, 1024)
SCALES = {"1": 1.0, "0.01": 0.01, "√(2/n)": None}
"""Standard deviations of the weights; None is He's, which keeps the spread of ReLU layers on average."""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Product:
    """x @ w with `n` terms, w from the standard normal, x with mean 0 or 1 and standard deviation 1.

    `spread` is the standard deviation over all results, `mean` their mean; `mean_spread` says how far the means of the
    single outputs, each over the batch, lie apart.
    """

    n: int
    x_mean: float
    mean: float
    spread: float
    mean_spread: float


@dataclass(frozen=True)
class Chain:
    """A chain of linear and ReLU layers: mean and standard deviation of the activations behind each, [depth]."""

    weights: str
    batchnorm: bool
    mean: tuple[float, ...]
    spread: tuple[float, ...]


@dataclass(frozen=True)
class Depth:
    """Products for every number of terms, and chains for every scale of weights without and with BatchNorm."""

    width: int
    batch: int
    products: tuple[Product, ...]
    chains: tuple[Chain, ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def compute(seed: int = 0, track: Track = untracked, *, width: int = 256, batch: int = 128, layers: int = 50) -> Depth:
    """`layers` linear layers of `width` features with a ReLU behind each, for `batch` inputs of the standard normal."""
    products = tuple(_product(seed, n, mean) for mean in (0.0, 1.0) for n in FAN_INS)
    settings = [(name, batchnorm) for batchnorm in (False, True) for name in SCALES]
    chains = tuple(
        _chain(seed, name, batchnorm, (batch, width), layers) for name, batchnorm in track(settings, "chains of layers")
    )
    return Depth(width, batch, products, chains)


def _product(seed: int, n: int, mean: float, *, samples: int = 2000, outputs: int = 64) -> Product:
    random = np.random.default_rng([seed, n])
    x = mean + random.standard_normal((samples, n))
    z = x @ random.standard_normal((n, outputs))
    return Product(n, mean, float(z.mean()), float(z.std()), float(z.mean(0).std()))


def _chain(seed: int, weights: str, batchnorm: bool, shape: tuple[int, int], layers: int) -> Chain:
    random = np.random.default_rng(seed)
    width = shape[1]
    scale = SCALES[weights] or np.sqrt(2 / width)
    x = random.standard_normal(shape)
    means, spreads = [], []
    for _ in range(layers):
        z = x @ (scale * random.standard_normal((width, width)))
        if batchnorm:
            z = (z - z.mean(0)) / np.sqrt(z.var(0) + EPS)
        x = np.maximum(z, 0)
        means.append(float(x.mean()))
        spreads.append(float(x.std()))
    return Chain(weights, batchnorm, tuple(means), tuple(spreads))


def show(found: Depth) -> Section:
    """The spread behind each layer without and with BatchNorm, and x @ w over the number of its terms."""
    figure = tall(8.4)
    grid = figure.add_gridspec(3, 1)
    layers = range(1, len(found.chains[0].spread) + 1)
    for row, (batchnorm, colour) in enumerate(((False, WITHOUT), (True, WITH))):
        axes = figure.add_subplot(grid[row])
        chains = [chain for chain in found.chains if chain.batchnorm == batchnorm]
        for offset, (chain, marker) in enumerate(zip(chains, "os^", strict=True)):
            every = (3 * offset, 9)  # lines on top of each other stay visible
            name = f"σ = {chain.weights}"
            axes.plot(layers, chain.spread, f"{marker}-", color=colour, markevery=every, lw=1, label=name)
        if batchnorm:
            axes.set_ylim(0, 1)
        else:
            logarithmic(axes, "y")
            legend_above(axes, columns=3)
        side = "with" if batchnorm else "without"
        axes.set(xlabel="layer", ylabel=f"spread {side} BatchNorm")
    _draw_products(figure.add_subplot(grid[2]), found)
    return Section(figure, _seen(found), (_drift(found), _multiplied(found)))


def _draw_products(axes: Axes, found: Depth) -> None:
    centred, shifted = _by_mean(found)
    axes.plot(FAN_INS, np.sqrt(FAN_INS), color=INK, linewidth=0.8, linestyle=":", label="√n")
    axes.plot(FAN_INS, [one.spread for one in centred], "o", color=INK, label="all results, x of mean 0")
    means = [one.mean_spread for one in shifted]
    axes.plot(FAN_INS, means, "x", color=THIRD, markersize=9, label="means of the outputs, x of mean 1")
    logarithmic(axes, "both")
    axes.set_xticks(FAN_INS)
    axes.set_yticks([n**0.5 for n in FAN_INS])
    axes.set(xlabel="n, the terms of each sum", ylabel="spread of x @ w")
    legend_above(axes, columns=1)


def _by_mean(found: Depth) -> tuple[list[Product], list[Product]]:
    return [one for one in found.products if one.x_mean == 0], [one for one in found.products if one.x_mean == 1]


def _seen(found: Depth) -> str:
    last = {(chain.weights, chain.batchnorm): chain.spread[-1] for chain in found.chains}
    normalised = [spread for chain in found.chains if chain.batchnorm for spread in chain.spread]
    centred, shifted = _by_mean(found)
    broad, narrow, he = SCALES
    return (
        f"After {len(found.chains[0].spread)} layers without BatchNorm the spread is {last[broad, False]:.1e} for "
        f"weights of spread 1, {last[narrow, False]:.1e} for 0.01 and {last[he, False]:.2f} for He's √(2/n); with "
        f"BatchNorm it stays between {min(normalised):.2f} and {max(normalised):.2f} in every layer and for every "
        f"scale. One x @ w of {centred[-1].n} terms has a mean of {centred[-1].mean:.2f} and a spread of "
        f"{centred[-1].spread:.1f}, where √n is {centred[-1].n ** 0.5:.1f}. For x of mean 1 each "
        f"output has a mean of its own; these are {shifted[-1].mean_spread:.1f} apart (standard deviation); "
        f"for x of mean 0 they are {centred[-1].mean_spread:.2f} apart."
    )


def _drift(found: Depth) -> Table:
    layers = (1, len(found.chains[0].spread))
    rows = tuple(
        (
            "with" if chain.batchnorm else "without",
            chain.weights,
            *(f"{chain.mean[layer - 1]:.2g} ± {chain.spread[layer - 1]:.2g}" for layer in layers),
        )
        for chain in found.chains
    )
    header = ("BatchNorm", "σ", *(f"layer {layer}" for layer in layers))
    return Table("Activations behind a layer, mean ± standard deviation, by the spread σ of the weights.", header, rows)


def _multiplied(found: Depth) -> Table:
    rows = tuple(
        (
            str(one.n),
            f"{one.x_mean:g}",
            f"{one.mean:.2f}",
            f"{one.spread:.2f}",
            f"{(one.n * (1 + one.x_mean**2)) ** 0.5:.2f}",
            f"{one.mean_spread:.2f}",
        )
        for one in found.products
    )
    header = ("n", "mean of x", "mean of x @ w", "spread", "√(n·E[x²])", "spread of means")
    caption = (
        "x @ w for x of standard deviation 1 and w of the standard normal. The means, whose spread is in the last "
        "column, are those of each output over the batch."
    )
    return Table(caption, header, rows)


STUDY = Study(
    "depth",
    "Activations drift with depth",
    "A batch of 128 inputs of the standard normal goes through 50 linear layers of 256 features, each with a ReLU "
    "after it, for weights of three standard deviations σ; with BatchNorm, each feature is normalised over the batch "
    "before the ReLU. Below, one matrix product x @ w for sums of 4 to 1,024 terms.",
    compute,
    show,
)
