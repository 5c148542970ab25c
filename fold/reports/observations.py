"""What was seen of two graphs, unfolded and folded, for the pictures of a report."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

import numpy as np

QUANTILES = (0.01, 0.25, 0.5, 0.75, 0.99)

T = TypeVar("T")


def evenly(items: Sequence[T], most: int) -> list[T]:
    """At most so many, first and last among them, and the others at even distances."""
    if len(items) <= most:
        return list(items)
    return [items[round(index)] for index in np.linspace(0, len(items) - 1, most)]


@dataclass(frozen=True)
class Errors:
    """|U - R| and |F - R| of the elements of all outputs, in the same order; ONNX Runtime optimises as it serves."""

    unfolded: np.ndarray
    folded: np.ndarray


@dataclass(frozen=True)
class Layer:
    """The largest error of one tensor, relative to its largest value; node by node, without optimisation. `folded` is
    None where the folded graph has no such tensor."""

    name: str
    unfolded: float
    folded: float | None


class Spread(NamedTuple):
    """Quantiles of a tensor's numbers, at `QUANTILES`."""

    low: float
    first: float
    median: float
    third: float
    high: float


@dataclass(frozen=True)
class Activations:
    """What one BatchNorm reads and writes in the unfolded graph, and what the folded graph carries instead of both.

    `number` counts BatchNorms from 1 in graph order; `folded` is None where no tensor of the folded graph stands for
    them.
    """

    number: int
    before: Spread
    after: Spread
    folded: Spread | None


class Range(NamedTuple):
    """Over channels; a channel that is dead or constant has no factor, and is left out."""

    least: float
    median: float
    most: float


@dataclass(frozen=True)
class Stretch:
    """By how much one folded BatchNorm multiplied the weights that write its input, and those that read its output."""

    number: int
    before: Range
    behind: Range


@dataclass(frozen=True)
class Cost:
    """Of one graph: bytes of its weights, its operators without constants, and the median milliseconds of one run."""

    weight_bytes: int
    operators: int
    latency_ms: float | None = None


@dataclass(frozen=True)
class Observations:
    """What could be seen; `missing` gives the reason for each picture that could not be made, by the field's name.

    `numbers` counts BatchNorms from 1 in graph order, by their name and node. `rows` went into errors and activations,
    `timed_rows` into each of `rounds` timed runs. `tensors` is how many `layers` were chosen from.
    """

    numbers: dict[tuple[str, str], int]
    rows: int
    timed_rows: int
    unfolded: Cost
    folded: Cost
    rounds: int = 0
    errors: Errors | None = None
    layers: tuple[Layer, ...] = ()
    tensors: int = 0
    activations: tuple[Activations, ...] = ()
    stretches: tuple[Stretch, ...] = ()
    missing: dict[str, str] = field(default_factory=dict)
