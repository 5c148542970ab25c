"""Re-expresses weights under the gauges and drops the BatchNorms that vanish: the only file that changes a graph.

A folded node always gets initializers of its own, so a weight that others share is never overwritten; what nothing
uses any more is removed. Names, types and shapes of the graph's inputs and outputs stay as they are.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from fold.affine import Array
from fold.gauge import Absorber, Candidate
from fold.solver import Solution

SLOW_SUBNORMALS = frozenset({ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.BFLOAT16})
"""Types whose numbers below the smallest normal one are worth nothing and cost a CPU time; float16 needs its own."""


@dataclass(frozen=True)
class Change:
    """New parameters of one absorber, rounded once to the type in which they are stored."""

    absorber: Absorber
    tensors: dict[tuple[ir.Node, int], ir.TensorProtocol]
    flushed: int
    overflows: bool


def express(absorber: Absorber, solution: Solution) -> Change | None:
    """The parameters of a node under the solution's gauges; None if it stays as it is."""
    read, write = solution.gauge(absorber.read), solution.gauge(absorber.write)
    if read.trivial and write.trivial:
        return None
    tensors, flushed, overflows = {}, 0, False
    for (node, index), exact in absorber.parameters(read, write).items():
        existing = node.inputs[index] if index < len(node.inputs) else None
        stored_as = existing if existing is not None else absorber.node.inputs[1]
        assert stored_as is not None
        assert stored_as.dtype is not None
        if existing is None and not exact.any():
            continue  # a bias that is not there and is not needed
        array, small = _round(exact, stored_as.dtype)
        flushed += small
        overflows |= not np.isfinite(array.astype(np.float64)).all()
        tensors[node, index] = ir.tensor(np.ascontiguousarray(array), dtype=stored_as.dtype)
    return Change(absorber, tensors, flushed, overflows)


def apply(graph: ir.Graph, changes: list[Change], vanished: list[Candidate]) -> dict[ir.Node, tuple[str, ...]]:
    """Store the changed parameters and remove the BatchNorms; returns the new initializers of each changed absorber."""
    names: dict[ir.Node, tuple[str, ...]] = {}
    left_over: list[ir.Value] = []
    for change in changes:
        new = []
        for (node, index), tensor in change.tensors.items():
            value = _store(graph, node, index, tensor, left_over)
            new.append(value.name or "")
        for name, number in change.absorber.attributes.items():
            change.absorber.node.attributes[name] = ir.AttrFloat32(name, number)
        names[change.absorber.node] = tuple(new)
    for candidate in vanished:
        left_over += [value for value in candidate.node.inputs[1:] if value is not None]
        _bypass(graph, candidate.node)
    for value in left_over:
        if not value.uses() and not value.is_graph_input() and not value.is_graph_output():
            _discard(graph, value)
    return names


def _round(exact: Array, dtype: ir.DataType) -> tuple[np.ndarray, int]:
    """Round to the nearest number of `dtype`; where subnormals are slow, set them to zero and count them."""
    with np.errstate(over="ignore", under="ignore"):
        array = exact.astype(dtype.numpy())
    if dtype not in SLOW_SUBNORMALS or not array.size:
        return array, 0
    smallest = {ir.DataType.DOUBLE: np.finfo(np.float64).tiny}.get(dtype, np.finfo(np.float32).tiny)
    small = (np.abs(exact) < smallest) & (exact != 0)
    if small.any():
        array = np.where(small, np.zeros((), array.dtype), array)
    return array, int(small.sum())


def _store(
    graph: ir.Graph, node: ir.Node, index: int, tensor: ir.TensorProtocol, left_over: list[ir.Value]
) -> ir.Value:
    """Give a node an initializer of its own for one of its inputs. A MatMul takes a bias through an Add behind it."""
    old = node.inputs[index] if index < len(node.inputs) else None
    if old is not None and old.is_initializer() and len(old.uses()) == 1 and not old.is_graph_output():
        name = old.name or "folded"
        graph.initializers.pop(name, None)
        old.name = None
    else:
        name = _free_name(graph, _name_for(node, index, old))
    value = ir.Value(
        name=name, shape=ir.Shape(tensor.shape.numpy()), type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    graph.register_initializer(value)
    if old is None and node.op_type == "MatMul":
        _add_behind(graph, node, value)
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
    weight = node.inputs[1].name if node.inputs[1] is not None else None
    if weight is not None and weight.endswith(".weight"):
        return weight.removesuffix("weight") + "bias"
    return f"{weight or node.name or node.op_type}_bias"


def _free_name(graph: ir.Graph, wanted: str) -> str:
    taken = set(graph.initializers) | {value.name for value in graph.inputs}
    name, number = wanted, 1
    while name in taken:
        name, number = f"{wanted}_{number}", number + 1
    return name


def _add_behind(graph: ir.Graph, node: ir.Node, bias: ir.Value) -> None:
    product = node.outputs[0]
    added = ir.node("Add", [product, bias], name=f"{node.name}_bias", metadata_props=dict(node.metadata_props))
    total = added.outputs[0]
    total.shape, total.type = product.shape, product.type
    graph.insert_after(node, added)
    _take_over(graph, product, total, keep=added)


def _take_over(graph: ir.Graph, old: ir.Value, new: ir.Value, keep: ir.Node | None = None) -> None:
    """Let `new` stand wherever `old` stood, under its name if that is a graph output; `keep` goes on reading `old`."""
    for consumer, index in list(old.uses()):
        if consumer is not keep:
            consumer.replace_input_with(index, new)
    for position, output in enumerate(list(graph.outputs)):
        if output is old:
            graph.outputs[position] = new
            name = old.name
            old.name = None
            new.name = name
            new.shape, new.type = old.shape, old.type


def _bypass(graph: ir.Graph, node: ir.Node) -> None:
    """Remove a BatchNorm whose input is carried as its output."""
    u, v = node.inputs[0], node.outputs[0]
    assert u is not None
    if v.is_graph_output() and (u.is_graph_output() or u.is_graph_input() or u.is_initializer()):
        # The name of v must be delivered, and u cannot take it: an Identity hands it over.
        handing = ir.node("Identity", [u], name=node.name)
        graph.insert_before(node, handing)
        handing.outputs[0].shape, handing.outputs[0].type = v.shape, v.type
        _take_over(graph, v, handing.outputs[0])
    else:
        _take_over(graph, v, u)
    graph.remove(node, safe=True)


def _discard(graph: ir.Graph, value: ir.Value) -> None:
    producer = value.producer()
    if producer is not None:  # a Constant node, or one that only cast a constant
        if all(not output.uses() and not output.is_graph_output() for output in producer.outputs):
            graph.remove(producer, safe=True)
    elif value.name is not None:
        graph.initializers.pop(value.name, None)
