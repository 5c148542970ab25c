"""Converts a graph to a reduced precision: changes the types of tensors, and inserts Casts between the types.

No weight is rounded here: a weight keeps its exact numbers, its value gets the type that will store them, and
`fold.engine.round_weights` rounds once. Inputs and outputs of the graph keep their names, types and shapes.
"""

from collections.abc import Set
from typing import TYPE_CHECKING, Any

import onnx
import onnx_ir as ir
from onnx_ir.passes import common

from fold.engine import round_weights
from fold.errors import BnfoldError
from fold.graph import VALUELESS, display_name, infer_shapes
from fold.precision.formats import FORMATS, Format, ReducedPrecision

if TYPE_CHECKING:
    from onnx.defs import OpSchema

FLOAT32 = ir.DataType.FLOAT


def prepare(model: ir.Model, precision: ReducedPrecision) -> ir.Model:
    """A copy that `lower` can convert: without functions and Constant nodes, and with a type for each tensor.

    Raises `BnfoldError` for a graph with subgraphs.
    """
    model = model.clone()
    common.InlinePass()(model)
    for node in model.graph:
        if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values()):
            raise BnfoldError(
                f"precision {precision}: {display_name(node)} ({node.op_type}) has a subgraph, which is not converted; "
                "fold without --precision"
            )
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    exact = {name: value.const_value for name, value in model.graph.initializers.items()}
    round_weights(model.graph)  # shape inference refuses weights in float64 where the value declares float32
    infer_shapes(model)
    for name, tensor in exact.items():
        model.graph.initializers[name].const_value = tensor
    return model


def lower(model: ir.Model, precision: ReducedPrecision, kept: Set[str]) -> ir.Model:
    """Convert a graph that `prepare` made, in place, but for the nodes that write the tensors in `kept`.

    Weights keep their numbers; their values get the type that will store them.
    """
    _Lowering(model, FORMATS[precision], kept).apply()
    return model


def first_output(node: ir.Node) -> str:
    """The name of the first tensor that a node writes, by which the manifest knows the node."""
    return next(output.name for output in node.outputs if output.name)


def is_float32(value: ir.Value | None) -> bool:
    return value is not None and isinstance(value.type, ir.TensorType) and value.dtype == FLOAT32


def float32_tensors(node: ir.Node) -> list[ir.Value]:
    """The float32 tensors whose numbers a node reads or writes."""
    if node.op_type in VALUELESS:
        return []
    return [value for value in (*node.inputs, *node.outputs) if value is not None and is_float32(value)]


def schema_of(node: ir.Node, model: ir.Model) -> "OpSchema":
    return onnx.defs.get_schema(node.op_type, model.opset_imports.get("", 1), "")


def allows(schema: "OpSchema", formal: Any, index: int, chosen: Format) -> bool:
    """Whether ONNX allows the type for the input or output at `index`; the last one of `formal` may be variadic."""
    allowed = {c.type_param_str: c.allowed_type_strs for c in schema.type_constraints}
    type_ = formal[min(index, len(formal) - 1)].type_str
    return f"tensor({chosen.name})" in allowed.get(type_, [type_])


def copied(tensor: ir.TensorProtocol | None) -> ir.TensorProtocol | None:
    """A new tensor with the same numbers, so that it can have another name."""
    return None if tensor is None else ir.tensor(tensor.numpy(), dtype=tensor.dtype)


def wanted_types(node: ir.Node, chosen: Format, model: ir.Model) -> list[ir.DataType | None]:
    """The type in which a converted node reads each of its inputs; None for an input that is not float32 now."""
    if not any(map(is_float32, node.inputs)):
        return [None] * len(node.inputs)
    schema = schema_of(node, model)
    return [
        None if not is_float32(value) else chosen.dtype if allows(schema, schema.inputs, index, chosen) else FLOAT32
        for index, value in enumerate(node.inputs)
    ]


