"""Nodes with weights: any gauge on either side, which the weights take up."""

import numpy as np
import onnx_ir as ir

from fold import affine
from fold.affine import Gauge
from fold.gauge import FROM_WEIGHTS, Absorber, Gauges, Parameters
from fold.graph import constant, first_input, float64, integer, is_standard, padded, real


def conv(node: ir.Node, gauges: Gauges) -> None:
    x, weights, bias = _linear_inputs(node)
    if weights is None:
        return gauges.boundary(node, "has weights or a bias that are not constant")
    groups = integer(node, "group", 1)
    outputs, inputs = weights.shape.numpy()[0], weights.shape.numpy()[1] * groups
    cause = gauges.cause(node, "reads one gauge for each input channel")
    read = gauges.along(x, 1, inputs, cause)
    if padded(node):
        gauges.zero(read.shift, gauges.cause(node, "pads its input with zeros, so that may carry no shift"))
    write = gauges.fresh_along(node.outputs[0], 1, outputs, FROM_WEIGHTS)

    def parameters(reads: Gauge, writes: Gauge) -> Parameters:
        new = affine.conv(float64(weights), _optional(bias), groups, reads.reading(), writes)
        return {(node, 1): new[0], (node, 2): new[1]}

    return gauges.absorb(Absorber(node, read, write, parameters))


def conv_transpose(node: ir.Node, gauges: Gauges) -> None:
    x, weights, bias = _linear_inputs(node)
    if weights is None:
        return gauges.boundary(node, "has weights or a bias that are not constant")
    groups = integer(node, "group", 1)
    inputs, outputs = weights.shape.numpy()[0], weights.shape.numpy()[1] * groups
    cause = gauges.cause(
        node, "sums another part of its kernel at each output position, so its input may carry no shift"
    )
    read = gauges.along(x, 1, inputs, cause)
    gauges.zero(read.shift, cause)
    write = gauges.fresh_along(node.outputs[0], 1, outputs, FROM_WEIGHTS)

    def parameters(reads: Gauge, writes: Gauge) -> Parameters:
        new = affine.conv_transpose(float64(weights), _optional(bias), groups, reads.reading(), writes)
        return {(node, 1): new[0], (node, 2): new[1]}

    return gauges.absorb(Absorber(node, read, write, parameters))


def gemm(node: ir.Node, gauges: Gauges) -> None:
    x, weights, bias = _linear_inputs(node)
    if weights is None:
        return gauges.boundary(node, "has weights or a bias that are not constant")
    alpha, beta = real(node, "alpha", 1.0), real(node, "beta", 1.0)
    transposed = bool(integer(node, "transB", 0))
    K, N = weights.shape.numpy()[:: -1 if transposed else 1]
    cause = gauges.cause(node, "reads one gauge for each input feature")
    read = gauges.along(x, 0 if integer(node, "transA", 0) else 1, K, cause)
    write = gauges.fresh_along(node.outputs[0], 1, N, FROM_WEIGHTS)

    def parameters(reads: Gauge, writes: Gauge) -> Parameters:
        W64 = alpha * (float64(weights).T if transposed else float64(weights))
        W_new, B_new = affine.linear(W64, None if bias is None else beta * float64(bias), reads.reading(), writes)
        return {(node, 1): W_new.T if transposed else W_new, (node, 2): B_new}

    return gauges.absorb(Absorber(node, read, write, parameters, {"alpha": 1.0, "beta": 1.0}))


def matmul(node: ir.Node, gauges: Gauges) -> None:
    """A product with one constant matrix, together with the bias that is added to nothing but it, if there is one."""
    x, weights = first_input(node), constant(node.inputs[1])
    if weights is None or len(weights.shape) != 2 or x.shape is None or len(x.shape) < 2:
        return gauges.boundary(node, "is not a product with one constant matrix on the right")
    K, N = weights.shape.numpy()
    cause = gauges.cause(node, "reads one gauge for each input feature")
    read = gauges.along(x, -1, K, cause)
    bias = _bias_after(node, N)
    output = node.outputs[0] if bias is None else bias[0].outputs[0]
    write = gauges.fresh_along(output, -1, N, FROM_WEIGHTS)

    def parameters(reads: Gauge, writes: Gauge) -> Parameters:
        B = None if bias is None else float64(bias[2]).reshape(-1)
        W_new, B_new = affine.linear(float64(weights), B, reads.reading(), writes)
        return {(node, 1): W_new, (node, 2) if bias is None else bias[:2]: B_new}

    return gauges.absorb(Absorber(node, read, write, parameters), output.producer())


def _bias_after(node: ir.Node, features: int) -> tuple[ir.Node, int, ir.TensorProtocol] | None:
    """The Add behind a product, which input of it is the constant, and that constant, if it holds one number for each
    feature and nobody else reads the product."""
    uses = node.outputs[0].uses()
    if len(uses) != 1 or node.outputs[0].is_graph_output():
        return None
    ((consumer, index),) = uses
    if consumer.op_type != "Add" or not is_standard(consumer):
        return None
    tensor = constant(consumer.inputs[1 - index])
    if tensor is None or tensor.shape[-1:] != (features,) or tensor.size != features:
        return None
    if len(tensor.shape) > len(node.outputs[0].shape or ()):
        return None
    return consumer, 1 - index, tensor


def _linear_inputs(node: ir.Node) -> tuple[ir.Value, ir.TensorProtocol | None, ir.TensorProtocol | None]:
    """What a Conv, ConvTranspose or Gemm reads, its weights and its bias; no weights if one of them is not constant."""
    bias_value = node.inputs[2] if len(node.inputs) > 2 else None
    weights, bias = constant(node.inputs[1]), constant(bias_value)
    return first_input(node), None if bias_value is not None and bias is None else weights, bias


def _optional(tensor: ir.TensorProtocol | None) -> np.ndarray | None:
    return None if tensor is None else float64(tensor)
