"""Computes new weights from the gauges, stores them, and removes BatchNorms. No other file of the engine changes a
graph.

A folded node always gets its own initializers, so a shared weight is never overwritten; initializers without a reader
are removed. Names, types and shapes of the graph's inputs and outputs do not change.
"""

from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from fold.engine.affine import Array
from fold.engine.gauge import BEHIND, IN_FRONT, Absorber, Candidate
from fold.engine.kernels import Branches
from fold.engine.padding import Padding
from fold.engine.solver import Solution
from fold.graph import FLOATS, constant, first_input, integer, integers, is_standard, parameter

SLOW_SUBNORMALS = frozenset({ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.BFLOAT16})
"""Types whose subnormal numbers are set to zero: they slow a CPU down and are too small to matter. float16 keeps
them."""


HOLDS = frozenset(
    {
        *((kind, ir.DataType.FLOAT) for kind in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)),
        *((kind, ir.DataType.DOUBLE) for kind in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.FLOAT)),
    }
)
"""Pairs of float types of which the second holds every number of the first."""


class Constant(NamedTuple):
    """A new constant, and the type that stores it: the tensor's own type, unless the tensor is kept exact."""

    tensor: ir.TensorProtocol
    dtype: ir.DataType


@dataclass(frozen=True)
class Change:
    """The change of one absorber: new parameters, or steps that replace it. Constants are rounded once, to the type
    that stores them."""

    absorber: Absorber
    constants: dict[tuple[ir.Node, int], Constant] = field(default_factory=dict)
    steps: list[tuple[str, Constant]] | None = None
    flushed: int = 0
    overflows: bool = False


def express(absorber: Absorber, solution: Solution, *, exact: bool = False) -> Change | None:
    """The change of a node under the solution's gauges; None if it stays as it is. With `exact` constants stay in
    float64, and the effects of rounding are only counted."""
    read, write = solution.gauge(absorber.read), solution.gauge(absorber.write)
    if read.trivial and write.trivial and not absorber.always:
        return None
    parameters = absorber.parameters(read, write)
    if parameters is None:
        return None
    rounded = _Rounded(keep=exact)
    if isinstance(parameters, list):
        steps = [(operator, rounded.constant(array, absorber.result)) for operator, array in parameters]
        return Change(absorber, {}, steps, rounded.flushed, rounded.overflows)
    constants = {}
    for (node, index), array in parameters.items():
        existing = node.inputs[index] if 0 <= index < len(node.inputs) else None
        if existing is None and not array.any():
            continue  # there is no bias, and none is needed
        weights = (value for value in absorber.node.inputs if value is not None and constant(value) is not None)
        constants[node, index] = rounded.constant(array, existing or next(weights, absorber.result))
    return Change(absorber, constants, None, rounded.flushed, rounded.overflows)


def merge(graph: ir.Graph, root: ir.Node, branches: Branches) -> tuple[str, str]:
    """Replace parallel branches by one convolution; returns the names of its weights and bias.

    Both stay in float64 until `round_weights`, so that a BatchNorm that folds into them later does not round twice.
    """
    y = root.outputs[0]
    kernel = branches.W.shape[2:]
    dtype = y.dtype
    assert dtype is not None
    conv = ir.node(
        "Conv",
        [branches.base],
        {
            "group": branches.groups,
            "kernel_shape": list(kernel),
            "strides": list(branches.strides),
            "dilations": list(branches.dilations),
            "pads": branches.pads,
        },
        name=f"{root.name}_merged",
        metadata_props=dict(root.metadata_props),
    )
    result = conv.outputs[0]
    result.shape, result.type = y.shape, y.type
    graph.insert_after(root, conv)
    last = conv
    for operator, value in branches.rest:
        result = _step(graph, last, operator, result, value)
        last = result.producer() or last
    _replace_readers(graph, y, result)
    read = [value for node in branches.nodes for value in node.inputs if value is not None]
    left_over = [value for value in read if constant(value) is not None]
    graph.remove(branches.nodes, safe=True)
    _discard_unused(graph, left_over)
    wanted = branches.name or f"{conv.name}.weight"
    W, b = (Constant(ir.tensor(array), dtype) for array in (branches.W, branches.b))
    weights = _initializer(graph, _free_name(graph, wanted), W)
    bias = _initializer(graph, _free_name(graph, _bias_name(weights.name, conv)), b)
    conv.resize_inputs(3)
    conv.replace_input_with(1, weights)
    conv.replace_input_with(2, bias)
    return weights.name or "", bias.name or ""


