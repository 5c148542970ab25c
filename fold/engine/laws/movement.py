"""Operators that move data without changing it: Concat, Slice, Reshape, Pad, Resize and others. Gauges move as the
data.

Where an operator chooses elements at run time, the gauge must be the same for all elements that it may choose.
"""

import numpy as np
import onnx_ir as ir

from fold.engine.affine import Ids
from fold.engine.gauge import Gauges, Layout
from fold.engine.reasons import Code
from fold.graph import (
    FLOATS,
    computed,
    constant,
    dims,
    first_input,
    integer,
    integers,
    is_float,
    matching_blocks,
    parameter,
    text,
)

NEW = -1
"""Stands for a variable that is created later."""


def concat(node: ir.Node, gauges: Gauges) -> None:
    inputs = [value for value in node.inputs if value is not None]
    layouts = [gauges.of(value) for value in inputs]
    axis = integer(node, "axis", 0) % layouts[0].scale.ndim
    sizes = [(dims(value) or [])[axis] for value in inputs]
    known = [size for size in sizes if isinstance(size, int)]
    if len(known) < len(sizes):
        return _concat_unknown(node, gauges, inputs, axis)

    def join(arrays: list[Ids]) -> Ids:
        extents = np.broadcast_shapes(*(_resized(ids.shape, axis, 1) for ids in arrays))
        pieces = [np.broadcast_to(ids, _resized(extents, axis, size)) for ids, size in zip(arrays, known, strict=True)]
        return np.concatenate(pieces, axis=axis)

    joined = Layout(join([layout.scale for layout in layouts]), join([layout.shift for layout in layouts]))
    return gauges.set(node.outputs[0], joined)


def _concat_unknown(node: ir.Node, gauges: Gauges, inputs: list[ir.Value], axis: int) -> None:
    cause = gauges.cause(node, Code.UNKNOWN_CONCAT, {"axis": axis})
    first, *others = (gauges.uniform(value, [axis], cause) for value in inputs)
    for other in others:
        gauges.equal(other.scale, first.scale, cause)
        gauges.sum(cause, (1.0, other.shift), (-1.0, first.shift))
    gauges.set(node.outputs[0], first)


