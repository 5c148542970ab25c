"""Conv, ConvTranspose, Gemm, MatMul and embeddings: the weights absorb any gauge of the input and of the output."""

import numpy as np
import onnx_ir as ir

from fold.engine import affine
from fold.engine.affine import Gauge, Reading
from fold.engine.gauge import BEHIND, FROM_WEIGHTS, IN_FRONT, Absorber, Gauges, Parameters
from fold.engine.laws.movement import gather
from fold.engine.laws.quantized import Quantized, find_quantized, quantized_weights
from fold.engine.reasons import Code
from fold.graph import (
    constant,
    conv_taps,
    conv_transpose_taps,
    first_input,
    float64,
    integer,
    is_float,
    is_standard,
    padded,
    real,
    spatial_sizes,
)

PADS_AS_INPUT = 11
"""The first opset in which Pad takes its amounts as an input."""


def conv(node: ir.Node, gauges: Gauges) -> None:
    """Zero padding needs `q = 0` on the input, since the padding is not shifted. An opened convolution allows a shift:
    a constant map is added to the output, with the shift times those taps that read the input and not padding. Where
    the sizes are known only at run time, an additional input channel of ones, padded as the others are, adds the
    same."""
    x, weights, bias = _linear_inputs(node)
    if weights is None:
        return quantized_weights(node, gauges)
    groups = integer(node, "group", 1)
    outputs, inputs = weights.shape.numpy()[0], weights.shape.numpy()[1] * groups
    cause = gauges.cause(node, Code.INPUT_CHANNELS)
    read = gauges.along(x, 1, inputs, cause)
    border = padded(node)
    if border and node not in gauges.opened:
        gauges.zero(read.shift, gauges.cause(gauges.pads.get(node, node), Code.ZERO_PADDING))
    write = gauges.fresh_along(node.outputs[0], 1, outputs, FROM_WEIGHTS)

    def parameters(reads: Gauge, writes: Gauge) -> Parameters:
        a, b = reads.reading()
        W = float64(weights)
        if not (border and b.any()):
            W_new, B_new = affine.conv(W, _optional(bias), groups, Reading(a, b), writes)
            return {(node, 1): W_new, (node, 2): B_new}
        W_new, B_new = affine.conv(W, _optional(bias), groups, Reading(a, np.zeros_like(b)), writes)
        shift = affine.shift_per_tap(W, groups, b, writes.p)
        if knows_its_sizes(node):
            added = affine.border_map(shift, conv_taps(node))
            return {(node, 1): W_new, (node, 2): B_new, (node, BEHIND): added}
        W_new = np.concatenate([W_new, shift[:, None]], axis=1)
        return {(node, 1): W_new, (node, 2): B_new, (node, IN_FRONT): np.ones(())}

    return gauges.absorb(Absorber(node, read, write, parameters))


def conv_transpose(node: ir.Node, gauges: Gauges) -> None:
    """Each output position sums other taps of the kernel, so the input may carry no shift. If it is opened, a constant
    map is added to the output, or a channel of ones to the input."""
    x, weights, bias = _linear_inputs(node)
    if weights is None:
        return quantized_weights(node, gauges)
    groups = integer(node, "group", 1)
    inputs, outputs = weights.shape.numpy()[0], weights.shape.numpy()[1] * groups
    cause = gauges.cause(node, Code.TRANSPOSED_KERNEL)
    read = gauges.along(x, 1, inputs, cause)
    if node not in gauges.opened:
        gauges.zero(read.shift, cause)
    write = gauges.fresh_along(node.outputs[0], 1, outputs, FROM_WEIGHTS)

    def parameters(reads: Gauge, writes: Gauge) -> Parameters:
        a, b = reads.reading()
        W = float64(weights)
        W_new, B_new = affine.conv_transpose(W, _optional(bias), groups, Reading(a, np.zeros_like(b)), writes)
        if not b.any():
            return {(node, 1): W_new, (node, 2): B_new}
        shift = affine.shift_per_tap_transposed(W, groups, b, writes.p)
        if knows_its_sizes(node):
            added = affine.border_map(shift, conv_transpose_taps(node))
            return {(node, 1): W_new, (node, 2): B_new, (node, BEHIND): added}
        W_new = np.concatenate([W_new, shift[None]], axis=0)
        return {(node, 1): W_new, (node, 2): B_new, (node, IN_FRONT): np.ones(())}

    return gauges.absorb(Absorber(node, read, write, parameters))


def gemm(node: ir.Node, gauges: Gauges) -> None:
    x, weights, bias = _linear_inputs(node)
    if weights is None:
        return quantized_weights(node, gauges)
    alpha, beta = real(node, "alpha", 1.0), real(node, "beta", 1.0)
    transposed = bool(integer(node, "transB", 0))
    K, N = weights.shape.numpy()[:: -1 if transposed else 1]
    cause = gauges.cause(node, Code.INPUT_FEATURES)
    read = gauges.along(x, 0 if integer(node, "transA", 0) else 1, K, cause)
    write = gauges.fresh_along(node.outputs[0], 1, N, FROM_WEIGHTS)

    def parameters(reads: Gauge, writes: Gauge) -> Parameters:
        W64 = alpha * (float64(weights).T if transposed else float64(weights))
        W_new, B_new = affine.linear(W64, None if bias is None else beta * float64(bias), reads.reading(), writes)
        return {(node, 1): W_new.T if transposed else W_new, (node, 2): B_new}

    return gauges.absorb(Absorber(node, read, write, parameters, {"alpha": 1.0, "beta": 1.0}))


