"""Checks of a graph from a file that are made before anything else reads it: names, order, functions, texts."""

import re
from collections import Counter
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter

import onnx
import onnx_ir as ir

from fold.errors import BnfoldError, short
from fold.graph.reading import constant, display_name, inner_nodes, integer, is_standard
from fold.graph.spellings import graphs_in, nodes_in
from fold.limits import limit

LONGEST_NAME = 4096
"""Characters of a name. Names of deeply nested modules have some hundreds."""
NODES_SETTING = "BNFOLD_MAX_NODES"
"""Environment variable with the most nodes that a graph may have after its functions are inlined."""
MOST_NODES = 100_000
"""Without the setting. The largest networks have some ten thousand; functions that call functions have any number."""


def check_places(proto: onnx.ModelProto) -> None:
    """Raise `BnfoldError` for a tensor whose place in another file is no place: onnx_ir's errors do not say it."""
    tensors = [tensor for graph in graphs_in(proto.graph) for tensor in graph.initializer]
    attributes = [attribute for node in nodes_in(proto) for attribute in node.attribute]
    tensors += [tensor for attribute in attributes for tensor in (attribute.t, *attribute.tensors)]
    for tensor in tensors:
        for entry in tensor.external_data:
            if entry.key in ("offset", "length") and not re.fullmatch(r"[0-9]{1,18}", entry.value):
                raise BnfoldError(
                    f"the data of tensor {short(tensor.name)!r} cannot be read: its {entry.key} is "
                    f"{short(entry.value)!r}, expected a number of bytes in {short(_location(tensor))!r}"
                )


def _location(tensor: onnx.TensorProto) -> str:
    return next((entry.value for entry in tensor.external_data if entry.key == "location"), "")


def check_model(model: ir.Model) -> None:
    """Sort the nodes so that each comes after those whose outputs it reads.

    Raises `BnfoldError` for a graph with a cycle, for functions that inline to more nodes than the limit or call
    themselves, for tensors that nothing gives, for names of any length or of two inputs, for types that ONNX has not,
    for a bias of another shape than its convolution wants, and for strings that are not UTF-8.
    """
    _check_size(model)
    for function in model.functions.values():
        _check_nodes(function)
    for graph in model.graphs():
        _check_names(graph)
        _check_nodes(graph)
        for value in graph.initializers.values():
            _check_tensor(value.const_value)
    if any(not _ordered(graph) for graph in model.graphs()):
        try:
            model.graph.sort()
        except ValueError as error:
            raise BnfoldError("its graph has a cycle; expected nodes that read only what comes before them") from error


def _check_size(model: ir.Model) -> None:
    functions = model.functions
    calls = {
        name: {node.op_identifier() for node in function.all_nodes()} & functions.keys()
        for name, function in functions.items()
    }
    sizes: dict[ir.OperatorIdentifier, int] = {}

    def inlined(nodes: Iterator[ir.Node]) -> int:
        return sum(sizes.get(node.op_identifier(), 1) for node in nodes)

    try:
        for name in TopologicalSorter(calls).static_order():
            sizes[name] = inlined(functions[name].all_nodes())
    except CycleError as error:
        raise BnfoldError(f"its function {short(error.args[1][0][1])!r} calls itself") from error
    count, most = inlined(model.graph.all_nodes()), limit(NODES_SETTING, MOST_NODES, "nodes")
    if count > most:
        raise BnfoldError(
            f"has {count:,} nodes after its functions are inlined, more than the limit of {most:,}; "
            f"to read it, set {NODES_SETTING}={count}"
        )


def _check_names(graph: ir.Graph) -> None:
    for value in (*graph.inputs, *graph.outputs, *graph.initializers.values()):
        _check_name(value.name)
    for value in graph.outputs:
        _check_given(value)
    if any(not value.name for value in (*graph.inputs, *graph.outputs)):
        raise BnfoldError("an input or output of its graph has no name; export it with names")
    names = Counter(value.name for value in graph.inputs)
    if any(count > 1 for count in names.values()):
        raise BnfoldError(f"two inputs of its graph have the name {short(names.most_common(1)[0][0] or '')!r}")


def _check_nodes(body: ir.Graph | ir.Function) -> None:
    for node in body:
        for name in (node.name, node.op_type, *(value.name for value in node.outputs)):
            _check_name(name)
        for value in node.inputs:
            _check_given(value)
        if node.op_type in ("Conv", "ConvTranspose") and is_standard(node):
            _check_bias(node)
        attribute = node.attributes.get("value")
        if attribute is not None and attribute.type == ir.AttributeType.TENSOR:
            _check_tensor(attribute.as_tensor())


def _check_bias(node: ir.Node) -> None:
    """ONNX Runtime takes the first numbers of a bias of any other shape."""
    weights, bias = (constant(value) for value in (*node.inputs, None, None)[1:3])
    if weights is None or bias is None or len(weights.shape) < 2:
        return
    shape = weights.shape.numpy()
    channels = shape[0] if node.op_type == "Conv" else shape[1] * integer(node, "group", 1)
    if tuple(bias.shape) != (channels,):
        raise BnfoldError(
            f"{short(display_name(node))} has a bias of shape {list(bias.shape)}, expected [{channels}], one number "
            "for each output channel; export the model again"
        )


def _check_given(value: ir.Value | None) -> None:
    if value is not None and value.producer() is None and not value.is_graph_input() and not value.is_initializer():
        raise BnfoldError(f"nothing in its graph gives the tensor {short(value.name or '')!r}, which is read")


def _check_name(name: str | None) -> None:
    if name and len(name) > LONGEST_NAME:
        raise BnfoldError(f"has the name {short(name)!r}; expected at most {LONGEST_NAME:,} characters")


def _check_tensor(tensor: ir.TensorProtocol | None) -> None:
    if tensor is None:
        return
    try:
        dtype = tensor.dtype
    except ValueError as error:
        raise BnfoldError(f"the tensor {short(tensor.name or '')!r} has a type that ONNX has not: {error}") from error
    if dtype == ir.DataType.UNDEFINED:
        raise BnfoldError(f"the tensor {short(tensor.name or '')!r} has no type")
    if dtype != ir.DataType.STRING:
        return
    try:
        texts = tensor.numpy().reshape(-1)
    except (ValueError, TypeError, OSError) as error:
        raise BnfoldError(f"the strings of tensor {tensor.name!r} do not fit its shape") from error
    for text in texts:
        try:
            bytes(text).decode()
        except UnicodeDecodeError as error:
            raise BnfoldError(
                f"the tensor {tensor.name!r} holds strings that are not UTF-8 ({error.reason}), as ONNX wants"
            ) from error


def _ordered(graph: ir.Graph) -> bool:
    """Whether each node comes after those of its graph whose outputs it reads, itself or in its subgraphs."""
    seen = set[ir.Node]()
    for node in graph:
        for inner in (node, *inner_nodes(node)):
            for value in inner.inputs:
                producer = None if value is None else value.producer()
                if producer is not None and producer.graph is graph and producer not in seen:
                    return False
        seen.add(node)
    return True
