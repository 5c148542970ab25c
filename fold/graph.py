"""Reading an onnx_ir graph: constants, attributes, shapes and the names that a user knows."""

import ast
from collections.abc import Iterable

import numpy as np
import onnx_ir as ir

from fold.artifact import TensorSpec
from fold.errors import BnfoldError

FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16})
NAME_SCOPES = "pkg.torch.onnx.name_scopes"


def is_float(value: ir.Value | None) -> bool:
    return value is not None and value.dtype in FLOATS


def is_standard(node: ir.Node) -> bool:
    """Whether the operator is ONNX's own and not another domain's of the same name."""
    return node.domain in ("", "ai.onnx")


def constant(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The tensor of a constant; None for what is computed, and for initializers that a caller could override."""
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
    """A float attribute. ONNX stores these in float32, whatever the precision of the number that was set."""
    attribute = node.attributes.get(name)
    return default if attribute is None else float(np.float32(attribute.as_float()))


def text(node: ir.Node, name: str, default: str) -> str:
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_string()


def first_input(node: ir.Node) -> ir.Value:
    """The first input of a node whose operator requires one."""
    value = node.inputs[0]
    assert value is not None
    return value


def padded(node: ir.Node) -> bool:
    """Whether a convolution or pool pads its input."""
    return any(integers(node, "pads")) or text(node, "auto_pad", "NOTSET") in ("SAME_UPPER", "SAME_LOWER")


Dims = list[int | str | None]


def dims(value: ir.Value) -> Dims | None:
    """Dimensions of a tensor: a number, the name of a symbol, or None where nothing is known."""
    if value.shape is None:
        return None
    return [d if isinstance(d, int) else d.value for d in value.shape]


def display_name(node: ir.Node) -> str:
    """The module's name in the checkpoint where the exporter left it, else the node's, else its output's."""
    scopes = node.metadata_props.get(NAME_SCOPES)
    if scopes:
        names = ast.literal_eval(scopes)
        if len(names) > 1 and names[-2]:
            return str(names[-2])
    if node.op_type == "BatchNormalization":
        for value, suffix in zip(node.inputs[1:], (".weight", ".bias", ".running_mean", ".running_var"), strict=False):
            if value is not None and value.name is not None and value.name.endswith(suffix):
                return value.name.removesuffix(suffix)
    return node.name or node.outputs[0].name or node.op_type


def tensor_specs(values: Iterable[ir.Value]) -> tuple[TensorSpec, ...]:
    """Inputs or outputs of a graph as a manifest and the Open Inference Protocol name them; free dimensions are -1."""
    specs = []
    for value in values:
        if value.dtype is None or value.shape is None:
            raise BnfoldError(f"{value.name}: the type or shape of this graph input or output is not known")
        datatype = _OIP_NAMES.get(value.dtype, value.dtype.name)
        shape = tuple(size if isinstance(size, int) else -1 for size in value.shape)
        specs.append(TensorSpec(name=value.name or "", datatype=datatype, shape=shape))
    return tuple(specs)


_OIP_NAMES = {
    ir.DataType.FLOAT: "FP32",
    ir.DataType.DOUBLE: "FP64",
    ir.DataType.FLOAT16: "FP16",
    ir.DataType.BFLOAT16: "BF16",
    ir.DataType.STRING: "BYTES",
}
