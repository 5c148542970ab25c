"""A Pad with zeros before a convolution is padding of that convolution: `Conv(Pad(x))` is one Conv with more padding.

Some exporters write it so (Keras pads before a causal convolution, and transposes between the two). As two nodes, the
Pad lets no shift pass; as one, a constant map or a channel of ones can replace a shift. This module only plans;
`rewrite.merge_padding` changes the graph.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from fold.graph import computed, dims, first_input, integers, is_standard, parameter, text


@dataclass(frozen=True)
class Padding:
    """A Pad that becomes padding of a convolution. `between` are the nodes that move its output there, from the Pad on;
    `pads` is the new attribute of the convolution."""

    conv: ir.Node
    pad: ir.Node
    between: tuple[ir.Node, ...]
    pads: list[int]


def find_padding(graph: ir.Graph) -> Iterator[Padding]:
    """Every Pad with zeros that only one convolution reads, along its spatial axes alone."""
    for node in graph:
        if node.op_type == "Conv" and is_standard(node) and text(node, "auto_pad", "NOTSET") in ("NOTSET", "VALID"):
            found = _padding_before(node)
            if found is not None:
                yield found


def _padding_before(conv: ir.Node) -> Padding | None:
    rank = len(dims(first_input(conv)) or [])
    value, between, to_conv = first_input(conv), list[ir.Node](), list(range(rank))
    while len(value.uses()) == 1 and not value.is_graph_output() and (node := value.producer()) is not None:
        if not is_standard(node) or value.shape is None:
            return None
        if node.op_type == "Pad":
            if len(dims(first_input(node)) or []) != len(to_conv):
                return None
            amounts = _zeros(node)
            pads = None if amounts is None else _added(conv, amounts, to_conv)
            return None if pads is None else Padding(conv, node, tuple(reversed(between)), pads)
        moved = _before(node, to_conv)
        if moved is None:
            return None
        value, to_conv = first_input(node), moved
        between.append(node)
    return None


def _before(node: ir.Node, axes: list[int]) -> list[int] | None:
    """What `axes` says of a node's output, for each axis of its input. None for what moves no whole axes."""
    if node.op_type == "Transpose":
        order = integers(node, "perm") or list(range(len(axes)))[::-1]
        return [axes[order.index(axis)] for axis in range(len(axes))] if len(order) == len(axes) else None
    if node.op_type == "Unsqueeze" and not computed(node, 1) and (new := parameter(node, 1, "axes")) is not None:
        added = {int(axis) % len(axes) for axis in new.ravel()}
        return [axis for place, axis in enumerate(axes) if place not in added]
    return None


def _zeros(pad: ir.Node) -> dict[int, tuple[int, int]] | None:
    """How many zeros a Pad adds before and behind each axis; None if it does anything else."""
    value, amounts, axes = (parameter(pad, place, name) for place, name in ((2, "value"), (1, "pads"), (3, "axes")))
    if text(pad, "mode", "constant") != "constant" or amounts is None or computed(pad, 1, 2, 3):
        return None
    if (value is not None and value.any()) or (amounts < 0).any():
        return None
    rank = len(dims(first_input(pad)) or [])
    which = list(range(rank)) if axes is None else [int(axis) % rank for axis in axes]
    return dict(zip(which, zip(*amounts.reshape(2, -1).tolist(), strict=True), strict=True))


def _added(conv: ir.Node, amounts: dict[int, tuple[int, int]], to_conv: list[int]) -> list[int] | None:
    """The convolution's `pads` together with these; None if there are some along another than its spatial axes."""
    spatial = len(dims(first_input(conv)) or []) - 2
    pads = [0] * 2 * spatial if text(conv, "auto_pad", "NOTSET") == "VALID" else integers(conv, "pads")
    pads = list(pads) or [0] * 2 * spatial
    for axis, (before, behind) in amounts.items():
        place = to_conv[axis] - 2
        if place < 0 and (before or behind):
            return None
        if place >= 0:
            pads[place], pads[place + spatial] = pads[place] + before, pads[place + spatial] + behind
    return pads
