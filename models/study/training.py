"""Training on the digits with and without BatchNorm, before and after the activation, for several learning rates.

Everything else is equal: the initial weights, the batches and their order, plain gradient descent without momentum or a
schedule.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from torch import nn
from torch.nn import functional

from fold.reports.svg import INK
from models import digits
from models.digits import Digits
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

PLACEMENTS = ("none", "before", "after")
RATES = (0.01, 0.1, 1.0)
STEPS = 1000
BATCH = 64
GOAL = 0.95
"""Share of the held-out images, in eval mode."""
HIDDEN, LAYERS = 64, 3
LOOKS = {"none": ("-", WITHOUT, "o"), "before": ("-", WITH, "s"), "after": ("--", THIRD, "^")}


@dataclass(frozen=True)
class Run:
    """One training. `losses` are those of the batches, [steps]; None where a loss is no finite number.

    `reached` is the first step after which `GOAL` of the held-out images were right, or None;
    `accuracy` is the share at the end.
    """

    placement: str
    rate: float
    seed: int
    losses: tuple[float | None, ...]
    reached: int | None
    accuracy: float


@dataclass(frozen=True)
class Training:
    """Every placement with every rate and seed, `steps` each."""

    steps: int
    runs: tuple[Run, ...]

    def of(self, placement: str, rate: float) -> list[Run]:
        """The runs of one placement and rate, a seed each."""
        return [run for run in self.runs if (run.placement, run.rate) == (placement, rate)]

    def median_reached(self, placement: str, rate: float) -> float:
        """The median of the steps to the goal over the seeds; infinite if most never reached it."""
        return median(float("inf") if run.reached is None else run.reached for run in self.of(placement, rate))

    def to_dict(self) -> dict[str, Any]:
        return {"goal": GOAL, "batch": BATCH, **asdict(self)}


def compute(
    seed: int = 0,
    track: Track = untracked,
    *,
    rates: tuple[float, ...] = RATES,
    steps: int = STEPS,
    seeds: int = 3,
) -> Training:
    """Train every placement with every rate, from `seeds` seeds that begin at `seed`."""
    data = digits.load()
    settings = [(p, rate, seed + n) for rate in rates for p in PLACEMENTS for n in range(seeds)]
    return Training(steps, tuple(_run(data, *setting, steps) for setting in track(settings, "trainings")))


def network(placement: str, seed: int, *, momentum: float = 0.1) -> nn.Sequential:
    """[N, 64] to [N, 10]: hidden Linear layers with ReLU, and BatchNorm as `placement` says.

    One seed gives the same initial weights for every placement.
    """
    layers: list[nn.Module] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        features = digits.SIZE**2
        for _ in range(LAYERS):
            layers.append(nn.Linear(features, HIDDEN))
            norm = [] if placement == "none" else [nn.BatchNorm1d(HIDDEN, momentum=momentum)]
            layers += [*norm, nn.ReLU()] if placement == "before" else [nn.ReLU(), *norm]
            features = HIDDEN
        layers.append(nn.Linear(features, digits.CLASSES))
    return nn.Sequential(*layers)


def descend(
    module: nn.Module, data: Digits, *, rate: float, steps: int, seed: int, batch: int = BATCH
) -> Iterator[float]:
    """Gradient descent on batches of `batch` images; yields the loss of each batch after its step."""
    generator = torch.Generator().manual_seed(seed)
    images, labels = torch.from_numpy(data.train_images).flatten(1), torch.from_numpy(data.train_labels)
    optimizer = torch.optim.SGD(module.parameters(), lr=rate)
    order = torch.empty(0, dtype=torch.int64)
    for _ in range(steps):
        if len(order) < batch:
            order = torch.randperm(len(images), generator=generator)
        chosen, order = order[:batch], order[batch:]
        module.train()
        loss = functional.cross_entropy(module(images[chosen]), labels[chosen])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        yield loss.item()


def accuracy(module: nn.Module, data: Digits) -> float:
    """The accuracy on the held-out images in eval mode."""
    return digits.accuracy(module, data.test_images.reshape(len(data.test_images), -1), data.test_labels)


def _run(data: Digits, placement: str, rate: float, seed: int, steps: int) -> Run:
    module = network(placement, seed)
    losses: list[float | None] = []
    reached = None
    for step, loss in enumerate(descend(module, data, rate=rate, steps=steps, seed=seed), start=1):
        losses.append(loss if np.isfinite(loss) else None)
        if reached is None and accuracy(module, data) >= GOAL:
            reached = step
    return Run(placement, rate, seed, tuple(losses), reached, accuracy(module, data))


def show(found: Training) -> Section:
    """The loss of every step for one seed, a row for each rate, and the steps to the goal of every seed."""
    rates = list(dict.fromkeys(run.rate for run in found.runs))
    figure = tall(2.0 + 2.1 * len(rates))
    grid = figure.add_gridspec(len(rates) + 1, 1)
    for row, rate in enumerate(rates):
        axes = figure.add_subplot(grid[row])
        for placement in PLACEMENTS:
            style, colour, _ = LOOKS[placement]
            losses = [np.nan if loss is None else loss for loss in found.of(placement, rate)[0].losses]
            axes.plot(range(1, found.steps + 1), losses, style, color=colour, linewidth=0.8, label=_name(placement))
        logarithmic(axes, "both")
        axes.set(xlabel="step", ylabel=f"loss at rate {rate:g}")
        if row == 0:
            legend_above(axes, columns=3)
    _draw_steps(figure.add_subplot(grid[len(rates)]), found, rates)
    return Section(figure, _seen(found, rates), (_table(found, rates),))


def _draw_steps(axes: Axes, found: Training, rates: list[float]) -> None:
    """A mark for each seed; runs that never reached the goal are above the line."""
    never = 2 * found.steps
    for column, rate in enumerate(rates):
        for offset, placement in zip((-0.2, 0, 0.2), PLACEMENTS, strict=True):
            _, colour, marker = LOOKS[placement]
            heights = [run.reached or never for run in found.of(placement, rate)]
            axes.plot([column + offset] * len(heights), heights, marker, color=colour, mfc="none", markersize=6)
    logarithmic(axes, "y")
    axes.set_ylim(10, 3 * found.steps)
    axes.axhline(found.steps, color=INK, linewidth=0.8, linestyle=":")
    axes.set_yticks([10, 100, found.steps, never], ["10", "100", str(found.steps), "never"])
    axes.set_xticks(range(len(rates)), [f"{rate:g}" for rate in rates])
    axes.set_xlim(-0.5, len(rates) - 0.5)
    axes.set(xlabel="learning rate", ylabel=f"steps to {GOAL:.0%}")


def _name(placement: str) -> str:
    return {"none": "without", "before": "before ReLU", "after": "behind ReLU"}[placement]


def _steps(found: Training, placement: str, rate: float) -> str:
    reached = found.median_reached(placement, rate)
    return f"{reached:g}" if np.isfinite(reached) else "never"


def _seen(found: Training, rates: list[float]) -> str:
    seeds = len(found.of("none", rates[0]))
    each = "; ".join(
        f"at rate {rate:g} " + ", ".join(f"{_steps(found, p, rate)} {_name(p)}" for p in PLACEMENTS) for rate in rates
    )
    best = {p: max(median(run.accuracy for run in found.of(p, rate)) for rate in rates) for p in PLACEMENTS}
    return (
        f"Steps until {GOAL:.0%} of the held-out images are right, the median of {seeds} seeds; “never” means not in "
        f"{found.steps:,}: {each}. The best median accuracy at the end, over the rates, is {best['none']:.1%} without "
        f"BatchNorm, {best['before']:.1%} with it before the activation and {best['after']:.1%} after it. The curves "
        "are the losses of single batches of the first seed, not smoothed."
    )


def _table(found: Training, rates: list[float]) -> Table:
    rows = tuple(
        (
            f"{rate:g}",
            _name(p),
            ", ".join("never" if run.reached is None else str(run.reached) for run in found.of(p, rate)),
            ", ".join(f"{run.accuracy:.1%}" for run in found.of(p, rate)),
        )
        for rate in rates
        for p in PLACEMENTS
    )
    header = ("rate", "BatchNorm", f"steps to {GOAL:.0%}", "accuracy at the end")
    return Table("One number for each seed.", header, rows)


STUDY = Study(
    "training",
    "Training with and without BatchNorm",
    "A perceptron of three hidden layers of 64 features learns 1,442 images of digits, 64 a step, by plain gradient "
    "descent, for three learning rates: without BatchNorm, with it before each ReLU, and with it after each ReLU. "
    "After every step 355 held-out images are classified in eval mode, with the moving averages.",
    compute,
    show,
)
