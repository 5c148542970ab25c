"""Element-wise arithmetic on tensors: Neg, Add, Sub, Sum, Mean, Max, Min and Mul by a computed gate."""

import numpy as np
import onnx_ir as ir

from fold.engine.affine import Ids
from fold.engine.gauge import Gauges, Layout
from fold.engine.reasons import Code, Reason
from fold.graph import dims, display_name, first_input


def negate(node: ir.Node, gauges: Gauges) -> None:
    layout = gauges.of(first_input(node))
    shift = gauges.fresh_shift(layout.shift.shape)
    gauges.sum(gauges.cause(node, Code.NEGATION), (1.0, shift), (1.0, layout.shift))
    gauges.set(node.outputs[0], Layout(layout.scale, shift))


def total(node: ir.Node, gauges: Gauges) -> None:
    """Add, Sub, Sum and Mean of tensors: all scales are equal, and the shifts are added as the tensors are."""
    inputs = [value for value in node.inputs if value is not None]
    factors = {"Sub": [1.0, -1.0], "Mean": [1 / len(inputs)] * len(inputs)}.get(node.op_type, [1.0] * len(inputs))
    layouts = [gauges.of(value) for value in inputs]
    cause = gauges.cause(node, Code.TENSOR_SUM)
    scale = layouts[0].scale
    for layout in layouts[1:]:
        gauges.equal(layouts[0].scale, layout.scale, cause)
        scale = np.broadcast_to(scale, np.broadcast_shapes(scale.shape, layout.scale.shape))
    shift = gauges.fresh_shift(np.broadcast_shapes(*(layout.shift.shape for layout in layouts)))
    terms = [(-factor, layout.shift) for factor, layout in zip(factors, layouts, strict=True)]
    gauges.sum(cause, (1.0, shift), *terms)
    gauges.set(node.outputs[0], Layout(scale, shift))


def extremum(node: ir.Node, gauges: Gauges) -> None:
    """Max and Min of tensors: all have one gauge, with a positive scale."""
    layouts = [gauges.of(value) for value in node.inputs if value is not None]
    cause = gauges.cause(node, Code.TENSOR_EXTREMUM)
    scale, shift = layouts[0].scale, layouts[0].shift
    gauges.positive(scale, cause)
    for layout in layouts[1:]:
        gauges.equal(layouts[0].scale, layout.scale, cause)
        gauges.sum(cause, (1.0, layouts[0].shift), (-1.0, layout.shift))
        scale = np.broadcast_to(scale, np.broadcast_shapes(scale.shape, layout.scale.shape))
        shift = np.broadcast_to(shift, np.broadcast_shapes(shift.shape, layout.shift.shape))
    gauges.set(node.outputs[0], Layout(scale, shift))


def gate(node: ir.Node, gauges: Gauges) -> None:
    """A product of two tensors: one is the gate, carried as it is; the other may have a scale, but no shift."""
    a, b = node.inputs
    assert a is not None
    assert b is not None
    x, gating = (b, a) if _narrower(a, b) else (a, b)
    if gating is x:
        return gauges.boundary(node, Code.SQUARE)
    gauges.pin(gating, Reason(Code.GATE, display_name(node)))
    layout = gauges.of(x)
    gauges.zero(layout.shift, gauges.cause(node, Code.GATED))
    # where the gate broadcasts x, the copies of an element share its gauge
    gauges.set(node.outputs[0], layout.map(lambda ids: _with_rank(ids, node.outputs[0])))
    return None


def _narrower(a: ir.Value, b: ir.Value) -> bool:
    """Whether a is broadcast over b: it has a lower rank, or size 1 along an axis where b has another size."""
    left, right = dims(a), dims(b)
    if left is None or right is None or len(left) != len(right):
        return left is not None and right is not None and len(left) < len(right)
    return any(m == 1 != n for m, n in zip(left, right, strict=True))


def _with_rank(ids: Ids, value: ir.Value) -> Ids:
    rank = ids.ndim if value.shape is None else len(value.shape)
    return ids.reshape((1,) * (rank - ids.ndim) + ids.shape)
