"""Reads an onnx_ir graph: constants, attributes, shapes, and the layer names that a user knows."""

import ast
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16})
VALUELESS = frozenset({"Shape", "Size"})
"""Operators that read the dimensions of a tensor, and none of its elements."""
NAME_SCOPES = "pkg.torch.onnx.name_scopes"


def is_float(value: ir.Value | None) -> bool:
    """Whether a value is a tensor of floats, and not a sequence of them."""
    return value is not None and isinstance(value.type, ir.TensorType) and value.dtype in FLOATS


def is_standard(node: ir.Node) -> bool:
    """Whether the operator is of ONNX's default domain."""
    return node.domain in ("", "ai.onnx")


def is_batchnorm(node: ir.Node) -> bool:
    return node.op_type == "BatchNormalization" and is_standard(node)


def inner_nodes(node: ir.Node) -> Iterator[ir.Node]:
    """The nodes of all subgraphs of a node (If, Loop, Scan)."""
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield from attribute.as_graph().all_nodes()
        elif attribute.type == ir.AttributeType.GRAPHS:
            for graph in attribute.as_graphs():
                yield from graph.all_nodes()


def constant(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The tensor of a constant; None for a computed value, and for an initializer that a caller may override."""
    if value is None or value.is_graph_input():
        return None
    return ir.convenience.get_const_tensor(value)


def float64(tensor: ir.TensorProtocol) -> np.ndarray:
    return tensor.numpy().astype(np.float64)


def integers(node: ir.Node, name: str, default: list[int] | None = None) -> list[int]:
    attribute = node.attributes.get(name)
    return (default or []) if attribute is None else [int(i) for i in attribute.as_ints()]


def integer(node: ir.Node, name: str, default: int) -> int:
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_int()


def real(node: ir.Node, name: str, default: float) -> float:
    """A float attribute. ONNX stores it in float32, whatever the precision of the number that was set."""
    attribute = node.attributes.get(name)
    return default if attribute is None else float(np.float32(attribute.as_float()))


def text(node: ir.Node, name: str, default: str) -> str:
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_string()


def parameter(node: ir.Node, index: int, name: str) -> np.ndarray | None:
    """A parameter that is a constant input in newer opsets and an attribute in older ones; None if it is left out.

    None, too, for an input that is not constant: check `computed` first.
    """
    tensor = constant(node.inputs[index]) if index < len(node.inputs) else None
    if tensor is not None:
        return tensor.numpy()
    attribute = node.attributes.get(name)
    return None if attribute is None else np.asarray(attribute.value)


def computed(node: ir.Node, *indices: int) -> bool:
    """Whether one of these inputs is present and not constant."""
    given = [node.inputs[index] for index in indices if index < len(node.inputs)]
    return any(value is not None and constant(value) is None for value in given)


def first_input(node: ir.Node) -> ir.Value:
    """The first input of a node whose operator requires one."""
    value = node.inputs[0]
    assert value is not None
    return value


def padded(node: ir.Node) -> bool:
    """Whether a convolution or pool pads its input, or may pad it at some input size."""
    if any(integers(node, "pads")):
        return True
    if text(node, "auto_pad", "NOTSET") not in ("SAME_UPPER", "SAME_LOWER"):
        return False
    weights = node.inputs[1] if len(node.inputs) > 1 else None
    sizes = (dims(first_input(node)) or [])[2:]
    kernel = integers(node, "kernel_shape") or ((None if weights is None else dims(weights)) or [])[2:]
    strides = integers(node, "strides", [1] * len(sizes))
    if not len(sizes) == len(kernel) == len(strides) > 0 or any(d != 1 for d in integers(node, "dilations")):
        return True  # runtimes differ in what SAME means with dilations
    return not all(_fits(n, k, s) for n, k, s in zip(sizes, kernel, strides, strict=True))


def _fits(size: int | str | None, kernel: int | str | None, stride: int) -> bool:
    """Whether ceil(size / stride) windows fit into the input without padding."""
    if kernel == 1:
        return True
    if not isinstance(size, int) or not isinstance(kernel, int):
        return False
    return (-(-size // stride) - 1) * stride + kernel <= size


Dims = list[int | str | None]


def dims(value: ir.Value) -> Dims | None:
    """Dimensions of a tensor: a number, the name of a symbol, or None if unknown."""
    if value.shape is None:
        return None
    return [d if isinstance(d, int) else d.value for d in value.shape]


def display_name(node: ir.Node) -> str:
    """The module's name in the checkpoint if the exporter recorded it, else the node's name, else its output's."""
    scopes = node.metadata_props.get(NAME_SCOPES)
    if scopes:
        try:
            names = ast.literal_eval(scopes)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):  # another tool's, or no exporter's
            names = None
        if isinstance(names, list | tuple) and len(names) > 1 and names[-2]:
            return str(names[-2])
    if node.op_type == "BatchNormalization":
        for value, suffix in zip(node.inputs[1:], (".weight", ".bias", ".running_mean", ".running_var"), strict=False):
            if value is not None and value.name is not None and value.name.endswith(suffix):
                return value.name.removesuffix(suffix)
    return node.name or node.outputs[0].name or node.op_type


SCALE, SHIFT = "bnfold_normalize_scale", "bnfold_normalize_shift"
"""Names of the constants s and t, in a graph as in a PyTorch program."""


def described(node: ir.Node) -> str:
    """The node's display name and its operator, for messages."""
    name = display_name(node)
    return name if name == node.op_type else f"{name} ({node.op_type})"