def merge_padding(graph: ir.Graph, padding: Padding) -> None:
    """Let the convolution pad, and remove the Pad."""
    conv, pad = padding.conv, padding.pad
    conv.attributes.pop("auto_pad", None)
    conv.attributes["pads"] = ir.AttrInt64s("pads", padding.pads)
    x = pad.inputs[0]
    assert x is not None
    _replace_readers(graph, pad.outputs[0], x)
    for node in padding.between:
        moved = first_input(node).shape
        assert moved is not None
        if node.op_type == "Transpose":
            order = integers(node, "perm") or list(range(len(moved)))[::-1]
            node.outputs[0].shape = ir.Shape([moved[axis] for axis in order])
        else:  # an Unsqueeze: the axes that it adds keep their size, 1
            rank, kept = len(node.outputs[0].shape or ()), iter(moved)
            axes = parameter(node, 1, "axes")
            new = set() if axes is None else {int(axis) % rank for axis in axes.ravel()}
            node.outputs[0].shape = ir.Shape([1 if axis in new else next(kept) for axis in range(rank)])
    read = [value for value in pad.inputs[1:] if value is not None]
    graph.remove(pad, safe=True)
    _discard_unused(graph, read)


def can_store(branches: Branches, value: ir.Value) -> bool:
    """Whether the merged weights are finite in the type that stores them."""
    rounded = _Rounded()
    for array in (branches.W, branches.b):
        rounded.constant(array, value)
    return not rounded.overflows and bool(np.isfinite(branches.W).all() and np.isfinite(branches.b).all())


def round_weights(graph: ir.Graph, *, exact: bool = False) -> int:
    """Round weights that are still more exact than their declared type; returns how many numbers were set to zero. With
    `exact` they are only counted."""
    rounded = _Rounded(keep=exact)
    for value in graph.initializers.values():
        tensor = value.const_value
        if tensor is not None and value.dtype is not None and tensor.dtype != value.dtype:
            value.const_value = rounded.constant(tensor.numpy(), value).tensor
    return rounded.flushed


def rounded_when_read(model: ir.Model) -> ir.Model:
    """A copy of an exact model with rounded weights. Each is rounded whenever it is read, so memory holds no second
    copy."""
    model = model.clone()
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is not None and value.dtype is not None and tensor.dtype != value.dtype:
            value.const_value = ir.LazyTensor(
                partial(_rounded, tensor, value), value.dtype, ir.Shape(tensor.shape.numpy()), cache=False
            )
    return model


def _rounded(exact: ir.TensorProtocol, stored_as: ir.Value) -> ir.TensorProtocol:
    return _Rounded().constant(exact.numpy(), stored_as).tensor


def apply(graph: ir.Graph, changes: list[Change], removed: list[Candidate]) -> dict[ir.Node, tuple[str, ...]]:
    """Store the changed parameters and remove BatchNorms; returns the new initializers of each changed absorber."""
    names: dict[ir.Node, tuple[str, ...]] = {}
    left_over: list[ir.Value] = []
    for change in changes:
        if change.steps is not None:
            names[change.absorber.node] = _write_steps(graph, change.absorber, change.steps, left_over)
            continue
        new = []
        for (node, index), stored in change.constants.items():
            value = _store(graph, node, index, stored, left_over)
            new.append(value.name or "")
        for name, number in change.absorber.attributes.items():
            change.absorber.node.attributes[name] = ir.AttrFloat32(name, number)
        names[change.absorber.node] = tuple(new)
    read = [candidate.absorber.source for candidate in removed]
    for candidate in removed:
        _bypass(graph, candidate.absorber, left_over)
    for value in read:
        _drop_casts(graph, value)
    _discard_unused(graph, left_over)
    return names


