"""The arithmetic of folding, in float64 and numpy only; nothing here knows a graph.

A BatchNorm in eval mode is `v = s*u + t` for each channel (`batchnorm`). A tensor `x` is carried as `p*x + q`, its
gauge. A node that reads a gauged tensor `h` sees `x = a*h + b` with `a = 1/p` and `b = -q/p` (`Reading`), and a node
that writes must deliver `p*y + q` (`Gauge`). The functions below give the parameters with which a linear node computes,
from a gauged input, the gauged output. They hold for every sign of `p` and for `p = 0` on the writing side.

Shapes: I input channels, O output channels, g groups, k the kernel's spatial sizes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class Gauge(NamedTuple):
    """What a tensor is carried as: `p*x + q` for each channel; `p` and `q` have shape [channels]."""

    p: Array
    q: Array

    @property
    def trivial(self) -> bool:
        return bool((self.p == 1).all() and (self.q == 0).all())

    def reading(self) -> "Reading":
        """How a node sees a tensor of this gauge; `p` must not be 0.

        An infinite `p` tells that the tensor is the constant `-q` there, and that what is carried means nothing.
        """
        return Reading(1 / self.p, np.where(np.isinf(self.p), -self.q, -self.q / self.p))


class Reading(NamedTuple):
    """What a node that reads the gauged tensor `h` takes for the tensor itself: `a*h + b`, each of shape [channels]."""

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
    """Gamma, beta and mean, [C] each, of a BatchNorm that stays between two gauged tensors, with its variance.

    The mean is carried as the tensor is: left where it was, it would be many times what a tensor of small scale holds,
    and beta would have to cancel it. A void reading (`a = 0`) has no mean of its own.
    """
    void = reading.a == 0
    carried = np.where(void, mean, np.divide(mean - reading.b, reading.a, where=~void, out=np.zeros_like(mean)))
    scale = gauge.p * s * reading.a
    shift = gauge.p * (s * np.where(void, reading.b, mean) + t) + gauge.q
    return scale * np.sqrt(variance + epsilon), shift, carried


def conv(W: Array, B: Array | None, groups: int, reading: Reading, gauge: Gauge) -> tuple[Array, Array]:
    """Weights and bias of a convolution of any rank.

    `W` is [O, I/g, *k], `B` is [O] or None, the reading is [I] and the gauge is [O].
    `W'[o,i] = p[o] W[o,i] a[i]` and `B'[o] = p[o] (B[o] + sum_i b[i] sum_k W[o,i,k]) + q[o]`.
    Exact if the input is not padded, or padded with zeros where `b = 0`.
    """
    per_group = W.shape[0] // groups

    def spread(x: Array) -> Array:  # [I] -> [O, I/g]: what output channel o reads
        return np.repeat(x.reshape(groups, -1), per_group, axis=0)

    spatial = (1,) * (W.ndim - 2)
    bias = np.zeros(W.shape[0]) if B is None else B
    if reading.b.any():
        bias = bias + (W.sum(axis=tuple(range(2, W.ndim))) * spread(reading.b)).sum(axis=1)
    factor = gauge.p[:, None] * spread(reading.a)
    return W * factor.reshape(*factor.shape, *spatial), gauge.p * bias + gauge.q


def shift_per_tap(W: Array, groups: int, b: Array, p: Array) -> Array:
    """What each tap of a convolution's kernel adds to its output of scale `p`, [O], for a shift `b`, [I], of its input.

    `W` is [O, I/g, *k], the result is [O, *k]: `V[o, tap] = p[o] sum_i W[o, i, tap] b[i]`.
    """
    per_group = W.shape[0] // groups
    spread = np.repeat(b.reshape(groups, -1), per_group, axis=0)
    V: Array = (W * spread.reshape(*spread.shape, *(1,) * (W.ndim - 2))).sum(axis=1)
    return V * p.reshape(-1, *(1,) * (W.ndim - 2))


def shift_per_tap_transposed(W: Array, groups: int, b: Array, p: Array) -> Array:
    """The same of a transposed convolution, whose `W` is [I, O/g, *k]: [O, *k]."""
    products = (W * b.reshape(-1, *(1,) * (W.ndim - 1))).reshape(groups, -1, *W.shape[1:])
    V: Array = products.sum(axis=1).reshape(-1, *W.shape[2:])
    return V * p.reshape(-1, *(1,) * (W.ndim - 2))


def border_map(V: Array, reached: Sequence[NDArray[np.bool_]]) -> Array:
    """What a shifted input adds at each output position, [1, O, *out]: taps that fall on padding add nothing.

    `V` is [O, *k]; `reached[axis]`, [out, k], tells which taps of an axis read the input at which output position.
    """
    M = V
    for taps in reached:
        M = np.tensordot(M, taps.astype(np.float64), axes=([1], [1]))
    return M[None]


def conv_transpose(W: Array, B: Array | None, groups: int, reading: Reading, gauge: Gauge) -> tuple[Array, Array]:
    """Weights and bias of a transposed convolution of any rank.

    `W` is [I, O/g, *k]: input channel i of group h writes the output channels `h*O/g … (h+1)*O/g - 1`.
    The reading is [I] with `b = 0` (each output position sums another part of the kernel, so no constant bias could
    stand for a shift), the gauge is [O].
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


NOBODY = -1


@dataclass(frozen=True)
class Conflict:
    """A group of relations that cannot hold: the position that failed first, and the cause (an index) it ran into."""

    position: int
    cause: int
    dead: bool = False
