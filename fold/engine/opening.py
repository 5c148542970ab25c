"""Which nodes to open: activations and padded convolutions near BatchNorms that would be kept otherwise.

An opened ReLU or clip may be rewritten as a clip with bounds for each channel. An opened convolution with padding may
be followed by a constant map, or read an additional channel of ones. Each rewrite has a cost, so only nodes that may
help are opened; an opened node that needs no other gauge stays unchanged.
"""

import math
from collections.abc import Callable, Iterable

import onnx_ir as ir

from fold.engine.gauge import Candidate
from fold.engine.laws import CLIPS, can_read_shifts, knows_its_sizes
from fold.graph import constant, dims, is_float, is_standard

ABSORBERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization"})
FUSED_BEHIND_CONVOLUTIONS = frozenset({"Relu", "Clip", "LeakyRelu", "Sigmoid", "HardSigmoid", "Tanh"})
"""Runtimes run these in one pass with a convolution that they follow directly."""


def activations_beside(kept: list[Candidate]) -> frozenset[ir.Node]:
    """Activations between a BatchNorm and the nearest weights, before it and behind it."""
    return _activations(
        node
        for candidate in kept
        for node in (*_behind(candidate.absorber.result), *_before(candidate.absorber.source))
    )


def activations_around(kept: list[Candidate]) -> frozenset[ir.Node]:
    """Activations of every tensor that shares a gauge with a BatchNorm's input or output."""
    return _activations(_around([value for c in kept for value in (c.absorber.source, c.absorber.result)]))


def borders_behind(kept: list[Candidate]) -> frozenset[ir.Node]:
    """Convolutions behind a BatchNorm whose padding or stride does not let them absorb its shift."""
    return frozenset(node for candidate in kept for node in _behind(candidate.absorber.result) if can_read_shifts(node))


def cheap_borders_behind(kept: list[Candidate]) -> frozenset[ir.Node]:
    """Those of `borders_behind` where adding a map to the output costs no more than the BatchNorm costs now."""
    return frozenset(node for node in borders_behind(kept) if knows_its_sizes(node) and _cheap(node))


def _cheap(node: ir.Node) -> bool:
    x, y = node.inputs[0], node.outputs[0]
    before, after = ([size for size in dims(value) or [] if isinstance(size, int)] for value in (x, y) if value)
    fused = any(reader.op_type in FUSED_BEHIND_CONVOLUTIONS for reader, _ in y.uses())
    return math.prod(after) <= math.prod(before) and not fused


def _activations(nodes: Iterable[ir.Node]) -> frozenset[ir.Node]:
    return frozenset(node for node in nodes if node.op_type in CLIPS and is_standard(node))


def _behind(value: ir.Value) -> Iterable[ir.Node]:
    """All nodes behind a tensor, up to and including the nearest weights on each way."""
    return _walk([value], lambda node: node.outputs, lambda value: [reader for reader, _ in value.uses()])


def _before(value: ir.Value) -> Iterable[ir.Node]:
    return _walk([value], _float_inputs, lambda value: [node] if (node := value.producer()) is not None else [])


def _around(values: list[ir.Value]) -> Iterable[ir.Node]:
    def neighbours(value: ir.Value) -> list[ir.Node]:
        producer = value.producer()
        return [*(reader for reader, _ in value.uses()), *([] if producer is None else [producer])]

    return _walk(values, lambda node: [*_float_inputs(node), *node.outputs], neighbours)


def _walk(
    values: list[ir.Value],
    onward: Callable[[ir.Node], Iterable[ir.Value]],
    nodes_at: Callable[[ir.Value], list[ir.Node]],
) -> Iterable[ir.Node]:
    stack, seen, met = list(values), set(values), set[ir.Node]()
    while stack:
        for node in nodes_at(stack.pop()):
            if node in met:
                continue
            met.add(node)
            yield node
            if node.op_type not in ABSORBERS:
                new = [value for value in onward(node) if value not in seen and is_float(value)]
                seen.update(new)
                stack += new


def _float_inputs(node: ir.Node) -> list[ir.Value]:
    return [value for value in node.inputs if value is not None and is_float(value) and constant(value) is None]
