"""Reads ONNX files and onnx_ir graphs: constants, attributes, shapes, names; upgrades old opsets."""

from fold.graph.file import GraphFile, read_graph, save_graph
from fold.graph.lifting import CONSTANT_IR, Lifted, close_initializers, lift, needs_lifting
from fold.graph.parameters import refuse_not_finite
from fold.graph.reading import (
    FLOATS,
    SCALE,
    SHIFT,
    VALUELESS,
    computed,
    constant,
    dims,
    display_name,
    first_input,
    float64,
    integer,
    integers,
    is_batchnorm,
    is_float,
    is_standard,
    padded,
    parameter,
    real,
    text,
)
from fold.graph.reshapes import matching_blocks
from fold.graph.shapes import BATCHNORM, correct_shapes, infer_all_shapes, infer_shapes
from fold.graph.windows import conv_taps, conv_transpose_taps, explicit_pads, spatial_sizes

__all__ = [
    "BATCHNORM",
    "CONSTANT_IR",
    "FLOATS",
    "SCALE",
    "SHIFT",
    "VALUELESS",
    "GraphFile",
    "Lifted",
    "close_initializers",
    "computed",
    "constant",
    "conv_taps",
    "conv_transpose_taps",
    "correct_shapes",
    "dims",
    "display_name",
    "explicit_pads",
    "first_input",
    "float64",
    "infer_all_shapes",
    "infer_shapes",
    "integer",
    "integers",
    "is_batchnorm",
    "is_float",
    "is_standard",
    "lift",
    "matching_blocks",
    "needs_lifting",
    "padded",
    "parameter",
    "read_graph",
    "real",
    "refuse_not_finite",
    "save_graph",
    "spatial_sizes",
    "text",
]
