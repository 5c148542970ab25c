"""The cost surface of y = 2A + 3B, raw and standardised, and how gradient descent walks down each.

The mean squared error of a linear model is L(w) = ½ (w − w*)ᵀ H (w − w*) with H = 2 XᵀX / N: its level lines are
ellipses whose axes are as 1/√λ of H. The largest λ limits the learning rate, the smallest decides how long it takes.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from fold.reports.svg import INK
from models.study.section import WITH, WITHOUT, Section, Study, Table, Track, legend_above, logarithmic, tall, untracked

WEIGHTS = (2.0, 3.0)
RANGES = ((1.0, 10.0), (1.0, 200.0))
CLOSE = 1e-6
"""The share of the first loss at which a descent ends. The minimum itself is 0, because y has no noise."""
LIMIT = 100_000
LEVELS = (0.003, 0.03, 0.1, 0.25, 0.5, 1.0, 1.7)
"""Level lines, as shares of the loss at the start."""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Visit:
    """The position of a descent after `step` steps."""

    step: int
    weights: tuple[float, float]
    loss: float


@dataclass(frozen=True)
class Descent:
    """One surface, and the way from weights (0, 0) to its minimum. `visits` are steps at about even ratios."""

    minimum: tuple[float, float]
    hessian: tuple[tuple[float, float], tuple[float, float]]
    eigenvalues: tuple[float, float]
    rate: float
    steps: int
    visits: tuple[Visit, ...]

    @property
    def condition(self) -> float:
        """The largest eigenvalue over the smallest: 1 for a round bowl."""
        return self.eigenvalues[1] / self.eigenvalues[0]


@dataclass(frozen=True)
class CostSurface:
    """`raw_after_bowl` is the raw descent after as many steps as the standardised one needed."""

    samples: int
    raw: Descent
    standardised: Descent
    raw_after_bowl: Visit

    def to_dict(self) -> dict[str, Any]:
        conditions = {"raw": self.raw.condition, "standardised": self.standardised.condition}
        return {**asdict(self), "close": CLOSE, "condition": conditions}


def compute(seed: int = 0, track: Track = untracked, *, samples: int = 500) -> CostSurface:
    """Both descents for `samples` draws of A and B.

    Standardised means that A and B have mean 0 and standard deviation 1, and that y, which a bias would shift, has
    mean 0.
    """
    random = np.random.default_rng(seed)
    X = np.stack([random.uniform(*bounds, samples) for bounds in RANGES], axis=1)
    y = X @ np.array(WEIGHTS)
    surfaces = {"raw": (X, y), "standardised": ((X - X.mean(0)) / X.std(0), y - y.mean())}
    walks = {name: _walk(*surfaces[name]) for name in track(list(surfaces), "descents")}
    raw, standardised = (_descent(*surfaces[name], walks[name]) for name in surfaces)
    return CostSurface(samples, raw, standardised, walks["raw"][standardised.steps])


def _walk(X: Array, y: Array) -> list[Visit]:
    """Plain gradient descent on the mean squared error from (0, 0), with the learning rate 1/λmax.

    From 2/λmax on it would diverge. Returns every step, including the start.
    """
    hessian = 2 * X.T @ X / len(X)
    rate = 1 / np.linalg.eigvalsh(hessian)[-1]
    weights = np.zeros(2)
    visits: list[Visit] = []
    for step in range(LIMIT):
        error = X @ weights - y
        visits.append(Visit(step, (float(weights[0]), float(weights[1])), float(np.mean(error**2))))
        if visits[-1].loss <= CLOSE * visits[0].loss:
            break
        weights = weights - rate * 2 * X.T @ error / len(X)
    return visits


def _descent(X: Array, y: Array, walk: list[Visit]) -> Descent:
    hessian = 2 * X.T @ X / len(X)
    low, high = np.linalg.eigvalsh(hessian)
    minimum = np.linalg.lstsq(X, y, rcond=None)[0]
    steps = walk[-1].step
    kept = sorted({0, 1, *np.geomspace(1, steps, 60).round().astype(int).tolist()})
    return Descent(
        minimum=(float(minimum[0]), float(minimum[1])),
        hessian=((float(hessian[0, 0]), float(hessian[0, 1])), (float(hessian[1, 0]), float(hessian[1, 1]))),
        eigenvalues=(float(low), float(high)),
        rate=float(1 / high),
        steps=steps,
        visits=tuple(walk[step] for step in kept),
    )


def show(found: CostSurface) -> Section:
    """Both surfaces from the side and from above, with one scale on both axes, and the loss over the steps."""
    figure = tall(7.4)
    grid = figure.add_gridspec(3, 2, height_ratios=(0.9, 1, 1.1))
    for column, (name, descent, colour) in enumerate(_named(found)):
        standing = figure.add_subplot(grid[0, column], projection="3d")
        _standing(standing, descent)
        standing.set_title(f"{name}: {'a valley' if column == 0 else 'a bowl'}")
        _level_lines(figure.add_subplot(grid[1, column]), descent, colour)
    axes = figure.add_subplot(grid[2, :])
    for name, descent, colour in _named(found):
        steps = [max(visit.step, 0.5) for visit in descent.visits]
        losses = [visit.loss / descent.visits[0].loss for visit in descent.visits]
        axes.plot(steps, losses, "os"[name == "standardised"], color=colour, linestyle="-", markersize=3, label=name)
    axes.axhline(CLOSE, color=INK, linewidth=0.8, linestyle=":")
    logarithmic(axes, "both")
    axes.set(xlabel="step of gradient descent (the start at 0.5)", ylabel="loss / loss at the start")
    legend_above(axes)
    return Section(figure, _seen(found), (_table(found),))


def _named(found: CostSurface) -> list[tuple[str, Descent, str]]:
    return [("raw", found.raw, WITHOUT), ("standardised", found.standardised, WITH)]


def _surface(descent: Descent, points: int) -> tuple[Array, Array, Array]:
    """Weights of A and B [points, points] around the minimum, and the loss there over that at the start."""
    centre = np.array(descent.minimum)
    reach = 1.35 * np.abs(centre).max()
    offsets = np.linspace(-reach, reach, points)
    first, second = np.meshgrid(offsets, offsets)
    deltas = np.stack([first, second], axis=-1)
    losses = 0.5 * np.einsum("...i,ij,...j", deltas, np.array(descent.hessian), deltas)
    return centre[0] + first, centre[1] + second, losses / descent.visits[0].loss


def _standing(axes: Any, descent: Descent) -> None:
    """Draw on matplotlib's Axes3D, which has no types."""
    first, second, losses = _surface(descent, 21)
    axes.plot_wireframe(first, second, losses, color=INK, linewidth=0.4, alpha=0.8)
    axes.view_init(elev=28, azim=-62)
    axes.set_box_aspect((1, 1, 0.85), zoom=1.2)
    axes.set_axis_off()


