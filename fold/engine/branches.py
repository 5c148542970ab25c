"""Parallel branches: an Add of linear maps of one same tensor is one convolution.

Each branch is a convolution of any kernel, an average pool, several of these in a row, or the tensor itself, each with
the BatchNorms and constants behind it. It is expressed as a convolution in float64; kernels are aligned by the
positions that their taps read, groups are widened to those that the branches have in common, and the weights are added.
This needs no knowledge of the model: RepVGG, MobileOne, FastViT, RepViT and diverse branch blocks get the form in which
they are deployed. This module only plans; `rewrite.merge` changes the graph.
"""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from fold.engine.affine import Array
from fold.engine.kernels import Branches, product, scaled, total
from fold.engine.laws import affine_step, scale_and_shift
from fold.engine.reasons import Reason
from fold.graph import constant, dims, explicit_pads, first_input, float64, integer, integers, is_float, is_standard

LARGEST = 100
"""Nodes that one convolution may replace; its weights are computed through all of them in a row."""


def find_branches(graph: ir.Graph) -> list[tuple[ir.Node, Branches]]:
    """Every node whose output is a sum of two branches or more; the last sum of a chain is taken before those
    inside."""
    maps = _Maps(graph)
    found: list[tuple[ir.Node, Branches]] = []
    taken: set[ir.Node] = set()
    for node in reversed(list(graph)):
        if node in taken or node.op_type not in ("Add", "Sub", "Mul", "Div", "BatchNormalization"):
            continue
        merged = maps.known[node.outputs[0], False] or _partly(node, maps)
        if merged is not None and merged.count > 1 and merged.cheaper:
            found.append((node, merged))
            taken |= merged.nodes
    return found


class _Maps:
    """Each tensor as a convolution of some base tensor, computed once, in graph order, without recursion.

    None where it has several bases, or one whose channels are not known. Convolutions in a row are multiplied out only
    where they are `summed`.
    """

    def __init__(self, graph: ir.Graph) -> None:
        self.known: dict[tuple[ir.Value, bool], Branches | None] = {}
        for node in graph:
            for summed in (False, True) if node.outputs else ():
                self.known[node.outputs[0], summed] = self._of_output(node, summed)

    def of(self, value: ir.Value, summed: bool = True) -> Branches | None:
        """The convolution that a tensor is; where several nodes read the tensor, it is a base of its own."""
        if (value, summed) not in self.known or not _private(value):
            return _identity(value)
        known = self.known[value, summed]
        return _identity(value) if known is not None and len(known.nodes) > LARGEST else known

    def _of_output(self, node: ir.Node, summed: bool) -> Branches | None:
        value = node.outputs[0]
        if not is_standard(node):
            return _identity(value)
        if node.op_type in ("Add", "Sub") and all(constant(v) is None for v in node.inputs):
            a, b = (v for v in node.inputs if v is not None)
            left, right = self.of(a), self.of(b)
            if left is None or right is None or not (left.slack == right.slack or _same_shape(a, b)):
                return None
            merged = total(left, right, -1.0 if node.op_type == "Sub" else 1.0)
            return None if merged is None else merged.through(node)
        if node.op_type in ("Conv", "AveragePool"):
            outer = _convolution(node) if node.op_type == "Conv" else _average(node)
            if outer is None:
                return _identity(value)
            inner = self.of(outer.base) if summed else None
            return outer if inner is None or not inner.nodes else product(outer, inner) or outer
        by_channel = _by_channel(node)
        if by_channel is None:
            return _identity(value)
        x, s, t = by_channel
        inner = self.of(x, summed)
        return None if inner is None else scaled(inner, s, t).through(node)


