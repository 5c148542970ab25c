"""Rewrites forms of a file that onnx_ir or ONNX Runtime do not support: sparse constants, `ai.onnx` as a domain, and
empty names of trailing outputs."""

import math
from collections.abc import Iterator

import numpy as np
import onnx
from onnx import numpy_helper

from fold.errors import BnfoldError, first_line

VARIADIC = frozenset({"If", "Loop", "Scan", "Split"})
"""Operators whose number of outputs has a meaning: an empty name counts."""
LARGEST = 1 << 31
"""Bytes of a sparse constant as a dense one: more than a protobuf holds."""


def respell(proto: onnx.ModelProto, folder: str) -> tuple[str, ...]:
    """Rewrite such forms in place; return a line for each kind that there was. Sparse data may be in a file of
    `folder`.

    Raises `BnfoldError` for a sparse constant that cannot be read.
    """
    domains = sparse = names = 0
    for imports in (proto.opset_import, *(function.opset_import for function in proto.functions)):
        domains += _respell_domain(imports)
    for graph in graphs_in(proto.graph):
        for tensor in graph.sparse_initializer:
            graph.initializer.append(_dense(tensor, tensor.values.name, folder))
        sparse += len(graph.sparse_initializer)
        graph.ClearField("sparse_initializer")
    for node in nodes_in(proto):
        if node.domain == "ai.onnx":
            node.domain, domains = "", domains + 1
        names += _drop_empty_outputs(node)
        sparse += _respell_constant(node, folder)
    notes = {
        "the domain ai.onnx is written as the default domain": domains,
        f"sparse tensors are dense: {sparse}": sparse,
        f"empty names of trailing outputs are left out: {names}": names,
    }
    return tuple(note for note, count in notes.items() if count)


def _respell_domain(imports: "onnx.OperatorSetIdProto") -> int:  # a list of them
    spelled = [one for one in imports if one.domain == "ai.onnx"]
    for one in spelled:
        if any(other.domain == "" for other in imports):
            imports.remove(one)
        else:
            one.domain = ""
    return len(spelled)


def _drop_empty_outputs(node: onnx.NodeProto) -> int:
    count = 0
    # ONNX Runtime ends in a segmentation fault where a BatchNormalization has empty outputs.
    while node.op_type not in VARIADIC and len(node.output) > 1 and not node.output[-1]:
        del node.output[-1]
        count += 1
    return count


def _respell_constant(node: onnx.NodeProto, folder: str) -> int:
    for attribute in node.attribute:
        if node.op_type == "Constant" and attribute.name == "sparse_value":
            dense = _dense(attribute.sparse_tensor, node.output[0], folder)
            attribute.CopyFrom(onnx.helper.make_attribute("value", dense))
            return 1
    return 0


def graphs_in(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph, and those within its nodes."""
    yield graph
    for node in graph.node:
        for inner in _within(node):
            yield from graphs_in(inner)


def nodes_in(proto: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """All nodes: of the graph, of its functions, and of the graphs within nodes."""
    for graph in graphs_in(proto.graph):
        yield from graph.node
    for function in proto.functions:
        for node in function.node:
            yield node
            for inner in _within(node):
                for graph in graphs_in(inner):
                    yield from graph.node


def _within(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        elif attribute.type == onnx.AttributeProto.GRAPHS:
            yield from attribute.graphs


def _dense(sparse: onnx.SparseTensorProto, name: str, folder: str) -> onnx.TensorProto:
    """A sparse tensor as a dense one; its indices are of the flat tensor, or one for each axis."""
    try:
        dims = list(sparse.dims)
        values = numpy_helper.to_array(sparse.values, folder)
        indices = numpy_helper.to_array(sparse.indices, folder)
        if min(dims, default=1) < 0 or math.prod(dims) * values.itemsize > LARGEST:
            raise ValueError(f"its shape {dims} is too large")
        dense = np.zeros(dims, values.dtype)
        if indices.ndim == 1:
            dense.reshape(-1)[indices] = values
        else:
            dense[tuple(indices.T)] = values
    except (OSError, ValueError, IndexError, TypeError) as error:
        raise BnfoldError(f"sparse tensor {name!r} cannot be read: {first_line(error)}; write it densely") from error
    return numpy_helper.from_array(dense, name)
