"""The parameters and statistics of one BatchNorm, without the graph around it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir

from fold.engine import Array, Reason, affine_step, scale_and_shift
from fold.graph import BATCHNORM, constant, float64, integer, real

EPSILON = float(np.float32(1e-5))
MOMENTUM = 0.9
"""ONNX's defaults. PyTorch's momentum is 1 minus ONNX's."""


class Span(NamedTuple):
    """The smallest and the largest of some numbers."""

    min: float
    max: float

    @classmethod
    def of(cls, array: Array | None) -> "Span | None":
        """The span of the finite numbers of an array; None if there are none."""
        finite = np.empty(0) if array is None else array[np.isfinite(array)]
        return cls(float(finite.min()), float(finite.max())) if finite.size else None

    @classmethod
    def around(cls, spans: Sequence["Span | None"]) -> "Span | None":
        """The span of several spans; None if none is known."""
        known = [span for span in spans if span is not None]
        return cls(min(span.min for span in known), max(span.max for span in known)) if known else None


@dataclass(frozen=True)
class Statistics:
    """The parameters and statistics of one BatchNorm. Spans are over finite numbers, and None where they are computed.

    `scale` is |γ/√(σ²+ε)| of the channels that are not dead. `dead` (γ = 0), `negative` (γ < 0), `tiny` (0 ≤ σ² < ε),
    `not_finite` (any of the four) and `negative_variance` count channels. `variance_over_epsilon` is that of the
    smallest variance. `batches_seen` is the number of batches that training counted, None where it is not known, and
    `initial_share` the weight that the initial mean 0 and variance 1 still have after these. `initial` is true where
    the statistics are exactly the initial ones. A BatchNorm that is `written_out` as products and sums has a scale, but
    no statistics.
    """

    written_out: bool = False
    training_mode: bool = False
    epsilon: float | None = None
    gamma: Span | None = None
    beta: Span | None = None
    mean: Span | None = None
    variance: Span | None = None
    variance_over_epsilon: float | None = None
    scale: Span | None = None
    dead: int | None = None
    negative: int | None = None
    tiny: int | None = None
    not_finite: int = 0
    negative_variance: int = 0
    batches_seen: int | None = None
    initial_share: float | None = None
    initial: bool = False

    @property
    def trained(self) -> bool | None:
        """False where the statistics are the initial ones; None where it cannot be known."""
        if self.initial:
            return False
        return None if self.mean is None or self.batches_seen == 0 else True

    def to_dict(self) -> dict[str, Any]:
        content = {key: value._asdict() if isinstance(value, Span) else value for key, value in vars(self).items()}
        del content["initial"]
        return {**content, "trained": self.trained}


def statistics(nodes: Sequence[ir.Node], batches_seen: int | None = None, *, moving_average: bool = True) -> Statistics:
    """The statistics of a BatchNormalization, or of a chain of nodes as which one is written out.

    Statistics that are a `moving_average` contain a share of the initial ones.
    """
    node = nodes[0]
    if node.op_type != BATCHNORM:
        return _of_products_and_sums(nodes)
    given = parameters(nodes)
    gamma, beta, mean, variance = given.values()
    epsilon = real(node, "epsilon", EPSILON)
    s = scale_by_channel(nodes)
    bad = [~np.isfinite(array) for array in given.values() if array is not None]
    return Statistics(
        training_mode=bool(integer(node, "training_mode", 0)),
        epsilon=epsilon,
        gamma=Span.of(gamma),
        beta=Span.of(beta),
        mean=Span.of(mean),
        variance=Span.of(variance),
        variance_over_epsilon=None if (least := Span.of(variance)) is None or epsilon <= 0 else least.min / epsilon,
        scale=None if s is None else _scale(s),
        dead=_count(None if gamma is None else gamma == 0),
        negative=_count(None if gamma is None else gamma < 0),
        tiny=_count(None if variance is None else (variance >= 0) & (variance < epsilon)),
        not_finite=_count(np.logical_or.reduce(bad)) or 0,
        negative_variance=_count(None if variance is None else variance < 0) or 0,
        batches_seen=batches_seen,
        initial_share=_initial_share(node, batches_seen) if moving_average else None,
        initial=mean is not None and variance is not None and bool((mean == 0).all() and (variance == 1).all()),
    )


def parameters(nodes: Sequence[ir.Node]) -> dict[str, Array | None]:
    """γ, β, μ and σ² of a BatchNorm; None for one that is computed, and all of them where it is written out."""
    given = nodes[0].inputs[1:5] if nodes[0].op_type == BATCHNORM else [None] * 4
    tensors = (constant(value) for value in given)
    arrays = (None if tensor is None else float64(tensor) for tensor in tensors)
    return dict(zip(("gamma", "beta", "mean", "variance"), arrays, strict=True))


def scale_by_channel(nodes: Sequence[ir.Node]) -> Array | None:
    """What a BatchNorm multiplies each channel by; None if that is not constant."""
    if nodes[0].op_type == BATCHNORM:
        affine = scale_and_shift(nodes[0])
        return None if isinstance(affine, Reason) else affine[0]
    s: Array = np.ones(1)
    for node in nodes:
        step = affine_step(node)
        assert step is not None  # written out means a chain of such nodes
        s = s * step[1] * np.ones_like(step[2])
    return s.reshape(-1)


def _initial_share(node: ir.Node, batches_seen: int | None) -> float | None:
    """The weight of the first value in a moving average. None for a momentum of 1, where all batches weigh the same."""
    momentum = real(node, "momentum", MOMENTUM)
    return momentum**batches_seen if batches_seen is not None and 0 < momentum < 1 else None


def _of_products_and_sums(nodes: Sequence[ir.Node]) -> Statistics:
    s = scale_by_channel(nodes)
    assert s is not None  # its factors are constants
    return Statistics(written_out=True, scale=_scale(s), dead=_count(s == 0), negative=_count(s < 0))


def _scale(s: Array) -> Span | None:
    return Span.of(np.abs(s[s != 0]))


def _count(channels: Any) -> int | None:
    return None if channels is None else int(np.sum(channels))
