"""Measures whether opened activations make a graph faster, in sessions as the service opens them.

Each round times three sessions in turns: the closed graph, the closed graph once more, and the opened graph. The first
two tell how far sessions of one graph differ (addresses, placement of threads), and opening must gain more than that.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir

from fold.artifact import Manifest
from fold.bench.measure import choose_batches, interleaved
from fold.inputs import drawn_inputs
from fold.runtime import CudaOptions, Provider, open_graph, provider_of, resolve_provider

BATCHES = (1, 8)
CONFIDENCE = 0.99
ROUNDS = (15, 60)
"""The fewest and the most. With 15, the interval leaves out two rounds at each end."""
SECONDS = 10.0
"""Time for the rounds of one batch size, within `ROUNDS`."""


@dataclass(frozen=True)
class SpeedRatio:
    """How many times as fast as a first graph a second one is: the median over rounds, and its interval.

    `noise`, at least 1, is how far this ratio may be from 1 for two sessions of the first graph.
    """

    ratio: float
    low: float
    high: float
    noise: float

    @property
    def faster(self) -> bool:
        """Whether the second graph is faster beyond noise."""
        return self.low > self.noise

    @property
    def slower(self) -> bool:
        return self.high < 1 / self.noise


@dataclass(frozen=True)
class OpeningTimes:
    """Both graphs at one batch size: the median milliseconds of a run, and the speed of the opened one."""

    batch: int
    rounds: int
    closed_ms: float
    opened_ms: float
    speed: SpeedRatio


@dataclass(frozen=True)
class Opening:
    """Whether activations are opened, by measurement. Without `times` both graphs have the same operators."""

    provider: str
    times: tuple[OpeningTimes, ...] = ()

    @property
    def opened(self) -> bool:
        """Faster at some batch size, and slower at none."""
        return any(one.speed.faster for one in self.times) and not any(one.speed.slower for one in self.times)

    @property
    def message(self) -> str:
        chosen = "opened" if self.opened else "closed"
        if not self.times:
            return f"activations are {chosen}: opening them changes no operator"
        found = "; ".join(
            f"at batch {one.batch} opened ones run at {one.speed.ratio:.3f} times the speed ({one.speed.low:.3f} to "
            f"{one.speed.high:.3f}; sessions of one graph differ by up to {one.speed.noise:.3f})"
            for one in self.times
        )
        return f"activations are {chosen}, measured on {self.provider} with {CONFIDENCE:.0%} confidence: {found}"

    def to_dict(self) -> dict[str, Any]:
        """The JSON of `opening` (docs/formats.md)."""
        return {
            "opened": self.opened,
            "message": self.message,
            "provider": self.provider,
            "confidence": CONFIDENCE,
            "measurements": [asdict(one) for one in self.times],
        }


def compare_opening(
    closed: ir.Model, opened: ir.Model, manifest: Manifest, *, cuda: CudaOptions, provider: Provider, seed: int
) -> Opening:
    """Measure both graphs of a model, which compute the same, on inputs drawn from `seed`."""
    if [node.op_type for node in closed.graph] == [node.op_type for node in opened.graph]:
        return Opening(resolve_provider(provider))
    graphs = {"first": closed, "again": closed, "second": opened}
    sessions = {name: open_graph(graph, provider=provider, cuda=cuda) for name, graph in graphs.items()}
    times = []
    for batch in choose_batches(manifest, None, BATCHES):
        inputs = drawn_inputs(manifest, batch, seed)
        calls = {name: partial(session.run, None, inputs) for name, session in sessions.items()}
        turn = sum(seconds[0] for seconds in interleaved(calls, 1).values())
        rounds = min(max(int(SECONDS / turn), ROUNDS[0]), ROUNDS[1])
        seconds = interleaved(calls, rounds)
        first, second = (1000 * float(np.median(seconds[name])) for name in ("first", "second"))
        times.append(OpeningTimes(batch, rounds, first, second, speed_ratio(**seconds)))
    return Opening(provider_of(sessions["first"]), tuple(times))


def speed_ratio(first: Sequence[float], again: Sequence[float], second: Sequence[float]) -> SpeedRatio:
    """Compare the seconds of two graphs in the same rounds; `again` is another session of the first one."""
    _, low, high = _median_interval(np.divide(first, again))
    return SpeedRatio(*_median_interval(np.divide(first, second)), noise=max(high, 1 / low))


def _median_interval(values: np.ndarray) -> tuple[float, float, float]:
    """The median, and the interval that holds the true one with `CONFIDENCE`, whatever the distribution: the number of
    values below it is binomial."""
    ordered, count = np.sort(values), len(values)
    outside, left = 1 / 2**count, 0
    while outside <= (1 - CONFIDENCE) / 2:
        left += 1
        outside += math.comb(count, left) / 2**count
    left = max(left - 1, 0)
    return float(np.median(ordered)), float(ordered[left]), float(ordered[count - 1 - left])
