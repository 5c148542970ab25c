"""Input standardisation put into an ONNX graph, in front of everything that reads the input."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from fold.errors import BnfoldError
from fold.graph import CONSTANT_IR, SCALE, SHIFT, dims, integers, is_float, is_standard
from fold.inputs import ALREADY, TO_NCHW, InputScaling, Layout, ResolvedScaling

OLDEST_OPSET = 7
"""Since which a product spreads its constant over a tensor by numpy's rules."""


def normalise_graph(model: ir.Model, wanted: InputScaling) -> tuple[ir.Model, ResolvedScaling]:
    """A copy that takes bytes under the input's name: Transpose, Cast, Mul, Add stand in front of what read it.

    Raises `BnfoldError` if there is no such input, if its axes are not known, and for a graph too old for it.
    """
    model = model.clone()
    floats = [value for value in model.graph.inputs if is_float(value) and not value.is_initializer()]
    settled = wanted.settle({}, [value.name or "" for value in floats])
    graph = model.graph
    if SCALE in graph.initializers:
        raise BnfoldError(ALREADY)
    x = next(value for value in graph.inputs if value.name == settled.input)
    sizes = dims(x)
    opset = model.opset_imports.get("", 1)
    if sizes is None:
        raise BnfoldError(f"--normalize: the shape of input {x.name!r} is not known; export the model with it")
    if opset < OLDEST_OPSET:
        raise BnfoldError(
            f"--normalize: opset {opset} is too old to be added to, expected {OLDEST_OPSET} or newer; export the model "
            "again"
        )
    native: Layout = "nhwc" if _takes_channels_last(x) else "nchw"
    constants = settled.constants([size if isinstance(size, int) else None for size in sizes], native)
    _normalise(model, x, constants, settled.permutation(native))
    x.shape = ir.Shape(settled.as_sent(sizes, native))
    return model, settled if len(sizes) != 4 else replace(settled, layout=settled.layout or native)


def _normalise(
    model: ir.Model, x: ir.Value, constants: tuple[np.ndarray, np.ndarray], permutation: tuple[int, ...] | None
) -> None:
    """Make of a float input one of bytes, and let what read it read `x*s + t`."""
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
    normalised = step("Add", step("Mul", floats, s), t)
    x.type = ir.TensorType(ir.DataType.UINT8)
    for node, index in uses:
        node.replace_input_with(index, normalised)
    if uses:
        model.graph.insert_before(model.graph[0], nodes)


def _takes_channels_last(x: ir.Value) -> bool:
    """Whether all that is done with a tensor is to put its channels, which are last, behind the batch."""
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
