"""Activations, sums and products: each element for itself."""

import numpy as np
import onnx_ir as ir

from fold.affine import Gauge
from fold.gauge import FROM_WEIGHTS, Absorber, Gauges, Layout, Parameters
from fold.graph import constant, first_input, float64


def relu(node: ir.Node, gauges: Gauges) -> None:
    x = gauges.of(first_input(node))
    cause = gauges.cause(node, "lets only positive scales pass, and no shift")
    gauges.positive(x.scale, cause)
    gauges.zero(x.shift, cause)
    gauges.set(node.outputs[0], x)


def add(node: ir.Node, gauges: Gauges) -> None:
    a, b = node.inputs
    assert a is not None
    assert b is not None
    constants = [constant(a), constant(b)]
    if any(tensor is not None for tensor in constants):
        return _add_constant(node, gauges, 0 if constants[0] is not None else 1)
    left, right = gauges.of(a), gauges.of(b)
    cause = gauges.cause(node, "adds tensors, which must agree in their scale")
    gauges.equal(left.scale, right.scale, cause)
    shape = np.broadcast_shapes(left.shift.shape, right.shift.shape)
    scale = np.broadcast_to(left.scale, np.broadcast_shapes(left.scale.shape, right.scale.shape))
    shift = gauges.fresh_shift(shape)
    gauges.sum(cause, (1.0, shift), (-1.0, left.shift), (-1.0, right.shift))
    return gauges.set(node.outputs[0], Layout(scale, shift))


def _add_constant(node: ir.Node, gauges: Gauges, position: int) -> None:
    value, x, y = node.inputs[position], node.inputs[1 - position], node.outputs[0]
    tensor = constant(value)
    assert tensor is not None
    assert x is not None
    if x.shape is None or y.shape is None or len(x.shape) != len(y.shape) or constant(x) is not None:
        return gauges.boundary(node, "adds a constant of a higher rank")
    layout = gauges.of(x)
    write = Layout(layout.scale, gauges.fresh_shift(layout.shift.shape, FROM_WEIGHTS))
    gauges.set(y, write)

    def parameters(reads: Gauge, writes: Gauge) -> Parameters:
        return {(node, position): reads.p * float64(tensor) - reads.q + writes.q}

    return gauges.absorb(Absorber(node, layout, write, parameters, divides=False))
