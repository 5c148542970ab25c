"""How tanh and sigmoid saturate for broad inputs, and how many gradients vanish, with and without normalisation.

500×500 weights of spread 1 turn 500×16 inputs of spread 1 into sums of spread √500, about 22, where both functions are
flat. Normalised over the batch, each feature has mean 0 and variance 1, and there both functions are steep.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from fold.reports.pictures import FILLED
from models.study.section import COMPACT, WITH, WITHOUT, Section, Study, Table, Track, logarithmic, tall, untracked

EPS = 1e-5
DEAD = 0.01
"""A gradient is dead where the derivative is below this share of the largest that the function has (1 or ¼)."""
BINS = 40
SPREADS = tuple(float(spread) for spread in np.geomspace(0.01, 10, 16))

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Function:
    """An activation with values between `low` and 1, its derivative as a function of its value, and the largest one."""

    name: str
    value: Callable[[Array], Array]
    derivative: Callable[[Array], Array]
    steepest: float
    low: float

    def dead(self, z: Array) -> float:
        """The share of `z` at which the gradient is dead."""
        return float(np.mean(self.derivative(self.value(z)) < DEAD * self.steepest))


FUNCTIONS = (
    Function("tanh", np.tanh, lambda a: 1 - a**2, 1.0, -1.0),
    Function("sigmoid", lambda z: 0.5 * (1 + np.tanh(0.5 * z)), lambda a: a * (1 - a), 0.25, 0.0),
)


@dataclass(frozen=True)
class Side:
    """One function without or with normalisation: share of dead gradients, and the share of its values in each bin.

    `dead_by_spread` goes with `Saturation.spreads`.
    """

    dead: float
    values: tuple[float, ...]
    dead_by_spread: tuple[float, ...]


@dataclass(frozen=True)
class Saturated:
    """`edges` [BINS + 1] bound the bins of the values."""

    edges: tuple[float, ...]
    without: Side
    normalised: Side


@dataclass(frozen=True)
class Saturation:
    """`spread_without` and `spread_normalised` are standard deviations of the inputs of the functions."""

    features: int
    batch: int
    spread_without: float
    spread_normalised: float
    spreads: tuple[float, ...]
    functions: dict[str, Saturated]

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "dead_below": DEAD}


def compute(seed: int = 0, track: Track = untracked, *, features: int = 500, batch: int = 16) -> Saturation:
    """`features`×`features` weights against `features`×`batch` inputs, both drawn from the standard normal."""
    random = np.random.default_rng(seed)
    z = random.standard_normal((features, features)) @ random.standard_normal((features, batch))
    scaled = {spread: (spread * z, normalise(spread * z)) for spread in track(SPREADS, "spreads")}
    functions = {}
    for function in FUNCTIONS:
        edges = np.linspace(function.low, 1, BINS + 1)
        sides = []
        for index, given in enumerate((z, normalise(z))):
            counts = np.histogram(function.value(given), edges)[0]
            by_spread = tuple(function.dead(scaled[spread][index]) for spread in SPREADS)
            sides.append(Side(function.dead(given), tuple((counts / given.size).tolist()), by_spread))
        functions[function.name] = Saturated(tuple(edges.tolist()), *sides)
    return Saturation(features, batch, float(z.std()), float(normalise(z).std()), SPREADS, functions)


def normalise(z: Array) -> Array:
    """Each feature (row) of `z` [features, batch] with mean 0 and variance 1 over the batch, as BatchNorm does."""
    normalised: Array = (z - z.mean(1, keepdims=True)) / np.sqrt(z.var(1, keepdims=True) + EPS)
    return normalised


def show(found: Saturation) -> Section:
    """For each function the values it takes, and below it the share of dead gradients over the spread of the inputs."""
    figure = tall(5.6)
    grid = figure.add_gridspec(2, 2)
    for column, (name, one) in enumerate(found.functions.items()):
        values, dead = figure.add_subplot(grid[0, column]), figure.add_subplot(grid[1, column])
        _values(values, one)
        values.set_title(f"values of {name}")
        dead.plot(found.spreads, one.without.dead_by_spread, "o-", color=WITHOUT, markersize=3, label="without")
        dead.plot(found.spreads, one.normalised.dead_by_spread, "s-", color=WITH, markersize=3, label="normalised")
        logarithmic(dead, "x")
        dead.set(xlabel="spread of the inputs", ylim=(-0.03, 1.03))
        if column == 0:
            values.set_ylabel("share")
            dead.set_ylabel("share of dead gradients")
            figure.legend(*dead.get_legend_handles_labels(), loc="outside upper left", ncols=2, **COMPACT)
    return Section(figure, _seen(found), (_table(found),))


def _values(axes: Axes, one: Saturated) -> None:
    for side, colour, filled in ((one.without, WITHOUT, False), (one.normalised, WITH, True)):
        axes.stairs(side.values, one.edges, fill=True, fc=(colour, FILLED) if filled else "none", ec=colour, lw=1.3)
    axes.locator_params(axis="x", nbins=4)


def _seen(found: Saturation) -> str:
    dead = {name: (one.without.dead, one.normalised.dead) for name, one in found.functions.items()}
    worst = max(share for one in found.functions.values() for share in one.normalised.dead_by_spread)
    return (
        f"The sums have a standard deviation of {found.spread_without:.1f}. Without normalisation "
        f"{dead['tanh'][0]:.1%} of the gradients of tanh are dead and {dead['sigmoid'][0]:.1%} of those of sigmoid: "
        "their values lie at the ends of the range. Normalised over the batch, the standard deviation is "
        f"{found.spread_normalised:.2f} and the shares are {dead['tanh'][1]:.2%} and {dead['sigmoid'][1]:.2%}; for "
        f"inputs of spread {found.spreads[0]:g} to {found.spreads[-1]:g} they are {worst:.2%} at most."
    )


def _table(found: Saturation) -> Table:
    rows = tuple(
        (name, f"{one.without.dead:.2%}", f"{one.normalised.dead:.2%}") for name, one in found.functions.items()
    )
    return Table("Dead gradients at spread 1.", ("function", "without", "normalised"), rows)


STUDY = Study(
    "saturation",
    "Saturation of tanh and sigmoid",
    "500×500 weights are multiplied by 500×16 inputs, all drawn from the standard normal distribution. A gradient "
    f"counts as dead if the derivative is below {DEAD:.0%} of the function's largest. The inputs are then made "
    "narrower and broader.",
    compute,
    show,
)
