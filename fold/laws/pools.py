"""Pools and reductions: many places become one, so their gauges must be the same."""

import numpy as np
import onnx_ir as ir

from fold.gauge import Gauges
from fold.graph import constant, first_input, integer, integers, padded


def max_pool(node: ir.Node, gauges: Gauges) -> None:
    x = first_input(node)
    cause = gauges.cause(node, "takes a maximum, which lets only positive scales pass, one for each channel")
    layout = gauges.uniform(x, range(2, gauges.of(x).scale.ndim), cause)
    gauges.positive(layout.scale, cause)
    gauges.set(node.outputs[0], layout)


def average_pool(node: ir.Node, gauges: Gauges) -> None:
    x = first_input(node)
    cause = gauges.cause(node, "takes a mean over space, which lets one gauge for each channel pass")
    layout = gauges.uniform(x, range(2, gauges.of(x).scale.ndim), cause)
    counts_padding = integer(node, "count_include_pad", 0) and (padded(node) or integer(node, "ceil_mode", 0))
    if counts_padding:
        gauges.zero(
            layout.shift, gauges.cause(node, "counts the zeros that it pads with, so its input may carry no shift")
        )
    gauges.set(node.outputs[0], layout)


def reduce_mean(node: ir.Node, gauges: Gauges) -> None:
    x = first_input(node)
    rank = gauges.of(x).scale.ndim
    axes = integers(node, "axes")
    if len(node.inputs) > 1 and node.inputs[1] is not None:
        tensor = constant(node.inputs[1])
        if tensor is None:
            return gauges.boundary(node, "takes its axes at run time")
        axes = [int(axis) for axis in tensor.numpy().ravel()]
    if not axes and not integer(node, "noop_with_empty_axes", 0):
        axes = list(range(rank))
    axes = sorted(axis % rank for axis in axes)
    cause = gauges.cause(node, "takes a mean, over which the gauge must be the same")
    layout = gauges.uniform(x, axes, cause)
    if not integer(node, "keepdims", 1):
        layout = layout.map(lambda ids: np.squeeze(ids, tuple(axes)))
    return gauges.set(node.outputs[0], layout)
