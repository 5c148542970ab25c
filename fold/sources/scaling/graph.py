"""Input scaling inserted into an ONNX graph, between an input and all its consumers."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from fold.errors import BnfoldError
from fold.graph import CONSTANT_IR, SCALE, SHIFT, dims, integers, is_float, is_standard
from fold.inputs import ALREADY, TO_NCHW, AxisOrder, InputScaling, ResolvedScaling

OLDEST_OPSET = 7
"""Since this opset Mul and Add broadcast by numpy's rules."""


def scale_graph(model: ir.Model, wanted: InputScaling) -> tuple[ir.Model, ResolvedScaling]:
    """A copy that takes bytes: Transpose (where the layouts differ), Cast, Mul and Add are inserted behind the input.

    Raises `BnfoldError` if there is no such input, if its axes are not known, and for a graph too old for it.
    """
    model = model.clone()
    floats = [value for value in model.graph.inputs if is_float(value) and not value.is_initializer()]
    resolved = wanted.resolve({}, [value.name or "" for value in floats])
    graph = model.graph
    if SCALE in graph.initializers:
        raise BnfoldError(ALREADY)
    x = next(value for value in graph.inputs if value.name == resolved.input)
    sizes = dims(x)
    opset = model.opset_imports.get("", 1)
    if sizes is None:
        raise BnfoldError(f"--normalize: the shape of input {x.name!r} is not known; export the model with it")
    if opset < OLDEST_OPSET:
        raise BnfoldError(
            f"--normalize: opset {opset} is too old, expected {OLDEST_OPSET} or newer; export the model again"
        )
    native: AxisOrder = "nhwc" if _takes_channels_last(x) else "nchw"
    constants = resolved.constants([size if isinstance(size, int) else None for size in sizes], native)
    _insert(model, x, constants, resolved.permutation(native))
    x.shape = ir.Shape(resolved.as_sent(sizes, native))
    return model, resolved if len(sizes) != 4 else replace(resolved, layout=resolved.layout or native)


def _insert(
    model: ir.Model, x: ir.Value, constants: tuple[np.ndarray, np.ndarray], permutation: tuple[int, ...] | None
) -> None:
    """Change a float input to bytes, and let its consumers read `x*s + t`."""
    uses, dtype, shape = list(x.uses()), x.dtype, x.shape
    assert dtype is not None
    nodes: list[ir.Node] = []

    def step(operator: str, *inputs: ir.Value, **attributes: int | tuple[int, ...]) -> ir.Value:
        node = ir.node(operator, inputs, dict(attributes), name=f"bnfold_normalize_{operator.lower()}")
        written = node.outputs[0]
        written.name, written.shape = f"{x.name}_{node.name}", shape
        written.type = ir.TensorType(ir.DataType.UINT8 if operator == "Transpose" else dtype)
        nodes.append(node)
        return written

    pixels = x if permutation is None else step("Transpose", x, perm=permutation)
    floats = step("Cast", pixels, to=dtype)
    s, t = (_initializer(model, name, array, dtype) for name, array in zip((SCALE, SHIFT), constants, strict=True))
    scaled = step("Add", step("Mul", floats, s), t)
    x.type = ir.TensorType(ir.DataType.UINT8)
    for node, index in uses:
        node.replace_input_with(index, scaled)
    if uses:
        model.graph.insert_before(model.graph[0], nodes)


def _takes_channels_last(x: ir.Value) -> bool:
    """Whether all consumers of an input are Transposes from NHWC to NCHW."""
    readers = [node for node, _ in x.uses()]
    return bool(readers) and all(
        node.op_type == "Transpose" and is_standard(node) and tuple(integers(node, "perm")) == TO_NCHW
        for node in readers
    )


def _initializer(model: ir.Model, name: str, array: np.ndarray, dtype: ir.DataType) -> ir.Value:
    shape: Sequence[int] = array.shape
    tensor = ir.tensor(array.astype(dtype.numpy()), name=name)
    value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype), const_value=tensor)
    model.graph.register_initializer(value)
    if model.ir_version < CONSTANT_IR:
        model.graph.inputs.append(value)
    return value