def matmul(node: ir.Node, gauges: Gauges) -> None:
    """A product with one constant, on either side, together with the bias that is added to it."""
    left, right = constant(node.inputs[0]), constant(node.inputs[1])
    if left is None and right is None and (quantized := find_quantized(node)) is not None:
        return _quantized_matmul(node, quantized, gauges)
    weights, position = (right, 1) if right is not None else (left, 0)
    x = node.inputs[1 - position]
    if weights is None or x is None or constant(x) is not None or len(x.shape or ()) < max(2, len(weights.shape)):
        return gauges.boundary(node, Code.TENSOR_PRODUCT)
    if len(weights.shape) < 2:
        return gauges.boundary(node, Code.VECTOR_PRODUCT)
    axis = -1 if position == 1 else -2  # of the features, in the input and in the output
    K, N = weights.shape.numpy()[-2:][:: 1 if position == 1 else -1]
    cause = gauges.cause(node, Code.INPUT_FEATURES)
    read = gauges.along(x, axis, K, cause)
    bias = _bias_after(node, N, axis)
    output = node.outputs[0] if bias is None else bias[0].outputs[0]
    write = gauges.fresh_along(output, axis, N, FROM_WEIGHTS)

    def parameters(reads: Gauge, writes: Gauge) -> Parameters:
        B = None if bias is None else float64(bias[2]).reshape(-1)
        W64 = float64(weights) if position == 1 else np.swapaxes(float64(weights), -1, -2)
        W_new, B_new = affine.linear(W64, B, reads.reading(), writes)
        if position == 0:
            W_new = np.swapaxes(W_new, -1, -2)
        shaped = B_new[..., None] if position == 0 else B_new if B_new.ndim == 1 else B_new[..., None, :]
        return {(node, position): W_new, (node, BEHIND) if bias is None else bias[:2]: shaped}

    return gauges.absorb(Absorber(node, read, write, parameters), output.producer())


def _quantized_matmul(node: ir.Node, found: Quantized, gauges: Gauges) -> None:
    """A product with quantised constants on its right, together with the bias that is added to it."""
    if len(found.stored.shape) != 2 or len(first_input(node).shape or ()) < 2:
        return gauges.boundary(node, Code.TENSOR_PRODUCT)
    bias = _bias_after(node, found.stored.shape.numpy()[1], -1)
    output = node.outputs[0] if bias is None else bias[0].outputs[0]
    write = found.law(node, output, -1, gauges)

    def parameters(_: Gauge, writes: Gauge) -> Parameters:
        B = 0.0 if bias is None else float64(bias[2]).reshape(-1)
        place = (node, BEHIND) if bias is None else bias[:2]
        return {**found.scaled(writes.p), place: writes.p * B + writes.q}

    return gauges.absorb(Absorber(node, gauges.nothing(), write, parameters), output.producer())


def _bias_after(node: ir.Node, features: int, axis: int) -> tuple[ir.Node, int, ir.TensorProtocol] | None:
    """The Add behind a product, the position of its constant, and the constant. None unless the constant has one number
    for each feature and the Add alone reads the product."""
    product = node.outputs[0]
    uses = product.uses()
    if len(uses) != 1 or product.is_graph_output():
        return None
    ((consumer, index),) = uses
    if consumer.op_type != "Add" or not is_standard(consumer):
        return None
    tensor = constant(consumer.inputs[1 - index])
    if tensor is None or tensor.size != features or len(tensor.shape) > len(product.shape or ()):
        return None
    by_feature = len(tensor.shape) >= -axis and tensor.shape.numpy()[axis] == features
    return (consumer, 1 - index, tensor) if by_feature else None


def embedding_or_gather(node: ir.Node, gauges: Gauges) -> None:
    """Rows of a constant table (an embedding), whose columns absorb any gauge."""
    table = constant(node.inputs[0])
    if table is None or not is_float(node.inputs[0]):
        return gather(node, gauges)
    rank = len(table.shape)
    if rank < 2 or integer(node, "axis", 0) % rank == rank - 1:
        return gauges.boundary(node, Code.SCALAR_TABLE)
    write = gauges.fresh_along(node.outputs[0], -1, table.shape.numpy()[-1], FROM_WEIGHTS)

    def parameters(_: Gauge, writes: Gauge) -> Parameters:
        return {(node, 0): writes.p * float64(table) + writes.q}

    return gauges.absorb(Absorber(node, gauges.nothing(), write, parameters))


def can_read_shifts(node: ir.Node) -> bool:
    """Whether a node is a convolution that can be opened: its sizes are known, or one more input channel can be
    added."""
    if node.op_type not in ("Conv", "ConvTranspose") or not is_standard(node) or _linear_inputs(node)[1] is None:
        return False
    return knows_its_sizes(node) or (integer(node, "group", 1) == 1 and _takes_pads_as_input(node))


def knows_its_sizes(node: ir.Node) -> bool:
    """Whether the spatial sizes of a convolution's input and output are known."""
    return spatial_sizes(first_input(node)) is not None and spatial_sizes(node.outputs[0]) is not None


def _takes_pads_as_input(node: ir.Node) -> bool:
    """Whether the graph's opset has a Pad that takes its amounts as an input; it adds the channel of ones."""
    return node.graph is not None and node.graph.opset_imports.get("", 1) >= PADS_AS_INPUT


def _linear_inputs(node: ir.Node) -> tuple[ir.Value, ir.TensorProtocol | None, ir.TensorProtocol | None]:
    """Input, weights and bias of a Conv, ConvTranspose or Gemm; no weights if one of the two is not constant."""
    bias_value = node.inputs[2] if len(node.inputs) > 2 else None
    weights, bias = constant(node.inputs[1]), constant(bias_value)
    return first_input(node), None if bias_value is not None and bias is None else weights, bias


def _optional(tensor: ir.TensorProtocol | None) -> np.ndarray | None:
    return None if tensor is None else float64(tensor)
