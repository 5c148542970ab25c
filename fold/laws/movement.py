"""What moves data: gauges move as the data does."""

import numpy as np
import onnx_ir as ir

from fold.blocks import matching_blocks
from fold.gauge import Gauges, Layout
from fold.graph import constant, dims, first_input, integer, integers, text
from fold.scales import Ids


def concat(node: ir.Node, gauges: Gauges) -> None:
    inputs = [value for value in node.inputs if value is not None]
    layouts = [gauges.of(value) for value in inputs]
    axis = integer(node, "axis", 0) % layouts[0].scale.ndim
    sizes = [(dims(value) or [])[axis] for value in inputs]
    known = [size for size in sizes if isinstance(size, int)]
    if len(known) < len(sizes):
        return gauges.boundary(node, f"concatenates along axis {axis}, whose size is not known")

    def join(arrays: list[Ids]) -> Ids:
        extents = np.broadcast_shapes(*(_resized(ids.shape, axis, 1) for ids in arrays))
        pieces = [np.broadcast_to(ids, _resized(extents, axis, size)) for ids, size in zip(arrays, known, strict=True)]
        return np.concatenate(pieces, axis=axis)

    joined = Layout(join([layout.scale for layout in layouts]), join([layout.shift for layout in layouts]))
    return gauges.set(node.outputs[0], joined)


def transpose(node: ir.Node, gauges: Gauges) -> None:
    layout = gauges.of(first_input(node))
    permutation = integers(node, "perm") or list(range(layout.scale.ndim))[::-1]
    gauges.set(node.outputs[0], layout.map(lambda ids: np.transpose(ids, permutation)))


def reshape(node: ir.Node, gauges: Gauges) -> None:
    """Reshape, Flatten, Squeeze and Unsqueeze: the element order stays, so dimensions split and merge in blocks."""
    x, y = first_input(node), node.outputs[0]
    before, after = dims(x), dims(y)
    blocks = None if before is None or after is None else matching_blocks(before, after)
    if blocks is None:
        return gauges.boundary(node, "changes the shape in a way that channels cannot be followed through")
    cause = gauges.cause(node, "merges dimensions whose sizes are not known, over which the gauge must be the same")
    layout = gauges.uniform(x, [i for block in blocks if block.opaque for i in block.old], cause)

    def move(ids: Ids) -> Ids:
        full, shape = list(ids.shape), list[int]()
        for block in blocks:
            if len(block.old) == len(block.new) == 1:
                shape.append(ids.shape[block.old[0]])
            elif all(ids.shape[i] == 1 for i in block.old):
                shape += [1] * len(block.new)
            else:
                for i, size in zip(block.old, block.sizes, strict=True):
                    full[i] = size
                shape += block.new_sizes
        return np.broadcast_to(ids, full).reshape(shape)

    return gauges.set(y, layout.map(move))


def identity(node: ir.Node, gauges: Gauges) -> None:
    gauges.set(node.outputs[0], gauges.of(first_input(node)))


def dropout(node: ir.Node, gauges: Gauges) -> None:
    training = node.inputs[2] if len(node.inputs) > 2 else None
    if training is not None:
        tensor = constant(training)
        if tensor is None or tensor.numpy().any():
            return gauges.boundary(node, "may be in training mode")
    return identity(node, gauges)


def pad(node: ir.Node, gauges: Gauges) -> None:
    x = first_input(node)
    pads = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    value = node.inputs[2] if len(node.inputs) > 2 else None
    filling = constant(value)
    zeros = value is None or (filling is not None and not filling.numpy().any())
    axes_given = len(node.inputs) > 3 and node.inputs[3] is not None
    if text(node, "mode", "constant") != "constant" or pads is None or not zeros or axes_given:
        return gauges.boundary(node, "pads with something else than constant zeros")
    amounts = pads.numpy().reshape(2, -1).any(axis=0)
    cause = gauges.cause(node, "pads its input with zeros, so that may carry no shift")
    layout = gauges.uniform(x, [int(axis) for axis in np.flatnonzero(amounts)], cause)
    gauges.zero(layout.shift, cause)
    return gauges.set(node.outputs[0], layout)


def reads_no_value(node: ir.Node, gauges: Gauges) -> None:
    """Shape and Size ask for dimensions, which no gauge changes."""


def _resized(shape: tuple[int, ...], axis: int, size: int) -> tuple[int, ...]:
    return (*shape[:axis], size, *shape[axis + 1 :])
