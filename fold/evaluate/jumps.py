"""Operators whose results jump where what they read changes a little: comparisons, indices, rounding.

A small change of the weights changes what such an operator writes seldom, and then by a whole step. A few draws of
random changes do not show how far it may go.
"""

from collections.abc import Set

import onnx_ir as ir
from onnx_ir.passes import common

from fold.graph import FLOATS, VALUELESS, inner_nodes, integer, is_standard

JUMPING = frozenset(
    {
        *("ArgMax", "ArgMin", "Equal", "Greater", "GreaterOrEqual", "Hardmax", "IsInf", "IsNaN", "Less", "LessOrEqual"),
        *("Ceil", "Floor", "Mod", "Round", "Shrink", "Sign", "ThresholdedRelu"),
        *("DynamicQuantizeLinear", "NonMaxSuppression", "NonZero", "QuantizeLinear", "TopK", "Unique"),
        *("GridSample", "MaxRoiPool", "MaxUnpool", "RoiAlign"),
    }
)
"""Also a Cast to whole numbers, a node with subgraphs, and an operator that is not ONNX's own."""


def jumping(model: ir.Model, changed: Set[str]) -> tuple[Set[str], tuple[str, ...]]:
    """Outputs of a graph that may jump if the initializers in `changed` change, and the operators that cause it."""
    if model.functions:
        model = model.clone()
        common.InlinePass()(model)
    moved = {value for name, value in model.graph.initializers.items() if name in changed}
    jumped, operators = set[ir.Value](), set[str]()
    for node in model.graph:
        inside = [value for inner in inner_nodes(node) for value in inner.inputs]
        read = {value for value in (*node.inputs, *inside) if value is not None}
        if node.op_type in VALUELESS or read.isdisjoint(moved):
            continue
        moved.update(node.outputs)
        if inside or _jumps(node):
            operators.add(node.op_type)
            jumped.update(node.outputs)
        elif not read.isdisjoint(jumped):
            jumped.update(node.outputs)
    return {value.name or "" for value in model.graph.outputs if value in jumped}, tuple(sorted(operators))


def _jumps(node: ir.Node) -> bool:
    if not is_standard(node):
        return True
    if node.op_type == "Cast":
        return ir.DataType(integer(node, "to", 0)) not in FLOATS
    if node.op_type == "CastLike":
        return node.inputs[1] is None or node.inputs[1].dtype not in FLOATS
    return node.op_type in JUMPING