def _partly(root: ir.Node, maps: _Maps) -> Branches | None:
    """A sum of convolutions of several bases: those of the most frequent base merged, and the `rest`. None where no two
    have the same base."""
    if not _adds(root) or (_private(root.outputs[0]) and any(_adds(node) for node, _ in root.outputs[0].uses())):
        return None  # only the last Add of a sum is considered
    sums, terms, waiting = list[ir.Node](), list[tuple[ir.Value, float]](), [(root, 1.0)]
    while waiting:
        node, sign = waiting.pop()
        sums.append(node)
        for value, own in zip(node.inputs, (sign, -sign if node.op_type == "Sub" else sign), strict=True):
            assert value is not None
            inner = value.producer()
            if inner is not None and _private(value) and _adds(inner) and maps.of(value) is None:
                waiting.append((inner, own))
            else:
                terms.append((value, own))
    mapped = [(value, sign, maps.of(value)) for value, sign in terms]
    alike = Counter((f.base, f.strides) for _, _, f in mapped if f is not None)
    chosen, number = alike.most_common(1)[0] if alike else (None, 0)
    if number < 2:
        return None
    merged, rest = None, list[tuple[str, ir.Value]]()
    for value, sign, f in mapped:
        if f is None or (f.base, f.strides) != chosen:
            rest.append(("Add" if sign > 0 else "Sub", value))
        elif merged is None:
            merged = scaled(f, np.full(f.shape[0], sign), np.zeros(()))
        elif (merged := total(merged, f, sign)) is None:
            return None
    if merged is None or len(merged.nodes) > LARGEST:
        return None
    for node in sums[len(rest) :]:  # the others go on adding
        merged = merged.through(node)
    return replace(merged, nodes=merged.nodes.union(sums), rest=tuple(rest))


def _adds(node: ir.Node) -> bool:
    """Whether it is a sum or difference of two tensors of one known shape."""
    tensors = [v for v in node.inputs if v is not None and constant(v) is None]
    return is_standard(node) and node.op_type in ("Add", "Sub") and len(tensors) == 2 and _same_shape(*tensors)


def _identity(value: ir.Value) -> Branches | None:
    shape = dims(value)
    if shape is None or len(shape) < 3 or not isinstance(shape[1], int) or not is_float(value):
        return None
    C, one, zero = shape[1], (1,) * (len(shape) - 2), (0,) * (len(shape) - 2)
    return Branches(value, (C, 1, *one), lambda: np.ones((C, 1, *one)), np.zeros(C), C, one, one, zero, zero)


def _convolution(node: ir.Node) -> Branches | None:
    weights = constant(node.inputs[1])
    bias_value = node.inputs[2] if len(node.inputs) > 2 else None
    bias = constant(bias_value)
    if weights is None or (bias is None and bias_value is not None):
        return None
    shape = tuple(int(size) for size in weights.shape.numpy())
    b = np.zeros(shape[0]) if bias is None else float64(bias)
    return _of_windows(node, shape, lambda: float64(weights), b, integer(node, "group", 1))


def _average(node: ir.Node) -> Branches | None:
    """An average pool whose windows count the padding is a convolution by a constant kernel."""
    known, kernel = dims(first_input(node)), integers(node, "kernel_shape")
    if known is None or not isinstance(C := known[1], int) or integer(node, "ceil_mode", 0):
        return None
    shape = (C, 1, *kernel)
    mean = _of_windows(node, shape, lambda: np.full(shape, 1 / math.prod(kernel)), np.zeros(C), C)
    counted = mean is None or not any(mean.pads) or integer(node, "count_include_pad", 0)
    return mean if counted else None


def _of_windows(
    node: ir.Node, shape: tuple[int, ...], make_weights: Callable[[], Array], b: Array, groups: int
) -> Branches | None:
    """A convolution or pool by the positions of its windows; None if these depend on sizes that are not known."""
    base, kernel = first_input(node), shape[2:]
    pads = explicit_pads(node, kernel)
    if pads is None:
        return None
    strides, dilations = (tuple(integers(node, name, [1] * len(kernel))) for name in ("strides", "dilations"))
    begins = tuple(-pad for pad in pads[: len(kernel)])
    name = node.inputs[1].name if node.op_type == "Conv" and node.inputs[1] is not None else None
    convolution = Branches(base, shape, make_weights, b, groups, strides, dilations, begins, begins, name=name)
    slack = tuple(pad - last for pad, last in zip(pads[len(kernel) :], convolution.lasts, strict=True))
    return replace(convolution, slack=slack, work=math.prod(shape)).through(node)


def _by_channel(node: ir.Node) -> tuple[ir.Value, Array, Array] | None:
    """The input, scale [C] and shift [C] of a BatchNorm, or of a product or sum with a constant for each channel."""
    if node.op_type == "BatchNormalization":
        found = scale_and_shift(node)
        return None if isinstance(found, Reason) else (first_input(node), *found)
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


def _private(value: ir.Value) -> bool:
    return len(value.uses()) == 1 and not value.is_graph_output()


def _same_shape(a: ir.Value, b: ir.Value) -> bool:
    left, right = dims(a), dims(b)
    return left is not None and left == right and None not in left