def nearest(exact: np.ndarray, dtype: ir.DataType) -> np.ndarray:
    """Round to the nearest number of a type, ties to even; numbers that are too large become infinite."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        if dtype == ir.DataType.BFLOAT16 and exact.dtype == np.float64:  # the conversion goes through float32
            single = exact.astype(np.float32)
            inexact = np.isfinite(exact) & (single != exact)
            bits = single.view(np.uint32) - (inexact & (np.abs(single.astype(np.float64)) > np.abs(exact)))
            # round to odd: towards zero, with the last bit set where bits were lost, so that no false tie arises
            exact = (bits | inexact).astype(np.uint32).view(np.float32)
        return np.asarray(exact.astype(dtype.numpy()))


class _Rounded:
    """Rounds each exact number once, and counts numbers that become zero or infinite."""

    def __init__(self, *, keep: bool = False) -> None:
        self.flushed = 0
        self.overflows = False
        self._keep = keep

    def constant(self, exact: Array, stored_as: ir.Value) -> Constant:
        """Round to the nearest number of the value's type; subnormals become zero where they are slow."""
        dtype = stored_as.dtype
        assert dtype is not None
        array = nearest(exact, dtype)
        self.overflows |= bool((np.isfinite(exact) & ~np.isfinite(array.astype(np.float64))).any())
        if dtype in SLOW_SUBNORMALS:
            smallest = {ir.DataType.DOUBLE: np.finfo(np.float64).tiny}.get(dtype, np.finfo(np.float32).tiny)
            small = (np.abs(exact) < smallest) & (exact != 0)
            self.flushed += int(small.sum())
            array = np.where(small, np.zeros((), array.dtype), array) if small.any() else array
        # not ascontiguousarray, which makes a number an array of one axis
        if self._keep and dtype in FLOATS:
            return Constant(ir.tensor(np.asarray(exact, order="C")), dtype)
        return Constant(ir.tensor(np.asarray(array, order="C"), dtype=dtype), dtype)


def _store(graph: ir.Graph, node: ir.Node, index: int, stored: Constant, left_over: list[ir.Value]) -> ir.Value:
    """Give a node its own initializer for one of its inputs. A MatMul gets its bias by an Add behind it."""
    old = node.inputs[index] if 0 <= index < len(node.inputs) else None
    if old is not None and old.is_initializer() and len(old.uses()) == 1 and not old.is_graph_output():
        name = old.name or "folded"
        graph.initializers.pop(name, None)
        old.const_value, old.name = None, None  # renaming a value renames its tensor, which the source model shares
    else:
        name = _free_name(graph, _name_for(node, index, old))
    value = _initializer(graph, name, stored)
    if index == BEHIND:
        _add_behind(graph, node, value)
        return value
    if index == IN_FRONT:
        _append_in_front(graph, node, value)
        return value
    if index >= len(node.inputs):
        node.resize_inputs(index + 1)
    node.replace_input_with(index, value)
    if old is not None:
        left_over.append(old)
    return value


def _name_for(node: ir.Node, index: int, old: ir.Value | None) -> str:
    """`layer.bias` beside `layer.weight`; the name of a shared initializer with a suffix."""
    if old is not None:
        return f"{old.name}_folded"
    if index == IN_FRONT:
        return f"{node.name or node.op_type}_ones"
    return _bias_name(node.inputs[1].name if node.inputs[1] is not None else None, node)


def _bias_name(weight: str | None, node: ir.Node) -> str:
    if weight is not None and weight.endswith(".weight"):
        return weight.removesuffix("weight") + "bias"
    return f"{weight or node.name or node.op_type}_bias"


def _free_name(graph: ir.Graph, wanted: str) -> str:
    name, number = wanted, 1
    while name in graph.initializers or any(value.name == name for value in graph.inputs):
        name, number = f"{wanted}_{number}", number + 1
    return name


def _add_behind(graph: ir.Graph, node: ir.Node, bias: ir.Value) -> None:
    product = node.outputs[0]
    total = _step(graph, node, "Add", product, bias)
    _replace_readers(graph, product, total, keep=total.producer())


def _append_in_front(graph: ir.Graph, node: ir.Node, value: ir.Value) -> None:
    """Append one more input channel, with one value at all positions, to what a node reads."""
    x = node.inputs[0]
    assert x is not None
    assert x.shape is not None
    name = f"{node.name or node.op_type}_channel"
    amounts = np.zeros((2, len(x.shape)), np.int64)
    amounts[1, 1] = 1
    stored = Constant(ir.tensor(amounts.reshape(-1)), ir.DataType.INT64)
    pads = _initializer(graph, _free_name(graph, f"{name}_pads"), stored)
    pad = ir.node("Pad", [x, pads, value], name=name, metadata_props=dict(node.metadata_props))
    channels = x.shape[1]
    grown = channels + 1 if isinstance(channels, int) else None
    pad.outputs[0].shape, pad.outputs[0].type = ir.Shape([x.shape[0], grown, *x.shape[2:]]), x.type
    graph.insert_before(node, pad)
    node.replace_input_with(0, pad.outputs[0])


