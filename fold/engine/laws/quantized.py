"""Linear operators whose weights are integers behind a DequantizeLinear with one scale for each output channel.

`W[o] = scale[o] * (values[o] - zero_point[o])`, so a scale p[o] of the output goes into `scale[o]`, and no integer is
rounded again. The sign of p[o] and the value 0 go into the integers, since runtimes expect positive scales:

    p[o] > 0    scale * p[o], values
    p[o] < 0    scale * |p[o]|, 2 * zero_point - values, which must fit into the integers' type
    p[o] = 0    scale, zero_point

A scale of the input is another for each input channel, which these scales cannot hold.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from fold.engine.affine import Array, Gauge
from fold.engine.gauge import FROM_WEIGHTS, Absorber, Gauges, Layout, Parameters
from fold.engine.reasons import Code, Reason
from fold.graph import computed, constant, display_name, first_input, float64, integer, is_standard, real

VALUES, SCALE, ZERO_POINT = range(3)
"""The inputs of a DequantizeLinear."""
INTEGERS = frozenset({ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT16, ir.DataType.UINT16})


@dataclass(frozen=True)
class Quantized:
    """The constants of a DequantizeLinear, whose scales are along `axis` of its integers."""

    node: ir.Node
    axis: int
    stored: ir.TensorProtocol
    scales: ir.TensorProtocol
    zero_points: ir.TensorProtocol | None

    def read(self) -> tuple[Array, Array]:
        """The integers, [O, ...], and their zero points, [O, 1, ...]; exact in float64."""
        values = np.moveaxis(float64(self.stored), self.axis, 0)
        zeros = np.zeros(len(values)) if self.zero_points is None else float64(self.zero_points)
        return values, zeros.reshape(-1, *(1,) * (values.ndim - 1))

    def can_negate(self) -> NDArray[np.bool_]:
        """For each output channel whether the negative of its weights fits into the integers' type; [O]."""
        values, zeros = self.read()
        limits = np.iinfo(self.stored.dtype.numpy())
        negated = (2 * zeros - values).reshape(len(values), -1)
        return np.asarray(((negated >= limits.min) & (negated <= limits.max)).all(axis=1))

    def law(self, node: ir.Node, output: ir.Value, axis: int, gauges: Gauges) -> Layout:
        """Carry the input of `node` as it is; returns new variables along an axis of its output."""
        gauges.pin(first_input(node), Reason(Code.QUANTIZED_WEIGHTS, display_name(node)))
        fits = self.can_negate()
        write = gauges.fresh_along(output, axis, len(fits), FROM_WEIGHTS)
        if not fits.all():
            gauges.positive(write.scale[~fits], gauges.cause(node, Code.QUANTIZED_SIGN))
        return write

    def scaled(self, p: Array) -> Parameters:
        """The integers and scales of the weights times `p`, [O]."""
        scales = {(self.node, SCALE): np.where(p == 0, 1, np.abs(p)) * float64(self.scales)}
        if (p > 0).all():
            return scales
        values, zeros = self.read()
        each = p.reshape(zeros.shape)
        values = np.where(each > 0, values, np.where(each < 0, 2 * zeros - values, zeros))
        return {**scales, (self.node, VALUES): np.moveaxis(values, 0, self.axis)}


def dequantize(node: ir.Node, gauges: Gauges) -> None:
    """Constant weights have no gauge: the node that reads them absorbs the gauges around it."""
    if any(constant(value) is None for value in node.inputs if value is not None):
        gauges.boundary(node)


def quantized_weights(node: ir.Node, gauges: Gauges) -> None:
    """The law of a Conv, ConvTranspose or Gemm whose weights are not constant: a boundary unless these are quantised
    constants. `weights.matmul` has that of a MatMul."""
    found = find_quantized(node)
    if found is None or computed(node, 2):
        return gauges.boundary(node, Code.COMPUTED_WEIGHTS)
    write = found.law(node, node.outputs[0], 1, gauges)
    bias = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    beta = real(node, "beta", 1.0)

    def parameters(_: Gauge, writes: Gauge) -> Parameters:
        given = 0.0 if bias is None else beta * float64(bias)
        return {**found.scaled(writes.p), (node, 2): writes.p * given + writes.q}

    attributes = {"beta": 1.0} if node.op_type == "Gemm" else {}
    return gauges.absorb(Absorber(node, gauges.nothing(), write, parameters, attributes))


def find_quantized(node: ir.Node) -> Quantized | None:
    """The quantised weights of a node; None unless they are constant, read here alone, and scaled by output channel."""
    weights = node.inputs[1]
    dequantizer = None if weights is None else weights.producer()
    if weights is None or dequantizer is None:
        return None
    if dequantizer.op_type != "DequantizeLinear" or not is_standard(dequantizer):
        return None
    stored, scales, zero_points = (constant(value) for value in (*dequantizer.inputs, None)[:3])
    if stored is None or scales is None or computed(dequantizer, ZERO_POINT):
        return None
    if stored.dtype not in INTEGERS or len(weights.uses()) != 1 or weights.is_graph_output():
        return None
    shape = tuple(stored.shape.numpy())
    axis = integer(dequantizer, "axis", 1) % max(len(shape), 1)
    if axis != _output_axis(node) or integer(dequantizer, "block_size", 0):
        return None
    if tuple(scales.shape.numpy()) != shape[axis : axis + 1]:
        return None
    return Quantized(dequantizer, axis, stored, scales, zero_points)


def _output_axis(node: ir.Node) -> int | None:
    """The axis of the weights that counts output channels; None if there is not one for each."""
    match node.op_type:
        case "Conv":
            return 0
        case "ConvTranspose":  # [I, O/g, *k]
            return 1 if integer(node, "group", 1) == 1 else None
    return 0 if integer(node, "transB", 0) else 1  # Gemm, and MatMul with a matrix
