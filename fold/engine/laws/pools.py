"""Pools and reductions combine elements, which must have the same gauge."""

import numpy as np
import onnx_ir as ir

from fold.engine.gauge import Gauges, Layout
from fold.engine.reasons import Code
from fold.graph import computed, dims, first_input, integer, padded, parameter


def max_pool(node: ir.Node, gauges: Gauges) -> None:
    """MaxPool and GlobalMaxPool. The padding is -infinity, which a gauge with `p > 0` does not change."""
    x = first_input(node)
    cause = gauges.cause(node, Code.MAX_POOL)
    layout = gauges.uniform(x, range(2, gauges.of(x).scale.ndim), cause)
    gauges.positive(layout.scale, cause)
    gauges.set(node.outputs[0], layout)


def average_pool(node: ir.Node, gauges: Gauges) -> None:
    """AveragePool and GlobalAveragePool.

    With `ceil_mode` the last window may reach beyond the padding. Runtimes differ in whether `count_include_pad` counts
    these positions, so both together count as padding.
    """
    x = first_input(node)
    cause = gauges.cause(node, Code.AVERAGE_POOL)
    layout = gauges.uniform(x, range(2, gauges.of(x).scale.ndim), cause)
    counts_padding = integer(node, "count_include_pad", 0) and (padded(node) or integer(node, "ceil_mode", 0))
    if counts_padding:
        gauges.zero(layout.shift, gauges.cause(node, Code.COUNTED_PADDING))
    gauges.set(node.outputs[0], layout)


def reduce_mean(node: ir.Node, gauges: Gauges) -> None:
    reduced = _reduced(node, gauges, Code.REDUCED_MEAN)
    if reduced is not None:
        _deliver(node, gauges, *reduced[:2])


def reduce_extremum(node: ir.Node, gauges: Gauges) -> None:
    """ReduceMax and ReduceMin."""
    reduced = _reduced(node, gauges, Code.REDUCED_EXTREMUM)
    if reduced is not None:
        layout, axes, cause = reduced
        gauges.positive(layout.scale, cause)
        _deliver(node, gauges, layout, axes)


def reduce_sum(node: ir.Node, gauges: Gauges) -> None:
    """The shift is multiplied by the number of elements, which must be known."""
    reduced = _reduced(node, gauges, Code.REDUCED_SUM)
    if reduced is None:
        return
    layout, axes, cause = reduced
    shape = dims(first_input(node)) or []
    sizes = [size for axis in axes if isinstance(size := shape[axis], int)]
    count = int(np.prod(sizes)) if len(sizes) == len(axes) else 0
    if count > 1:
        shift = gauges.fresh_shift(layout.shift.shape)
        gauges.sum(cause, (1.0, shift), (-float(count), layout.shift))
        layout = Layout(layout.scale, shift)
    elif count == 0:
        gauges.zero(layout.shift, gauges.cause(node, Code.UNKNOWN_COUNT))
    _deliver(node, gauges, layout, axes)


def _reduced(node: ir.Node, gauges: Gauges, code: Code) -> tuple[Layout, list[int], int] | None:
    """The layout of a reduction's input with extent 1 along its axes, these axes, and the cause of that demand.

    None where the axes are not known: the node is then a boundary.
    """
    x = first_input(node)
    rank = gauges.of(x).scale.ndim
    if computed(node, 1):
        gauges.boundary(node, Code.COMPUTED_AXES)
        return None
    given = parameter(node, 1, "axes")
    axes = [] if given is None else sorted({int(axis) % rank for axis in given.ravel()})
    if not axes and not integer(node, "noop_with_empty_axes", 0):
        axes = list(range(rank))
    cause = gauges.cause(node, code)
    return gauges.uniform(x, axes, cause), axes, cause


def _deliver(node: ir.Node, gauges: Gauges, layout: Layout, axes: list[int]) -> None:
    if not integer(node, "keepdims", 1):
        layout = layout.map(lambda ids: np.squeeze(ids, tuple(axes)))
    gauges.set(node.outputs[0], layout)
