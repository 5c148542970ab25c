"""Positions of the windows of a convolution or pool over its input, along each axis."""

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from fold.graph.reading import dims, first_input, integers, text


def conv_taps(node: ir.Node) -> list[NDArray[np.bool_]]:
    """For each axis of a convolution whether a tap reads the input and not the padding: [output position, tap]."""
    reached = []
    for begin, stride, dilation, taps, size, out in axes(node):
        at = stride * np.arange(out)[:, None] + dilation * np.arange(taps) - begin
        reached.append((at >= 0) & (at < size))
    return reached


def conv_transpose_taps(node: ir.Node) -> list[NDArray[np.bool_]]:
    """For each axis of a transposed convolution whether a tap writes to an output position: [output position, tap]."""
    reached = []
    for begin, stride, dilation, taps, size, out in axes(node):
        source = np.arange(out)[:, None] + begin - dilation * np.arange(taps)
        reached.append((source % stride == 0) & (source >= 0) & (source < stride * size))
    return reached


def axes(node: ir.Node) -> list[tuple[int, ...]]:
    """Leading padding, stride, dilation, taps, input and output size of each axis; all sizes must be known."""
    weights, sizes, outs = node.inputs[1], spatial_sizes(first_input(node)), spatial_sizes(node.outputs[0])
    assert weights is not None
    assert sizes is not None
    assert outs is not None
    kernel = [size for size in dims(weights) or [] if isinstance(size, int)][2:]
    strides = integers(node, "strides", [1] * len(kernel))
    dilations = integers(node, "dilations", [1] * len(kernel))
    begins = integers(node, "pads", [0] * 2 * len(kernel))[: len(kernel)]
    how = text(node, "auto_pad", "NOTSET")
    if how.startswith("SAME") or (node.op_type == "ConvTranspose" and node.attributes.get("output_shape")):
        extra = integers(node, "output_padding", [0] * len(kernel))
        for axis in range(len(kernel)):
            spread, (few, many) = dilations[axis] * (kernel[axis] - 1) + 1, (outs[axis], sizes[axis])
            if node.op_type == "ConvTranspose":
                few, many, spread = sizes[axis], outs[axis], spread + extra[axis]
            begins[axis] = _same(how, strides[axis] * (few - 1) + spread - many)[0]
    return list(zip(begins, strides, dilations, kernel, sizes, outs, strict=True))


def explicit_pads(node: ir.Node, kernel: tuple[int, ...]) -> list[int] | None:
    """Padding of a convolution or pool at the start of each axis, then at the end of each. None if it depends on
    unknown sizes, or if runtimes differ: in what SAME means with dilations."""
    how = text(node, "auto_pad", "NOTSET")
    if not how.startswith("SAME"):
        return [0] * 2 * len(kernel) if how == "VALID" else integers(node, "pads", [0] * 2 * len(kernel))
    if any(d != 1 for d in integers(node, "dilations")):
        return None
    sizes = (dims(first_input(node)) or [None] * (2 + len(kernel)))[2:]
    strides = integers(node, "strides", [1] * len(kernel))
    both = []
    for size, taps, stride in zip(sizes, kernel, strides, strict=True):
        n = 1 if stride == 1 or taps == 1 else size  # the padding is the same at every size
        if not isinstance(n, int):
            return None
        both.append(_same(how, (n - 1) // stride * stride + taps - n))
    return [before for before, _ in both] + [behind for _, behind in both]


def _same(how: str, missing: int) -> tuple[int, int]:
    """Padding at both ends of an axis for SAME, if `missing` elements are missing."""
    total = max(0, missing)
    before = total // 2 if how == "SAME_UPPER" else total - total // 2
    return before, total - before


def spatial_sizes(value: ir.Value) -> list[int] | None:
    """The spatial sizes, if all are known."""
    sizes = [size for size in (dims(value) or [])[2:] if isinstance(size, int)]
    return sizes if len(sizes) == len(dims(value) or []) - 2 else None
