"""What a page draws of one BatchNorm: its numbers as distributions, its factor by channel, and its neighbourhood."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from fold.engine import Array
from fold.inspection.neighbourhood import Neighbourhood, Surroundings
from fold.inspection.statistics import parameters, scale_by_channel

BINS = 24
DIGITS = 6
"""Of the factors: a drawing shows fewer."""


@dataclass(frozen=True)
class Histogram:
    """How many of the finite numbers lie in each of the equal intervals from `min` to `max`; one interval if all are
    equal."""

    min: float
    max: float
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Detail:
    """`distributions` of gamma, beta, mean and variance are None where they are computed, and for a BatchNorm that is
    written out. `factors` are what it multiplies each channel by, None where they are not constant. `before` is in the
    unfolded graph, `after` in the folded one."""

    distributions: dict[str, Histogram | None]
    factors: tuple[float, ...] | None
    before: Neighbourhood
    after: Neighbourhood

    def to_dict(self) -> dict[str, Any]:
        """The JSON of `detail` (docs/formats.md)."""
        return {**asdict(self), "before": self.before.to_dict(), "after": self.after.to_dict()}


def detail(nodes: Sequence[ir.Node], surroundings: Surroundings, into: Iterable[str]) -> Detail:
    """The detail of a BatchNorm, one node, or several where it is written out. `into` names what it is folded into."""
    factors = scale_by_channel(nodes)
    return Detail(
        {name: _histogram(array) for name, array in parameters(nodes).items()},
        None if factors is None else tuple(float(f"{factor:.{DIGITS}g}") for factor in factors),
        *surroundings.of(nodes, into),
    )


def _histogram(array: Array | None) -> Histogram | None:
    finite = np.empty(0) if array is None else array[np.isfinite(array)]
    if not finite.size:
        return None
    least, most = float(finite.min()), float(finite.max())
    counts = [finite.size] if least == most else np.histogram(finite, BINS, (least, most))[0].tolist()
    return Histogram(least, most, tuple(counts))