def _level_lines(axes: Axes, descent: Descent, colour: str) -> None:
    """Level lines around the minimum, and the way there, with equal units on both axes."""
    axes.contour(*_surface(descent, 81), LEVELS, colors=INK, linewidths=0.6, alpha=0.55)
    way = np.array([visit.weights for visit in descent.visits])
    axes.plot(way[:, 0], way[:, 1], "o-", color=colour, markersize=2.5, linewidth=1)
    axes.plot(*descent.minimum, "*", color=INK, markersize=9)
    axes.set_aspect("equal")
    axes.set(xlabel="weight of A", ylabel="weight of B")
    axes.locator_params("x", nbins=4, steps=[1, 2, 5, 10])
    axes.locator_params("y", nbins=5, steps=[1, 2, 5, 10])


def _seen(found: CostSurface) -> str:
    raw, bowl = found.raw, found.standardised
    return (
        f"With raw inputs the surface is a valley {raw.condition:,.0f} times as curved across as along, and gradient "
        f"descent takes {raw.steps:,} steps to the bottom; standardised it is a bowl ({bowl.condition:.2f} times) and "
        f"takes {bowl.steps}. After those {bowl.steps} steps the raw descent has put the weight of A at "
        f"{found.raw_after_bowl.weights[0]:.3f} instead of {WEIGHTS[0]:g}: along the valley it moves "
        "slowly, and with twice the rate it would diverge, because the largest curvature limits the rate."
    )


def _table(found: CostSurface) -> Table:
    rows = tuple(
        (
            name,
            f"{one.eigenvalues[0]:,.4g} and {one.eigenvalues[1]:,.4g}",
            f"{one.condition:,.3g}",
            f"{one.rate:.3g}",
            f"{one.steps:,}",
        )
        for name, one, _ in _named(found)
    )
    header = ("inputs", "curvatures", "ratio", "learning rate", "steps")
    return Table(f"Curvatures are the eigenvalues of the Hessian over {found.samples} samples.", header, rows)


STUDY = Study(
    "cost_surface",
    "The cost surface: a valley and a bowl",
    "y = 2A + 3B is learnt from A drawn evenly from 1 to 10 and B from 1 to 200, without noise, by gradient descent on "
    "the mean squared error. It begins at weights (0, 0), with the learning rate 1/λmax, where λmax is the "
    "largest curvature, and ends when the loss is a millionth of its start; the least possible loss is 0.",
    compute,
    show,
)
