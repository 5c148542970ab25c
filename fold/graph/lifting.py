"""Lifts graphs of old opsets to a recent one, so that folding and evaluation handle one form of each operator.

onnx's version converter does the work. It gets the graph without the weights, because it serialises its input, and a
protobuf holds at most 2 GB. The proof of the fold also checks that the lifted graph still computes what the file says
(`fold.proof.reference.GraphReference`).
"""

import contextlib
import re
from dataclasses import dataclass

import onnx
import onnx_ir as ir
from onnx import version_converter
from onnx_ir.passes import common

from fold.errors import BnfoldError, first_line
from fold.graph.file import SMALL

OLDEST_OPSET = 15
"""Graphs of older opsets are lifted: onnx's reference implementation computes older BatchNormalization and Softmax
wrongly (seen in onnx 1.23), and operators had attributes that are inputs now."""
LIFTED_OPSET = 18
LIFTED_IR = 8
"""The IR version that came with opset 18."""
RUNTIME_OPSET = 7
"""The oldest opset that ONNX Runtime runs."""
CONSTANT_IR = 4
"""Before this IR version all initializers had to be graph inputs; since then such an input may be overridden."""
ASYMMETRIC_RESIZE = 11
"""Before this opset Resize used asymmetric coordinates; the converter does not set the attribute that says so."""


@dataclass(frozen=True)
class Lifted:
    """A lifted graph. `model` is the argument itself if nothing had to change; `constants` counts
    initializers that were listed as inputs and no longer are."""

    model: ir.Model
    opset: int
    constants: int

    @property
    def notes(self) -> list[str]:
        """One line for each kind of change."""
        notes = []
        if self.constants:
            notes.append(f"IR version {CONSTANT_IR - 1} or older: {self.constants} inputs with values are constants")
        if self.opset < OLDEST_OPSET:
            notes.append(f"lifted opset {self.opset} to {LIFTED_OPSET}")
        return notes


def needs_lifting(model: ir.Model) -> bool:
    """Whether `lift` changes this graph."""
    return model.opset_imports.get("", 1) < OLDEST_OPSET or model.ir_version < CONSTANT_IR


def lift(model: ir.Model) -> Lifted:
    """`model` with constant initializers and an opset that the laws support; the argument is not modified.

    Raises `BnfoldError` that names the operator which cannot be lifted.
    """
    opset = model.opset_imports.get("", 1)  # the first files have no opset
    if not needs_lifting(model):
        return Lifted(model, opset, 0)
    model = model.clone()
    constants = close_initializers(model) if model.ir_version < CONSTANT_IR else 0
    if opset < OLDEST_OPSET:
        model = _convert(model, opset)
    model.ir_version = max(model.ir_version, LIFTED_IR)
    return Lifted(model, opset, constants)


def close_initializers(model: ir.Model) -> int:
    """Remove the initializers from the inputs of a graph, in place, so that they are constants; how many they were."""
    inputs = model.graph.inputs
    listed = [value for value in inputs if value.is_initializer()]
    for value in listed:
        inputs.remove(value)
    return len(listed)


def _convert(model: ir.Model, opset: int) -> ir.Model:
    if model.functions:
        common.InlinePass()(model)  # the converter knows no functions
    model.opset_imports[""] = opset
    model.ir_version = max(model.ir_version, LIFTED_IR)
    inputs = {value.name for value in model.graph.inputs}
    weights = _take_weights(model)
    proto = ir.to_proto(model)
    try:
        lifted = ir.from_proto(version_converter.convert_version(proto, LIFTED_OPSET))
    except Exception as error:  # the converter raises RuntimeError for most, the checker its own
        raise BnfoldError(
            f"{_culprit(proto)} cannot be lifted from opset {opset} to {LIFTED_OPSET} ({_reason(error)}); "
            "export the model again with a recent opset, or without this operator"
        ) from error
    for value in list(lifted.graph.inputs):
        if value.name in weights:
            value.const_value = weights[value.name]
            lifted.graph.register_initializer(value)
            if value.name not in inputs:
                lifted.graph.inputs.remove(value)
    if opset < ASYMMETRIC_RESIZE:
        for node in ir.traversal.RecursiveGraphIterator(lifted.graph):
            if node.op_type == "Resize" and node.domain == "":
                node.attributes["coordinate_transformation_mode"] = ir.AttrString(
                    "coordinate_transformation_mode", "asymmetric"
                )
                node.attributes["nearest_mode"] = ir.AttrString("nearest_mode", "floor")
    return lifted


def _take_weights(model: ir.Model) -> dict[str | None, ir.TensorProtocol]:
    """Turn large initializers into inputs; their values by name. Small ones stay, because the converter reads some."""
    graph = model.graph
    weights: dict[str | None, ir.TensorProtocol] = {}
    for name, value in list(graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or tensor.nbytes <= SMALL:
            continue
        weights[name] = tensor
        del graph.initializers[name]
        value.const_value, value.shape, value.dtype = None, ir.Shape(tensor.shape.numpy()), tensor.dtype
        if not value.is_graph_input():
            graph.inputs.append(value)
    return weights


def _culprit(proto: onnx.ModelProto) -> str:
    """The first node that cannot be lifted by itself."""
    with contextlib.suppress(onnx.shape_inference.InferenceError):  # without shapes a node may still be found
        proto = onnx.shape_inference.infer_shapes(proto)
    graph = proto.graph
    known = {value.name: value for value in (*graph.input, *graph.value_info, *graph.output)}
    held = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        alone = onnx.helper.make_graph(
            [node],
            "alone",
            [known[name] for name in node.input if name in known and name not in held],
            [known[name] for name in node.output if name in known],
            [held[name] for name in node.input if name in held],
        )
        single = onnx.helper.make_model(alone, opset_imports=proto.opset_import, ir_version=proto.ir_version)
        try:
            version_converter.convert_version(single, LIFTED_OPSET)
        except Exception:  # of any type: this node raises it
            return f"node {node.name or next(iter(node.output), '')!r} ({node.op_type})"
    return "the graph"


def _reason(error: Exception) -> str:
    """The converter's message without its source position and unfilled placeholders."""
    said = re.sub(r"^.*?failed: ", "", first_line(error)).split(";")[0]
    return re.sub(r"'%s' |\$(?=\d)", "", said).rstrip(". ") or "the converter does not know it"
