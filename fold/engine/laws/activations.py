"""Activations: Relu, Clip, LeakyRelu, PRelu and Abs."""

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from fold.engine.affine import Array, Gauge
from fold.engine.gauge import Absorber, Gauges, Layout, Steps
from fold.engine.reasons import Code, Reason
from fold.graph import constant, display_name, first_input, real

CLIPS = frozenset({"Relu", "Clip"})
"""Operators that may be rewritten as a clip with bounds for each channel."""


def relu(node: ir.Node, gauges: Gauges) -> None:
    _clip(node, gauges, 0.0, np.inf)


def clip(node: ir.Node, gauges: Gauges) -> None:
    bounds = [real(node, "min", -np.inf), real(node, "max", np.inf)]  # attributes before opset 11, inputs since
    for position, value in enumerate(node.inputs[1:3]):
        if value is not None:
            tensor = constant(value)
            if tensor is None or tensor.size != 1:
                return gauges.boundary(node, Code.COMPUTED_BOUNDS)
            bounds[position] = float(tensor.numpy().item())
    if not bounds[0] <= bounds[1]:
        return gauges.boundary(node, Code.EMPTY_BOUNDS)
    return _clip(node, gauges, *bounds)


def _clip(node: ir.Node, gauges: Gauges, low: float, high: float) -> None:
    """`min(max(x, low), high)`. If it is opened, `p*clip(x) + q` is a clip of `p*x + q` with moved bounds:
    `[p*low + q, p*high + q]` for `p > 0`, and these two exchanged for `p < 0`."""
    x, y = first_input(node), node.outputs[0]
    layout = gauges.of(x)
    gauges.set(y, layout)
    if node in gauges.opened:

        def steps(gauge: Gauge, _: Gauge) -> Steps | None:
            return _moved_bounds(low, high, gauge, gauges.dead.get(x))

        gauges.rewritable(Absorber(node, layout, layout, steps, divides=False, always=x in gauges.dead))
    elif all(bound in (0.0, -np.inf, np.inf) for bound in (low, high)):
        _demand_positive_scale_and_no_shift(node, layout, gauges)
    else:
        gauges.fixed(layout, gauges.cause(node, Code.CLIP_BOUNDS))


def _moved_bounds(low: float, high: float, gauge: Gauge, dead: tuple[NDArray[np.bool_], Array] | None) -> Steps | None:
    p, q = np.broadcast_arrays(*gauge)
    with np.errstate(invalid="ignore"):  # 0 * inf, where p = 0 and there is nothing to clip
        lower, upper = np.sort([p * low + q, p * high + q], axis=0)
    lower, upper = np.where(p == 0, -np.inf, lower), np.where(p == 0, np.inf, upper)
    if dead is not None:
        where, value = dead
        kept = p * np.clip(value, low, high) + q
        lower, upper = np.where(where, kept, lower), np.where(where, kept, upper)
    moved = [(operator, bound) for operator, bound in (("Max", lower), ("Min", upper)) if np.isfinite(bound).any()]
    unchanged = (lower == low).all() and (upper == high).all()
    return None if unchanged else moved


def homogeneous(node: ir.Node, gauges: Gauges) -> None:
    """LeakyRelu and Abs: `f(p*x) = p*f(x)` for `p > 0`."""
    layout = gauges.of(first_input(node))
    gauges.set(node.outputs[0], layout)
    _demand_positive_scale_and_no_shift(node, layout, gauges)


def prelu(node: ir.Node, gauges: Gauges) -> None:
    slope = node.inputs[1]
    if slope is not None and constant(slope) is None:  # a computed slope must keep its values
        gauges.pin(slope, Reason(Code.COMPUTED_SLOPE, display_name(node)))
    homogeneous(node, gauges)


def _demand_positive_scale_and_no_shift(node: ir.Node, layout: Layout, gauges: Gauges) -> None:
    cause = gauges.cause(node, Code.ACTIVATION)
    gauges.positive(layout.scale, cause)
    gauges.zero(layout.shift, cause)