def split(node: ir.Node, gauges: Gauges) -> None:
    x = first_input(node)
    axis = integer(node, "axis", 0) % gauges.of(x).scale.ndim
    count = len(node.outputs)
    layout, sizes = gauges.of(x), parameter(node, 1, "split")
    if computed(node, 1):
        layout = gauges.uniform(x, [axis], gauges.cause(node, Code.COMPUTED_SPLIT, {"axis": axis}))
    for position, output in enumerate(node.outputs):

        def piece(ids: Ids, position: int = position) -> Ids:
            chunk = -(-ids.shape[axis] // count)  # the last chunk takes the rest
            ends = np.arange(1, count + 1) * chunk if sizes is None else np.cumsum(sizes)
            start = 0 if position == 0 else ends[position - 1]
            return _taken(ids, axis, np.arange(ids.shape[axis])[start : ends[position]])

        gauges.set(output, layout.map(piece))


def slice_(node: ir.Node, gauges: Gauges) -> None:
    x = first_input(node)
    rank = gauges.of(x).scale.ndim
    starts, ends = parameter(node, 1, "starts"), parameter(node, 2, "ends")
    axes, steps = parameter(node, 3, "axes"), parameter(node, 4, "steps")
    which = list(range(rank)) if axes is None else [int(axis) % rank for axis in axes]
    if starts is None or ends is None or computed(node, 1, 2, 3, 4):
        which = list(range(rank)) if computed(node, 3) else which
        cause = gauges.cause(node, Code.COMPUTED_SLICE)
        return gauges.set(node.outputs[0], gauges.uniform(x, which, cause))
    steps = np.ones(len(starts), np.int64) if steps is None else steps

    def cut(ids: Ids) -> Ids:
        for axis, start, end, step in zip(which, starts.tolist(), ends.tolist(), steps.tolist(), strict=False):
            ids = _taken(ids, axis, np.arange(ids.shape[axis])[start:end:step])
        return ids

    return gauges.set(node.outputs[0], gauges.of(x).map(cut))


def gather(node: ir.Node, gauges: Gauges) -> None:
    x, places = first_input(node), node.inputs[1]
    assert places is not None
    axis = integer(node, "axis", 0) % gauges.of(x).scale.ndim
    indices = constant(places)
    layout = gauges.of(x)
    if indices is None:
        cause = gauges.cause(node, Code.COMPUTED_INDICES, {"axis": axis})
        layout = gauges.uniform(x, [axis], cause)
    rank = 0 if places.shape is None else len(places.shape)

    def take(ids: Ids) -> Ids:
        if ids.shape[axis] > 1 and indices is not None and indices.size:
            return np.take(ids, indices.numpy(), axis)
        return np.take(ids, np.zeros((1,) * rank, np.int64), axis)

    return gauges.set(node.outputs[0], layout.map(take))


def expand(node: ir.Node, gauges: Gauges) -> None:
    """Expand repeats along axes of size 1, where a layout has extent 1 too, and adds axes in front."""
    new = len(node.outputs[0].shape or ()) - gauges.of(first_input(node)).scale.ndim
    gauges.set(node.outputs[0], gauges.of(first_input(node)).map(lambda ids: ids.reshape((1,) * new + ids.shape)))


def tile(node: ir.Node, gauges: Gauges) -> None:
    x = first_input(node)
    rank = gauges.of(x).scale.ndim
    repeats = constant(node.inputs[1])
    if repeats is None or repeats.size != rank or len(node.inputs) != 2 or not repeats.numpy().all():
        cause = gauges.cause(node, Code.COMPUTED_REPEATS)
        return gauges.set(node.outputs[0], gauges.uniform(x, range(rank), cause))
    times = repeats.numpy().tolist()

    def repeat(ids: Ids) -> Ids:
        return np.tile(ids, [1 if extent == 1 else n for extent, n in zip(ids.shape, times, strict=True)])

    return gauges.set(node.outputs[0], gauges.of(x).map(repeat))


def depth_to_space(node: ir.Node, gauges: Gauges) -> None:
    """The channels that become one block of positions must share a gauge, which is then that of the new channel."""
    x, block = first_input(node), integer(node, "blocksize", 1) ** 2
    cause = gauges.cause(node, Code.DEPTH_TO_SPACE)
    layout = gauges.uniform(x, [2, 3], cause)
    within = 2 if text(node, "mode", "DCR") == "CRD" else 1  # the axis of the position within a block

    def blocks(ids: Ids) -> tuple[Ids, Ids]:
        n, channels = ids.shape[:2]
        if channels == 1:
            return ids, ids
        shape = (n, channels // block, block) if within == 2 else (n, block, channels // block)
        apart = ids.reshape(*shape, 1, 1)
        first = np.take(apart, 0, axis=within)
        return first, np.moveaxis(apart, within, 0)

    (scale, scales), (shift, shifts) = blocks(layout.scale), blocks(layout.shift)
    gauges.equal(scales, scale, cause)
    gauges.sum(cause, (1.0, shifts), (-1.0, shift))
    gauges.set(node.outputs[0], Layout(scale, shift))


def space_to_depth(node: ir.Node, gauges: Gauges) -> None:
    x, block = first_input(node), integer(node, "blocksize", 1) ** 2
    layout = gauges.uniform(x, [2, 3], gauges.cause(node, Code.SPACE_TO_DEPTH))
    gauges.set(node.outputs[0], layout.map(lambda ids: ids if ids.shape[1] == 1 else np.tile(ids, (1, block, 1, 1))))


def transpose(node: ir.Node, gauges: Gauges) -> None:
    layout = gauges.of(first_input(node))
    permutation = integers(node, "perm") or list(range(layout.scale.ndim))[::-1]
    gauges.set(node.outputs[0], layout.map(lambda ids: np.transpose(ids, permutation)))


def reshape(node: ir.Node, gauges: Gauges) -> None:
    """Reshape and Flatten keep the order of elements, so dimensions split and merge in blocks."""
    x, y = first_input(node), node.outputs[0]
    before, after = dims(x), dims(y)
    blocks = None if before is None or after is None else matching_blocks(before, after)
    if blocks is None:
        return gauges.boundary(node, Code.LOST_CHANNELS)
    cause = gauges.cause(node, Code.MERGED_DIMENSIONS)
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


def unsqueeze(node: ir.Node, gauges: Gauges) -> None:
    axes = None if computed(node, 1) else parameter(node, 1, "axes")
    if axes is None:
        return reshape(node, gauges)
    where = tuple(int(axis) for axis in axes.ravel())
    return gauges.set(node.outputs[0], gauges.of(first_input(node)).map(lambda ids: np.expand_dims(ids, where)))


def squeeze(node: ir.Node, gauges: Gauges) -> None:
    """Without axes it removes all of size 1, so all sizes must be known."""
    axes = None if computed(node, 1) else parameter(node, 1, "axes")
    if axes is None:
        return reshape(node, gauges)
    where = tuple(int(axis) for axis in axes.ravel())
    return gauges.set(node.outputs[0], gauges.of(first_input(node)).map(lambda ids: np.squeeze(ids, where)))


def identity(node: ir.Node, gauges: Gauges) -> None:
    gauges.set(node.outputs[0], gauges.of(first_input(node)))


def cast(node: ir.Node, gauges: Gauges) -> None:
    """Cast and CastLike between float types. Each tensor is rounded to its own type, whatever gauge it has; float16
    may overflow, so the solver compares what is stored in it with its range."""
    like = node.inputs[1] if len(node.inputs) > 1 else None
    to = ir.DataType(integer(node, "to", 0)) if like is None else like.dtype
    x = first_input(node)
    if to not in FLOATS or not is_float(x):
        return gauges.boundary(node, Code.TYPE_CHANGE)
    if to != x.dtype and ir.DataType.FLOAT16 in (to, x.dtype):
        gauges.stored_in_float16.append(gauges.of(x))
    return identity(node, gauges)


def dropout(node: ir.Node, gauges: Gauges) -> None:
    training = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    if computed(node, 2) or (training is not None and training.numpy().any()):
        return gauges.boundary(node, Code.DROPOUT)
    return identity(node, gauges)


def pad(node: ir.Node, gauges: Gauges) -> None:
    """The padding value must keep its value: zero does without a shift, an infinity does with `p > 0`.

    The other modes copy elements along the padded axis. Negative amounts crop.
    """
    x = first_input(node)
    amounts, known = _amounts(node, gauges.of(x).scale.ndim)
    if text(node, "mode", "constant") != "constant":
        cause = gauges.cause(node, Code.COPIED_PADDING)
        return gauges.set(node.outputs[0], gauges.uniform(x, list(amounts), cause))
    growing = [axis for axis, amount in amounts.items() if max(amount) > 0]
    value = parameter(node, 2, "value")
    filling = 0.0 if value is None else float(value.reshape(-1)[0])
    if growing and (computed(node, 2) or (filling != 0 and np.isfinite(filling))):
        return gauges.boundary(node, Code.NUMBER_PADDING)
    cause = gauges.cause(node, Code.ZERO_PADDING if filling == 0 else Code.INFINITE_PADDING)
    layout = gauges.of(x)
    if not known:
        layout = gauges.uniform(x, growing, gauges.cause(node, Code.COMPUTED_PADDING))
    scale, shift = _grown(layout.scale, amounts), _grown(layout.shift, amounts)
    scale[scale == NEW] = gauges.fresh((int((scale == NEW).sum()),)).scale
    shift[shift == NEW] = gauges.fresh_shift((int((shift == NEW).sum()),))
    held, old = (shift, layout.shift) if filling == 0 else (scale, layout.scale)
    if all(old.shape[axis] > 1 for axis in growing):
        held = np.setdiff1d(held, old)  # positions of the padding have variables of their own
    if filling == 0:
        gauges.zero(held, cause)
    else:
        gauges.positive(held, cause)
    return gauges.set(node.outputs[0], Layout(scale, shift))


def _amounts(node: ir.Node, rank: int) -> tuple[dict[int, tuple[int, int]], bool]:
    """How much a Pad adds before and behind each axis that it changes, and whether that is known (else 1 is
    assumed)."""
    pads, axes = parameter(node, 1, "pads"), parameter(node, 3, "axes")
    which = list(range(rank)) if axes is None else [int(axis) % rank for axis in axes]
    if pads is None or computed(node, 1, 3):
        return dict.fromkeys(which, (1, 1)), False
    befores, afters = pads.reshape(2, -1).tolist()
    return {axis: (a, b) for axis, a, b in zip(which, befores, afters, strict=True) if a or b}, True


def _grown(ids: Ids, amounts: dict[int, tuple[int, int]]) -> Ids:
    """A copy with NEW at the padded positions and without the cropped ones, along axes where the layout varies."""
    for axis, amount in amounts.items():
        if ids.shape[axis] > 1:
            before, behind = (max(0, -n) for n in amount)
            kept = np.arange(before, ids.shape[axis] - behind)
            widths = [tuple(max(0, n) for n in amount) if other == axis else (0, 0) for other in range(ids.ndim)]
            ids = np.pad(np.take(ids, kept, axis), widths, constant_values=NEW)
    return ids.copy()


def resize(node: ir.Node, gauges: Gauges) -> None:
    """Resize and Upsample compute, in every mode, means along the resized axes with weights that sum to one."""
    mode = text(node, "coordinate_transformation_mode", "half_pixel")
    if mode in ("tf_crop_and_resize", "tf_half_pixel_for_nn"):
        return gauges.boundary(node, Code.CROP_AND_RESIZE, {"mode": mode})
    x = first_input(node)
    cause = gauges.cause(node, Code.INTERPOLATION)
    return gauges.set(node.outputs[0], gauges.uniform(x, _resized_axes(node), cause))


def _resized_axes(node: ir.Node) -> list[int]:
    """The axes that may be resized, by their scales or, where these are not given, by their sizes."""
    before, after = dims(first_input(node)) or [], dims(node.outputs[0]) or []
    axes = [axis % len(before) for axis in integers(node, "axes", list(range(len(before))))]
    sizes = node.inputs[3] if len(node.inputs) > 3 else None
    if sizes is not None and 0 not in (dims(sizes) or []):  # absent sizes may be an empty tensor
        stretched = text(node, "keep_aspect_ratio_policy", "stretch") == "stretch"
        return [axis for axis in axes if not stretched or before[axis] is None or before[axis] != after[axis]]
    index = 1 if node.op_type == "Upsample" or len(node.inputs) == 2 else 2
    scales = parameter(node, index, "scales")
    if scales is None or len(scales) != len(axes):
        return axes
    return [axis for axis, scale in zip(axes, scales, strict=True) if scale != 1]


def reads_no_value(node: ir.Node, gauges: Gauges) -> None:
    """Shape and Size read dimensions, which no gauge changes."""


def _taken(ids: Ids, axis: int, places: Ids) -> Ids:
    """`ids` at some positions of an axis. Where the extent is 1, or no position is taken, the result has extent 1."""
    return np.take(ids, places if ids.shape[axis] > 1 and len(places) else [0], axis)


def _resized(shape: tuple[int, ...], axis: int, size: int) -> tuple[int, ...]:
    return (*shape[:axis], size, *shape[axis + 1 :])
