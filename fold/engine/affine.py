"""The arithmetic of folding, in float64 and numpy only; nothing here knows a graph.

A BatchNorm in eval mode is `v = s*u + t` for each channel (`batchnorm`). The folded graph carries a tensor `x` as
`h = p*x + q`; the pair (p, q) is the tensor's gauge. A node that reads `h` recovers `x = a*h + b` with `a = 1/p` and
`b = -q/p` (`Reading`). A node that writes `y` must write `p*y + q` (`Gauge`). The functions below compute the
parameters of a linear node whose input and output have given gauges. They hold for every sign of `p`, and for `p = 0`
on the output.

Shapes: I input channels, O output channels, g groups, k the kernel's spatial sizes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class Gauge(NamedTuple):
    """The folded graph carries a tensor `x` as `p*x + q` for each channel; `p` and `q` have shape [channels]."""

    p: Array
    q: Array

    @property
    def trivial(self) -> bool:
        return bool((self.p == 1).all() and (self.q == 0).all())

    def reading(self) -> "Reading":
        """How a node recovers a tensor of this gauge; `p` must not be 0.

        Where `p` is infinite, the tensor is the constant `-q`, and the carried numbers have no meaning.
        """
        return Reading(1 / self.p, np.where(np.isinf(self.p), -self.q, -self.q / self.p))


class Reading(NamedTuple):
    """A node that reads the carried tensor `h` recovers the tensor as `a*h + b`; `a` and `b` have shape [channels]."""

    a: Array
    b: Array

    @property
    def trivial(self) -> bool:
        return bool((self.a == 1).all() and (self.b == 0).all())


def batchnorm(gamma: Array, beta: Array, mean: Array, variance: Array, epsilon: float) -> tuple[Array, Array]:
    """Scale `s = gamma/sqrt(variance + epsilon)` and shift `t = beta - s*mean` of a BatchNorm in eval mode.

    All arrays have shape [C]. Source: Ioffe and Szegedy 2015, algorithm 2.
    """
    s = gamma / np.sqrt(variance + epsilon)
    return s, beta - s * mean


def batchnorm_parameters(
    s: Array, t: Array, mean: Array, variance: Array, epsilon: float, reading: Reading, gauge: Gauge
) -> tuple[Array, Array, Array]:
    """New gamma, beta and mean, [C] each, of a BatchNorm that is kept between two gauged tensors. Its variance stays.

    The mean moves with the input's gauge. An unchanged mean could be much larger than the carried tensor, and beta
    would have to cancel it. Where the reading is constant (`a = 0`), the mean stays.
    """
    constant = reading.a == 0
    carried = np.where(constant, mean, np.divide(mean - reading.b, reading.a, where=~constant, out=np.zeros_like(mean)))
    scale = gauge.p * s * reading.a
    shift = gauge.p * (s * np.where(constant, reading.b, mean) + t) + gauge.q
    return scale * np.sqrt(variance + epsilon), shift, carried


def conv(W: Array, B: Array | None, groups: int, reading: Reading, gauge: Gauge) -> tuple[Array, Array]:
    """Weights and bias of a convolution of any rank.

    `W` is [O, I/g, *k], `B` is [O] or None, the reading is [I] and the gauge is [O].
    `W'[o,i] = p[o] W[o,i] a[i]` and `B'[o] = p[o] (B[o] + sum_i b[i] sum_k W[o,i,k]) + q[o]`.
    Exact if the input is not padded, or padded with zeros where `b = 0`.
    """
    per_group = W.shape[0] // groups

    def spread(x: Array) -> Array:  # [I] -> [O, I/g]: the input channels that output channel o reads
        return np.repeat(x.reshape(groups, -1), per_group, axis=0)

    spatial = (1,) * (W.ndim - 2)
    bias = np.zeros(W.shape[0]) if B is None else B
    if reading.b.any():
        bias = bias + (W.sum(axis=tuple(range(2, W.ndim))) * spread(reading.b)).sum(axis=1)
    factor = gauge.p[:, None] * spread(reading.a)
    return W * factor.reshape(*factor.shape, *spatial), gauge.p * bias + gauge.q


def shift_per_tap(W: Array, groups: int, b: Array, p: Array) -> Array:
    """How much each tap of a kernel adds to the output, of scale `p`, [O], if the input is shifted by `b`, [I].

    `W` is [O, I/g, *k], the result is [O, *k]: `V[o, tap] = p[o] sum_i W[o, i, tap] b[i]`.
    """
    per_group = W.shape[0] // groups
    spread = np.repeat(b.reshape(groups, -1), per_group, axis=0)
    V: Array = (W * spread.reshape(*spread.shape, *(1,) * (W.ndim - 2))).sum(axis=1)
    return V * p.reshape(-1, *(1,) * (W.ndim - 2))


def shift_per_tap_transposed(W: Array, groups: int, b: Array, p: Array) -> Array:
    """As `shift_per_tap`, for a transposed convolution: `W` is [I, O/g, *k], the result [O, *k]."""
    products = (W * b.reshape(-1, *(1,) * (W.ndim - 1))).reshape(groups, -1, *W.shape[1:])
    V: Array = products.sum(axis=1).reshape(-1, *W.shape[2:])
    return V * p.reshape(-1, *(1,) * (W.ndim - 2))


def border_map(V: Array, reached: Sequence[NDArray[np.bool_]]) -> Array:
    """How much a shifted input adds at each output position, [1, O, *out]. Taps that fall on padding add nothing.

    `V` is [O, *k]. `reached[axis]`, [out, k], is true where a tap reads the input, not padding, at an output position.
    """
    M = V
    for taps in reached:
        M = np.tensordot(M, taps.astype(np.float64), axes=([1], [1]))
    return M[None]


def conv_transpose(W: Array, B: Array | None, groups: int, reading: Reading, gauge: Gauge) -> tuple[Array, Array]:
    """Weights and bias of a transposed convolution of any rank.

    `W` is [I, O/g, *k]: input channel i of group h writes the output channels `h*O/g … (h+1)*O/g - 1`.
    The reading is [I] with `b = 0`, the gauge is [O]. Each output position sums other taps of the kernel, so a constant
    bias cannot replace a shift of the input.
    """
    per_group = W.shape[0] // groups
    bias = np.zeros(W.shape[1] * groups) if B is None else B
    factor = reading.a[:, None] * np.repeat(gauge.p.reshape(groups, -1), per_group, axis=0)
    return W * factor.reshape(*factor.shape, *(1,) * (W.ndim - 2)), gauge.p * bias + gauge.q


def linear(W: Array, B: Array | None, reading: Reading, gauge: Gauge) -> tuple[Array, Array]:
    """Weights and bias of `y = x @ W + B`: `W` is [..., K, N], `B` broadcasts to [M, N] or is None, the reading is [K]
    and the gauge is [N]."""
    bias = reading.b @ W
    if B is not None:
        bias = bias + B
    return reading.a[:, None] * W * gauge.p, gauge.p * bias + gauge.q


Ids = NDArray[np.int64]


NO_CAUSE = -1


@dataclass(frozen=True)
class Conflict:
    """A group of relations that contradicts the others: the first position that failed, and the cause (an index into
    `Gauges.causes`) of the relation that it contradicts. `dead` where a channel of scale 0 failed."""

    position: int
    cause: int
    dead: bool = False
