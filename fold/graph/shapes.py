"""Shape inference for a graph in memory."""

import onnx_ir as ir
from onnx_ir.passes import common

from fold.graph.reading import is_float

BATCHNORM = "BatchNormalization"


def infer_shapes(model: ir.Model) -> None:
    """Add missing types and shapes, in place."""
    outputs = [value for node in model.graph for value in node.outputs]
    if any(value.dtype is None or (is_float(value) and value.shape is None) for value in outputs):
        common.ShapeInferencePass()(model)
