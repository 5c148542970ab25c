"""Sums and products of convolutions of one tensor, as one convolution in float64, and their cost.

Kernels are aligned by the positions that their taps read, in the groups that they have in common.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import onnx_ir as ir

from fold.engine.affine import Array

PASS = 32
"""The cost of one element-wise pass over a tensor, in multiplications for each output number; a low estimate."""


@dataclass(frozen=True)
class Branches:
    """A tensor as one convolution of `base`: weights `W`, [O, I/groups, *k], and bias `b`, [O], in float64.

    Along each axis tap i reads at `stride*position + begin + i*dilation`, and zeros outside of the tensor; `slack` is
    how far the padding reaches beyond the last tap. The convolution replaces `nodes`, among them `count` branches that
    cost `work` multiplications for each output position. `name` is the name of a weight to reuse. `make_weights`
    computes W, of shape `shape`, when it is needed. `rest` are further terms of a sum, with the operator (Add or Sub)
    that puts each behind the convolution.
    """

    base: ir.Value
    shape: tuple[int, ...]
    make_weights: Callable[[], Array]
    b: Array
    groups: int
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    begins: tuple[int, ...]
    slack: tuple[int, ...]
    nodes: frozenset[ir.Node] = frozenset()
    count: int = 1
    work: int = 0
    name: str | None = None
    rest: tuple[tuple[str, ir.Value], ...] = ()

    @cached_property
    def W(self) -> Array:  # noqa: N802
        with np.errstate(invalid="ignore"):  # of weights that are not finite
            return self.make_weights()

    @property
    def lasts(self) -> tuple[int, ...]:
        """The position that the last tap reads for output position 0."""
        return tuple(b + (k - 1) * d for b, k, d in zip(self.begins, self.shape[2:], self.dilations, strict=True))

    @property
    def pads(self) -> list[int]:
        """ONNX's `pads`: those before each axis, then those behind each."""
        return [*(-begin for begin in self.begins), *(at + s for at, s in zip(self.lasts, self.slack, strict=True))]

    @property
    def cheaper(self) -> bool:
        """Whether one convolution costs no more than the branches and the passes over them."""
        return math.prod(self.shape) + PASS * self.shape[0] <= self.work

    def through(self, node: ir.Node) -> "Branches":
        """The same, replacing one more node, which is an element-wise pass over the output."""
        return replace(self, nodes=self.nodes | {node}, work=self.work + PASS * self.shape[0])

    @property
    def zero_outside(self) -> bool:
        """Whether it would write zeros at every position outside of its output."""
        return not self.b.any() and all(
            last < stride and begin + slack >= 0
            for last, stride, begin, slack in zip(self.lasts, self.strides, self.begins, self.slack, strict=True)
        )


def scaled(f: Branches, s: Array, t: Array) -> Branches:
    spread = s.reshape(-1, *(1,) * (len(f.shape) - 1))
    return replace(f, make_weights=lambda: f.W * spread, b=s * f.b + t)


