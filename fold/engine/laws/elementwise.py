"""Activations, sums and products of tensors: each element for itself."""

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from fold.engine.affine import Array, Gauge, Ids
from fold.engine.gauge import Absorber, Cause, Gauges, Layout, Steps
from fold.graph import constant, dims, display_name, first_input, real

CLIPS = frozenset({"Relu", "Clip"})
"""What may become a clip with bounds of its own for each channel."""


def relu(node: ir.Node, gauges: Gauges) -> None:
    _clip(node, gauges, 0.0, np.inf)


def clip(node: ir.Node, gauges: Gauges) -> None:
    bounds = [real(node, "min", -np.inf), real(node, "max", np.inf)]  # attributes before opset 11, inputs since
    for position, value in enumerate(node.inputs[1:3]):
        if value is not None:
            tensor = constant(value)
            if tensor is None or tensor.size != 1:
                return gauges.boundary(node, "takes its bounds at run time")
            bounds[position] = float(tensor.numpy().item())
    if not bounds[0] <= bounds[1]:
        return gauges.boundary(node, "has bounds that leave nothing between them")
    return _clip(node, gauges, *bounds)


def _clip(node: ir.Node, gauges: Gauges, low: float, high: float) -> None:
    """`min(max(x, low), high)`. Opened, `clip(x)` is carried as `p*clip(x) + q`, a clip of `p*x + q` by moved bounds:
    `[p*low + q, p*high + q]` for `p > 0`, and the same two turned round for `p < 0`."""
    x, y = first_input(node), node.outputs[0]
    layout = gauges.of(x)
    gauges.set(y, layout)
    if node in gauges.opened:

        def steps(gauge: Gauge, _: Gauge) -> Steps | None:
            return _moved_bounds(low, high, gauge, gauges.dead.get(x))

        gauges.open(Absorber(node, layout, layout, steps, divides=False, always=x in gauges.dead))
    elif all(bound in (0.0, -np.inf, np.inf) for bound in (low, high)):
        _let_positive_scales_pass(node, layout, gauges)
    else:
        gauges.fixed(layout, gauges.cause(node, "clips at bounds that would have to move"))


def _moved_bounds(low: float, high: float, gauge: Gauge, dead: tuple[NDArray[np.bool_], Array] | None) -> Steps | None:
    p, q = np.broadcast_arrays(*gauge)
    with np.errstate(invalid="ignore"):  # 0 * inf, where p = 0 and nothing is left to clip
        lower, upper = np.sort([p * low + q, p * high + q], axis=0)
    lower, upper = np.where(p == 0, -np.inf, lower), np.where(p == 0, np.inf, upper)
    if dead is not None:
        where, value = dead
        kept = p * np.clip(value, low, high) + q
        lower, upper = np.where(where, kept, lower), np.where(where, kept, upper)
    moved = [(operator, bound) for operator, bound in (("Max", lower), ("Min", upper)) if np.isfinite(bound).any()]
    as_it_was = (lower == low).all() and (upper == high).all()
    return None if as_it_was else moved


def homogeneous(node: ir.Node, gauges: Gauges) -> None:
    """LeakyRelu and Abs: `f(p*x) = p*f(x)` for `p > 0`."""
    layout = gauges.of(first_input(node))
    gauges.set(node.outputs[0], layout)
    _let_positive_scales_pass(node, layout, gauges)


def prelu(node: ir.Node, gauges: Gauges) -> None:
    slope = node.inputs[1]
    if slope is not None and constant(slope) is None:  # a computed slope may not be scaled with anything
        gauges.pin(slope, Cause(display_name(node), "multiplies by its slope, which is carried as it is"))
    homogeneous(node, gauges)


def _let_positive_scales_pass(node: ir.Node, layout: Layout, gauges: Gauges) -> None:
    cause = gauges.cause(node, "lets only positive scales pass, and no shift")
    gauges.positive(layout.scale, cause)
    gauges.zero(layout.shift, cause)


def negate(node: ir.Node, gauges: Gauges) -> None:
    layout = gauges.of(first_input(node))
    shift = gauges.fresh_shift(layout.shift.shape)
    gauges.sum(gauges.cause(node, "turns the sign of a shift"), (1.0, shift), (1.0, layout.shift))
    gauges.set(node.outputs[0], Layout(layout.scale, shift))


def total(node: ir.Node, gauges: Gauges) -> None:
    """Add, Sub, Sum and Mean of tensors: all scales equal, shifts add up alike."""
    inputs = [value for value in node.inputs if value is not None]
    factors = {"Sub": [1.0, -1.0], "Mean": [1 / len(inputs)] * len(inputs)}.get(node.op_type, [1.0] * len(inputs))
    layouts = [gauges.of(value) for value in inputs]
    cause = gauges.cause(node, "adds tensors, which must agree in their scale")
    scale = layouts[0].scale
    for layout in layouts[1:]:
        gauges.equal(layouts[0].scale, layout.scale, cause)
        scale = np.broadcast_to(scale, np.broadcast_shapes(scale.shape, layout.scale.shape))
    shift = gauges.fresh_shift(np.broadcast_shapes(*(layout.shift.shape for layout in layouts)))
    terms = [(-factor, layout.shift) for factor, layout in zip(factors, layouts, strict=True)]
    gauges.sum(cause, (1.0, shift), *terms)
    gauges.set(node.outputs[0], Layout(scale, shift))


def extremum(node: ir.Node, gauges: Gauges) -> None:
    """Max and Min of tensors: all under one gauge of positive scale."""
    layouts = [gauges.of(value) for value in node.inputs if value is not None]
    cause = gauges.cause(node, "compares tensors, which must agree in a positive scale and in their shift")
    scale, shift = layouts[0].scale, layouts[0].shift
    gauges.positive(scale, cause)
    for layout in layouts[1:]:
        gauges.equal(layouts[0].scale, layout.scale, cause)
        gauges.sum(cause, (1.0, layouts[0].shift), (-1.0, layout.shift))
        scale = np.broadcast_to(scale, np.broadcast_shapes(scale.shape, layout.scale.shape))
        shift = np.broadcast_to(shift, np.broadcast_shapes(shift.shape, layout.shift.shape))
    gauges.set(node.outputs[0], Layout(scale, shift))


def gate(node: ir.Node, gauges: Gauges) -> None:
    """A product of two tensors: one is the gate, carried as it is; the other's scale passes, and no shift."""
    a, b = node.inputs
    assert a is not None
    assert b is not None
    x, gating = (b, a) if _narrower(a, b) else (a, b)
    if gating is x:
        return gauges.boundary(node, "squares its input")
    gauges.pin(gating, Cause(display_name(node), "multiplies by it, so it is carried as it is"))
    layout = gauges.of(x)
    gauges.zero(layout.shift, gauges.cause(node, "multiplies by a computed gate, so its input may carry no shift"))
    # what a gate of more places spreads keeps one gauge for each place that it came from
    gauges.set(node.outputs[0], layout.map(lambda ids: _with_rank(ids, node.outputs[0])))
    return None


def _narrower(a: ir.Value, b: ir.Value) -> bool:
    """Whether a is spread over b: of lower rank, or of size 1 along an axis where b is not."""
    left, right = dims(a), dims(b)
    if left is None or right is None or len(left) != len(right):
        return left is not None and right is not None and len(left) < len(right)
    return any(m == 1 != n for m, n in zip(left, right, strict=True))


def _with_rank(ids: Ids, value: ir.Value) -> Ids:
    rank = ids.ndim if value.shape is None else len(value.shape)
    return ids.reshape((1,) * (rank - ids.ndim) + ids.shape)
