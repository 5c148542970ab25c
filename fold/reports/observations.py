"""The data for the pictures of a report: observations of the unfolded and the folded graph."""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from fold.inspection import Layer

QUANTILES = (0.01, 0.25, 0.5, 0.75, 0.99)


@dataclass(frozen=True)
class Errors:
    """|U - R| and |F - R| of the elements of all outputs, in the same order, with ONNX Runtime's optimisations on."""

    unfolded: np.ndarray
    folded: np.ndarray


class Spread(NamedTuple):
    """The quantiles of a tensor's numbers, at `QUANTILES`."""

    low: float
    first: float
    median: float
    third: float
    high: float


@dataclass(frozen=True)
class Activations:
    """The input and output of one BatchNorm in the unfolded graph, and the tensor that replaces both in the folded one.

    `number` counts BatchNorms from 1 in graph order; `folded` is None where no tensor of the folded graph replaces
    them.
    """

    number: int
    before: Spread
    after: Spread
    folded: Spread | None


class Range(NamedTuple):
    """Factors over channels. Dead and constant channels have no factor and are left out."""

    least: float
    median: float
    most: float


@dataclass(frozen=True)
class Stretch:
    """The factors by which one folded BatchNorm multiplied the weights before it and those behind it."""

    number: int
    before: Range
    behind: Range


@dataclass(frozen=True)
class Cost:
    """The bytes of a graph's weights, its operators without constants, and the median milliseconds of one run."""

    weight_bytes: int
    operators: int
    latency_ms: float | None = None


@dataclass(frozen=True)
class Observations:
    """All observations; `missing` has the reason for each picture that could not be made, by the field's name.

    `numbers` counts BatchNorms from 1 in graph order, by their name and node. `rows` of input were used for errors and
    activations, `timed_rows` for each of `rounds` timed runs. `layers` were chosen from `tensors` tensors.
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
