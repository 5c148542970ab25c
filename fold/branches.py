"""Parallel branches: an Add of linear maps of one same tensor is one convolution.

Each branch (a convolution of any kernel, an average pool, the tensor itself; each with the BatchNorms and constants
behind it) is written as a convolution in float64: kernels are laid over each other by where their taps fall, groups
widened to what the branches have in common, and added. Found in the graph, with no knowledge of the model: RepVGG,
MobileOne, FastViT and RepViT come out in the form in which they are deployed. This module plans and changes nothing.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from fold.affine import Array
from fold.graph import constant, dims, first_input, float64, integer, integers, is_float, is_standard, text
from fold.laws.normalisation import affine_step, scale_and_shift

PASS = 32
"""Multiplications for each output number that one element-wise pass over a tensor is worth, at the least."""


@dataclass(frozen=True)
class Branches:
    """What a tensor is of `base`: a convolution `W`, [O, I/groups, *k], and a bias `b`, [O], in float64.

    Along each axis tap i reads at `stride*position + begin + i*dilation`, and zeros outside of the tensor; `slack` is
    how far beyond the last tap the padding reaches. `nodes` are those that it stands for, `count` the branches among
    them, and `work` their multiplications for each output position. `name` is a weight to take the name from.
    """

    base: ir.Value
    W: Array
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

    @property
    def pads(self) -> list[int]:
        """As ONNX has them: before each axis, then behind each."""
        kernel = self.W.shape[2:]
        last = [begin + (k - 1) * d for begin, k, d in zip(self.begins, kernel, self.dilations, strict=True)]
        return [*(-begin for begin in self.begins), *(at + s for at, s in zip(last, self.slack, strict=True))]

    @property
    def pays(self) -> bool:
        """Whether one convolution costs no more than the branches and the passes over them."""
        return self.W.size <= self.work + PASS * len(self.W) * (len(self.nodes) - 1)


def find_branches(graph: ir.Graph) -> list[tuple[ir.Node, Branches]]:
    """Every node whose output is a sum of two branches or more, the largest sums first taken."""
    found: list[tuple[ir.Node, Branches]] = []
    taken: set[ir.Node] = set()
    for node in reversed(list(graph)):
        if node in taken or node.op_type not in ("Add", "Sub", "Mul", "Div", "BatchNormalization"):
            continue
        merged = _linear(node.outputs[0], root=True)
        if merged is not None and merged.count > 1 and merged.pays:
            found.append((node, merged))
            taken |= merged.nodes
    return found


def _linear(value: ir.Value, *, root: bool = False) -> Branches | None:
    """What `value` is of some base; of itself where it is read elsewhere or made otherwise. None if it is of several,
    or of one whose channels are not known."""
    node = value.producer()
    if node is None or not is_standard(node) or not (root or _private(value)):
        return _identity(value)
    if node.op_type in ("Add", "Sub") and all(constant(v) is None for v in node.inputs):
        a, b = (v for v in node.inputs if v is not None)
        if _same_shape(a, b) and (left := _linear(a)) is not None and (right := _linear(b)) is not None:
            return _with(node, _sum(left, right, -1.0 if node.op_type == "Sub" else 1.0))
        return None
    if node.op_type == "Conv":
        return _convolution(node) or _identity(value)
    if node.op_type == "AveragePool":
        return _average(node) or _identity(value)
    scaled = _by_channel(node)
    if scaled is None:
        return _identity(value)
    x, s, t = scaled
    inner = _linear(x)
    if inner is None:
        return None
    spread = s.reshape(-1, *(1,) * (inner.W.ndim - 1))
    return _with(node, replace(inner, W=inner.W * spread, b=s * inner.b + t))


def _identity(value: ir.Value) -> Branches | None:
    shape = dims(value)
    if shape is None or len(shape) < 3 or not isinstance(shape[1], int) or not is_float(value):
        return None
    C, one, zero = shape[1], (1,) * (len(shape) - 2), (0,) * (len(shape) - 2)
    return Branches(value, np.ones((C, 1, *one)), np.zeros(C), C, one, one, zero, zero)


def _convolution(node: ir.Node) -> Branches | None:
    weights = constant(node.inputs[1])
    bias_value = node.inputs[2] if len(node.inputs) > 2 else None
    bias = constant(bias_value)
    if weights is None or (bias is None and bias_value is not None):
        return None
    W = float64(weights)
    b = np.zeros(len(W)) if bias is None else float64(bias)
    return _placed(node, W, b, integer(node, "group", 1))


def _average(node: ir.Node) -> Branches | None:
    """A mean over windows that count what they pad with is a convolution by a constant kernel."""
    shape, kernel = dims(first_input(node)), integers(node, "kernel_shape")
    uncounted = any(integers(node, "pads")) and not integer(node, "count_include_pad", 0)
    if shape is None or not isinstance(shape[1], int) or uncounted or integer(node, "ceil_mode", 0):
        return None
    return _placed(node, np.full((shape[1], 1, *kernel), 1 / math.prod(kernel)), np.zeros(shape[1]), shape[1])


def _placed(node: ir.Node, W: Array, b: Array, groups: int) -> Branches | None:
    if text(node, "auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return None
    rank = W.ndim - 2
    strides, dilations = (tuple(integers(node, name, [1] * rank)) for name in ("strides", "dilations"))
    pads = integers(node, "pads", [0] * 2 * rank)
    begins = tuple(-pad for pad in pads[:rank])
    lasts = [begin + (k - 1) * d for begin, k, d in zip(begins, W.shape[2:], dilations, strict=True)]
    slack = tuple(pad - last for pad, last in zip(pads[rank:], lasts, strict=True))
    weights = node.inputs[1].name if node.op_type == "Conv" and node.inputs[1] is not None else None
    base = first_input(node)
    return Branches(base, W, b, groups, strides, dilations, begins, slack, frozenset([node]), work=W.size, name=weights)


def _by_channel(node: ir.Node) -> tuple[ir.Value, Array, Array] | None:
    """What a BatchNorm, or a product or sum with a constant for each channel, reads, and its scale and shift, [C]."""
    if node.op_type == "BatchNormalization":
        found = scale_and_shift(node)
        return None if isinstance(found, str) else (first_input(node), *found)
    step = affine_step(node)
    if step is None:
        return None
    x, s, t = step
    shape = dims(x) or []
    rank, C = len(shape), shape[1] if len(shape) > 1 else None
    if not isinstance(C, int):
        return None
    s, t = (array.reshape((1,) * (rank - array.ndim) + array.shape) for array in (s, t))
    if any(array.size not in (1, array.shape[1]) for array in (s, t)):
        return None
    s, t = (np.broadcast_to(array.reshape(-1), (C,)) for array in (s, t))
    return (x, s, t) if np.isfinite(s).all() and np.isfinite(t).all() else None


def _sum(a: Branches, b: Branches, sign: float) -> Branches | None:
    """Two convolutions of one tensor as one, if they move over it alike."""
    if a.base is not b.base or a.strides != b.strides or a.slack != b.slack or len(a.W) != len(b.W):
        return None
    groups = math.gcd(a.groups, b.groups)
    dilations, begins, kernel = [], [], []
    for axis in range(len(a.strides)):
        steps = [f.dilations[axis] for f in (a, b) if f.W.shape[2 + axis] > 1]
        dilation = math.gcd(*steps, a.begins[axis] - b.begins[axis]) or 1
        begin = min(a.begins[axis], b.begins[axis])
        end = max(f.begins[axis] + (f.W.shape[2 + axis] - 1) * f.dilations[axis] for f in (a, b))
        dilations.append(dilation)
        begins.append(begin)
        kernel.append((end - begin) // dilation + 1)
    W = sum(
        factor * _laid(f, groups, tuple(dilations), tuple(begins), tuple(kernel)) for factor, f in ((1.0, a), (sign, b))
    )
    larger = max(a, b, key=lambda f: (f.name is not None, f.W.size))
    return replace(
        a,
        W=np.asarray(W),
        b=a.b + sign * b.b,
        groups=groups,
        dilations=tuple(dilations),
        begins=tuple(begins),
        nodes=a.nodes | b.nodes,
        count=a.count + b.count,
        work=a.work + b.work,
        name=larger.name,
    )


def _laid(
    f: Branches, groups: int, dilations: tuple[int, ...], begins: tuple[int, ...], kernel: tuple[int, ...]
) -> Array:
    """The weights of `f` in fewer groups and on a larger, finer grid of taps."""
    outputs, per_group = f.W.shape[:2]
    output = np.arange(outputs)
    inputs = per_group * f.groups
    read = (output // (outputs // f.groups) * per_group)[:, None] + np.arange(per_group)  # input channel of each weight
    local = read - (output // (outputs // groups) * (inputs // groups))[:, None]
    wide = np.zeros((outputs, inputs // groups, *f.W.shape[2:]))
    wide[output[:, None], local] = f.W
    laid = np.zeros((outputs, inputs // groups, *kernel))
    taps = [
        (old - new) // step + np.arange(size) * own // step
        for old, new, step, own, size in zip(f.begins, begins, dilations, f.dilations, f.W.shape[2:], strict=True)
    ]
    everything: Any = (slice(None), slice(None), *np.ix_(*taps))
    laid[everything] = wide
    return laid


def _with(node: ir.Node, f: Branches | None) -> Branches | None:
    return None if f is None else replace(f, nodes=f.nodes | {node})


def _private(value: ir.Value) -> bool:
    return len(value.uses()) == 1 and not value.is_graph_output()


def _same_shape(a: ir.Value, b: ir.Value) -> bool:
    left, right = dims(a), dims(b)
    return left is not None and left == right and None not in left