def total(a: Branches, b: Branches, sign: float) -> Branches | None:
    """The sum of two convolutions of one tensor, or None if their strides or output shapes differ."""
    if a.base is not b.base or a.strides != b.strides or a.shape[0] != b.shape[0]:
        return None
    groups = math.gcd(a.groups, b.groups)
    dilations, begins, kernel = [], [], []
    for axis in range(len(a.strides)):
        steps = [f.dilations[axis] for f in (a, b) if f.shape[2 + axis] > 1]
        dilation = math.gcd(*steps, a.begins[axis] - b.begins[axis]) or 1
        begin, end = min(a.begins[axis], b.begins[axis]), max(a.lasts[axis], b.lasts[axis])
        dilations.append(dilation)
        begins.append(begin)
        kernel.append((end - begin) // dilation + 1)
    shape = (a.shape[0], a.shape[1] * a.groups // groups, *kernel)
    larger = max(a, b, key=lambda f: (f.name is not None, math.prod(f.shape)))
    merged = replace(
        a,
        shape=shape,
        make_weights=lambda: _aligned(a, merged) + sign * _aligned(b, merged),
        b=a.b + sign * b.b,
        groups=groups,
        dilations=tuple(dilations),
        begins=tuple(begins),
        slack=tuple(min(pair) for pair in zip(a.slack, b.slack, strict=True)),  # where they differ all sizes are known
        nodes=a.nodes | b.nodes,
        count=a.count + b.count,
        work=a.work + b.work,
        name=larger.name,
    )
    return merged


def product(outer: Branches, inner: Branches) -> Branches | None:
    """Two convolutions in a row as one; None if the outer one pads with zeros where the inner one would not write
    zeros."""
    # 1. Refuse an outer convolution that pads with zeros a tensor that would not be zero there.
    if any(outer.pads) and not inner.zero_outside:
        return None
    # 2. The groups that both have in common, and the grid of taps.
    (outputs, _, *outer_kernel), (_, per_group, *inner_kernel) = outer.shape, inner.shape
    groups = math.gcd(outer.groups, inner.groups)
    begins = tuple(i + s * o for i, s, o in zip(inner.begins, inner.strides, outer.begins, strict=True))
    steps = tuple(s * d for s, d in zip(inner.strides, outer.dilations, strict=True))
    dilations, kernel = [], []
    for near, far, taps, outer_taps in zip(inner.dilations, steps, inner_kernel, outer_kernel, strict=True):
        dilation = math.gcd(*([near] if taps > 1 else []), *([far] if outer_taps > 1 else [])) or 1
        dilations.append(dilation)
        kernel.append((near * (taps - 1) + far * (outer_taps - 1)) // dilation + 1)
    shape = (outputs, per_group * inner.groups // groups, *kernel)

    # 3. The weights: each tap of the outer kernel adds the whole inner kernel, moved.
    def make_weights() -> Array:
        outers, inners = (W.reshape(groups, -1, *W.shape[1:]) for W in (_widened(f, groups) for f in (outer, inner)))
        W = np.zeros((groups, outputs // groups, *shape[1:]))
        for tap in np.ndindex(*outer_kernel):
            positions = [
                at * far // dilation + np.arange(taps) * near // dilation
                for at, far, near, taps, dilation in zip(
                    tap, steps, inner.dilations, inner_kernel, dilations, strict=True
                )
            ]
            here: Any = (slice(None), slice(None), slice(None), *np.ix_(*positions))
            W[here] += np.einsum("gom,gmi...->goi...", outers[(..., *tap)], inners)
        return W.reshape(shape)

    # 4. The bias: that of the outer one, and the inner one's through the outer weights.
    b = outer.b
    if inner.b.any():
        summed = (
            outer.make_weights()
            .sum(axis=tuple(range(2, len(outer.shape))))
            .reshape(outer.groups, outputs // outer.groups, -1)
        )
        b = b + np.einsum("gom,gm->go", summed, inner.b.reshape(outer.groups, -1)).reshape(-1)
    return Branches(
        inner.base,
        shape,
        make_weights,
        b,
        groups,
        tuple(i * o for i, o in zip(inner.strides, outer.strides, strict=True)),
        tuple(dilations),
        begins,
        tuple(i + s * o for i, s, o in zip(inner.slack, inner.strides, outer.slack, strict=True)),
        outer.nodes | inner.nodes,
        inner.count,
        outer.work + inner.work * math.prod(outer.strides),
        outer.name or inner.name,
    )


def _widened(f: Branches, groups: int) -> Array:
    """The weights of `f` in fewer groups."""
    outputs, per_group = f.shape[:2]
    output = np.arange(outputs)
    inputs = per_group * f.groups
    read = (output // (outputs // f.groups) * per_group)[:, None] + np.arange(per_group)  # input channel of each weight
    local = read - (output // (outputs // groups) * (inputs // groups))[:, None]
    wide = np.zeros((outputs, inputs // groups, *f.shape[2:]))
    wide[output[:, None], local] = f.W
    return wide


def _aligned(f: Branches, into: Branches) -> Array:
    """The weights of `f` in the groups and on the grid of taps, larger and finer, of another."""
    aligned = np.zeros(into.shape)
    taps = [
        (old - new) // finer + np.arange(size) * dilation // finer
        for old, new, finer, dilation, size in zip(
            f.begins, into.begins, into.dilations, f.dilations, f.shape[2:], strict=True
        )
    ]
    everything: Any = (slice(None), slice(None), *np.ix_(*taps))
    aligned[everything] = _widened(f, into.groups)
    return aligned
