"""Shape inference for a graph in memory."""

import onnx_ir as ir
from onnx_ir.passes import common

from fold.graph.reading import dims, is_float, is_standard

BATCHNORM = "BatchNormalization"


def infer_shapes(model: ir.Model) -> None:
    """Add missing types and shapes, in place."""
    outputs = [value for node in model.graph for value in node.outputs]
    if any(value.dtype is None or (is_float(value) and value.shape is None) for value in outputs):
        infer_all_shapes(model)


def infer_all_shapes(model: ir.Model, *, strict: bool = True) -> None:
    """Infer all types and shapes, in place, also where some are stored.

    Without `strict`, a node whose inference fails is left as it is; with it, the whole graph is.
    """
    common.ShapeInferencePass(strict_mode=strict)(model)
    for graph in reversed(list(model.graphs())):  # branches before their node
        for node in graph:
            _restore_sequences(node)


SEQUENCES = frozenset(
    {"SequenceConstruct", "SequenceEmpty", "SequenceErase", "SequenceInsert", "SequenceMap", "SplitToSequence"}
)
"""Operators that write sequences."""


def _restore_sequences(node: ir.Node) -> None:
    """Declare sequences and optionals as such: onnx_ir's inference declares what holds tensors as a tensor."""
    if not is_standard(node):
        return
    for place, value in enumerate(node.outputs):
        kind: ir.TypeProtocol | None = None
        if isinstance(value.type, ir.TensorType) and node.op_type in SEQUENCES:
            kind = ir.SequenceType(value.type)
        elif isinstance(value.type, ir.TensorType) and node.op_type == "Optional":
            kind = ir.OptionalType(value.type)
        elif node.op_type == "Identity" and node.inputs[0] is not None:
            kind = node.inputs[0].type
        elif node.op_type == "If":
            kind = node.attributes["then_branch"].as_graph().outputs[place].type
        if isinstance(kind, ir.SequenceType | ir.OptionalType):
            value.type, value.shape = kind, None


def correct_shapes(model: ir.Model) -> ir.Model:
    """`model`, or if a stored shape contradicts the inferred one, a copy with inferred shapes only.

    Runtimes ignore stored shapes of intermediate tensors, so wrong ones (NHWC sizes of an NCHW tensor) go unnoticed,
    but the laws of the fold read them. If one is wrong, none is trusted.
    """
    inferred = model.clone()
    for value in _written(inferred):
        value.shape = None
    infer_all_shapes(inferred, strict=False)
    wrong = any(_contradicts(old, new) for old, new in zip(_written(model), _written(inferred), strict=True))
    return inferred if wrong else model


def _written(model: ir.Model) -> list[ir.Value]:
    return [value for graph in model.graphs() for node in graph for value in node.outputs]


def _contradicts(stored: ir.Value, inferred: ir.Value) -> bool:
    old, new = dims(stored), dims(inferred)
    if old is None or new is None:
        return False
    sizes = zip(old, new, strict=False)
    return len(old) != len(new) or any(isinstance(a, int) and isinstance(b, int) and a != b for a, b in sizes)