def retype(node: ir.Node, dtype: ir.DataType) -> None:
    """Make a Cast to float32 a Cast to `dtype`."""
    if node.op_type == "Cast" and node.attributes["to"].as_int() == FLOAT32:
        node.attributes["to"] = ir.AttrInt64("to", dtype)


class _Lowering:
    """Gives tensors their new types, and inserts a Cast where a node reads another type than was written."""

    def __init__(self, model: ir.Model, chosen: Format, kept: Set[str]) -> None:
        self._graph, self._dtype = model.graph, chosen.dtype
        self._suffix = {FLOAT32: "fp32", ir.DataType.FLOAT16: "fp16", ir.DataType.BFLOAT16: "bf16"}
        self._wanted: dict[ir.Node, list[ir.DataType | None]] = {}
        self._lowered: list[ir.Node] = []
        for node in self._graph:
            if not float32_tensors(node):
                self._wanted[node] = [None] * len(node.inputs)
            elif first_output(node) in kept:
                self._wanted[node] = [FLOAT32 if is_float32(value) else None for value in node.inputs]
            else:
                self._wanted[node] = wanted_types(node, chosen, model)
                self._lowered.append(node)
        values = (*self._graph.inputs, *self._graph.initializers.values(), *(v for n in self._graph for v in n.outputs))
        self._names = {value.name for value in values}

    def apply(self) -> None:
        for value in list(self._graph.initializers.values()):
            if is_float32(value) and not value.is_graph_input():
                self._store(value)
        for node in self._lowered:
            for value in filter(is_float32, node.outputs):
                value.type = ir.TensorType(self._dtype)
            retype(node, self._dtype)
        self._cast_inputs()
        self._cast_outputs()

    def _store(self, value: ir.Value) -> None:
        """Give a weight the type that its readers want; if they want both types, store it twice."""
        uses = [(node, index) for node, index in value.uses() if self._wanted[node][index] == self._dtype]
        if not uses:
            return
        if len(uses) == len(value.uses()) and not value.is_graph_output():
            value.type = ir.TensorType(self._dtype)
            return
        copy = ir.Value(name=self._unused_name(value, self._dtype), shape=value.shape, type=ir.TensorType(self._dtype))
        copy.const_value = copied(value.const_value)
        self._graph.register_initializer(copy)
        for node, index in uses:
            node.replace_input_with(index, copy)

    def _cast_inputs(self) -> None:
        """Insert one Cast for each tensor that is read in the other type, before its first reader."""
        made: dict[ir.Value, ir.Value] = {}
        for node in list(self._graph):
            for index, (value, wanted) in enumerate(zip(node.inputs, self._wanted[node], strict=True)):
                if value is None or wanted is None or value.dtype == wanted:
                    continue
                if value not in made:
                    cast = self._cast(value, wanted, self._unused_name(value, wanted))
                    self._graph.insert_before(node, cast)
                    made[value] = cast.outputs[0]
                node.replace_input_with(index, made[value])

    def _cast_outputs(self) -> None:
        """Insert a Cast to float32 before each output of the graph that is converted; the Cast takes the name."""
        for value in dict.fromkeys(self._graph.outputs):
            if value.dtype != self._dtype or value.producer() not in self._lowered:
                continue
            name, value.name = value.name or "", self._unused_name(value, self._dtype)
            cast = self._cast(value, FLOAT32, name)
            self._graph.append(cast)
            for position, output in enumerate(list(self._graph.outputs)):
                if output is value:
                    self._graph.outputs[position] = cast.outputs[0]

    def _cast(self, value: ir.Value, dtype: ir.DataType, name: str) -> ir.Node:
        cast = ir.node("Cast", [value], {"to": dtype}, name=f"{name}_cast")
        output = cast.outputs[0]
        output.name, output.shape, output.type = name, value.shape, ir.TensorType(dtype)
        return cast

    def _unused_name(self, value: ir.Value, dtype: ir.DataType) -> str:
        name = f"{value.name}_{self._suffix[dtype]}"
        while name in self._names:
            name += "_"
        self._names.add(name)
        return name