def _step(graph: ir.Graph, after: ir.Node, operator: str, x: ir.Value, constant: ir.Value) -> ir.Value:
    """Insert an element-wise node with a constant behind another node; returns its output."""
    name = f"{after.name}_{operator.lower()}"
    node = ir.node(operator, [x, constant], name=name, metadata_props=dict(after.metadata_props))
    node.outputs[0].shape, node.outputs[0].type = x.shape, x.type
    graph.insert_after(after, node)
    return node.outputs[0]


def _write_steps(
    graph: ir.Graph, absorber: Absorber, steps: list[tuple[str, Constant]], left_over: list[ir.Value]
) -> tuple[str, ...]:
    """Replace an absorber by element-wise nodes; returns the names of their constants."""
    nodes = absorber.nodes or (absorber.node,)
    value, names, last = absorber.source, [], nodes[-1]
    for operator, stored in steps:
        wanted = f"{last.name or last.op_type}_{operator.lower()}"
        bound = _initializer(graph, _free_name(graph, wanted), stored)
        value = _step(graph, last, operator, value, bound)
        last = value.producer() or last
        names.append(bound.name or "")
    _bypass(graph, absorber, left_over, value)
    return tuple(names)


def _initializer(graph: ir.Graph, name: str, stored: Constant) -> ir.Value:
    shape, type_ = ir.Shape(stored.tensor.shape.numpy()), ir.TensorType(stored.dtype)
    value = ir.Value(name=name, shape=shape, type=type_, const_value=stored.tensor)
    graph.register_initializer(value)
    return value


def _replace_readers(graph: ir.Graph, old: ir.Value, new: ir.Value, keep: ir.Node | None = None) -> None:
    """Make every reader of `old` read `new`, but for `keep`. `new` gets the name of `old` where that is a graph output,
    or where `keep` still reads `old`."""
    for consumer, index in list(old.uses()):
        if consumer is not keep:
            consumer.replace_input_with(index, new)
    if keep is None and not old.is_graph_output():
        return
    for position, output in enumerate(list(graph.outputs)):
        if output is old:
            graph.outputs[position] = new
    name = old.name
    old.name = None if keep is None else f"{name}_unshifted"
    new.name = name
    new.shape, new.type = old.shape, old.type


def _bypass(graph: ir.Graph, absorber: Absorber, left_over: list[ir.Value], instead: ir.Value | None = None) -> None:
    """Remove a chain of nodes. Its readers read its input, or the value `instead`."""
    u, v = instead or absorber.source, absorber.result
    nodes = absorber.nodes or (absorber.node,)
    if v.is_graph_output() and (u.is_graph_output() or u.is_graph_input() or u.is_initializer()):
        # The graph output keeps its name, and u has another that cannot change: an Identity copies u.
        copy = ir.node("Identity", [u], name=absorber.node.name)
        graph.insert_before(nodes[-1], copy)
        copy.outputs[0].shape, copy.outputs[0].type = v.shape, v.type
        u = copy.outputs[0]
    _replace_readers(graph, v, u)
    for node in reversed(nodes):
        left_over += [value for value in node.inputs if value is not None and constant(value) is not None]
        graph.remove(node, safe=True)


def _drop_casts(graph: ir.Graph, wide: ir.Value) -> None:
    """Remove Casts to a wider type and straight back, which change no number: only a BatchNorm was between them."""
    up = wide.producer()
    if up is None or up.op_type != "Cast" or not is_standard(up):
        return
    x = first_input(up)
    if (x.dtype, wide.dtype) not in HOLDS:
        return
    for down, _ in list(wide.uses()):
        if down.op_type != "Cast" or not is_standard(down) or integer(down, "to", 0) != x.dtype:
            continue
        if down.outputs[0].is_graph_output() and (x.is_graph_output() or x.is_graph_input() or x.is_initializer()):
            continue
        _replace_readers(graph, down.outputs[0], x)
        graph.remove(down, safe=True)
    _discard_unused(graph, [wide])


def _discard_unused(graph: ir.Graph, values: list[ir.Value]) -> None:
    for value in dict.fromkeys(values):  # two nodes may share one
        if not value.uses() and not value.is_graph_input() and not value.is_graph_output():
            _discard(graph, value)


def _discard(graph: ir.Graph, value: ir.Value) -> None:
    producer = value.producer()
    if producer is not None:  # a Constant node, or one that only cast a constant
        if all(not output.uses() and not output.is_graph_output() for output in producer.outputs):
            graph.remove(producer, safe=True)
    elif value.name is not None:
        graph.initializers.pop(value.name, None)
