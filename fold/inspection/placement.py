"""The place of a BatchNorm in a network: the weights and activations before it, and what follows it.

The search goes along the graph, nearest nodes first, through all nodes without weights.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import onnx_ir as ir

from fold.graph import constant, display_name, is_float

WEIGHTED = frozenset({"Conv", "ConvTranspose", "DeformConv", "GRU", "Gemm", "LSTM", "RNN"})
WEIGHTED_BY_CONSTANTS = frozenset({"Einsum", "Gather", "MatMul"})
"""Operators with weights where they read a constant of two axes or more; else they combine computed tensors."""
NORMALISATIONS = frozenset(
    {"BatchNormalization", "GroupNormalization", "InstanceNormalization", "LayerNormalization", "RMSNormalization"}
)
ACTIVATIONS = frozenset({
    "Celu", "Clip", "Elu", "Erf", "Gelu", "HardSigmoid", "HardSwish", "Hardmax", "LeakyRelu", "LogSoftmax", "Mish",
    "PRelu", "QuickGelu", "Relu", "Selu", "Sigmoid", "Softmax", "Softplus", "Softsign", "Swish", "Tanh",
    "ThresholdedRelu",
})  # fmt: skip
CLIPS = frozenset({"Max", "Min"})
"""Activations where one of two operands is constant."""
JOINS = frozenset({"Add", "Concat", "Max", "Mean", "Min", "Sub", "Sum", "Where"})
"""Operators that join several tensors. An activation before one of these tensors does not apply to the others."""
GATES = frozenset({"Div", "Mul"})
INPUT, OUTPUT = "input", "output"
LISTED = 3
"""Names that a sentence lists before it says how many more there are."""


class Neighbour(NamedTuple):
    """A node, by the name that a user knows and its operator, or an input or output of the graph."""

    name: str
    operator: str

    def __str__(self) -> str:
        return f"the {self.operator} {self.name}" if self.operator in (INPUT, OUTPUT) else f"{self.name} ({self[1]})"


@dataclass(frozen=True)
class Placement:
    """The neighbours of a BatchNorm, nearest first.

    `weights` are the nodes with weights, the other normalisations and the graph inputs from which its input comes.
    `activations` are between these and the BatchNorm, where its whole input passes through them. `behind` is the first
    activation, node with weights, normalisation or graph output on each path behind it.
    """

    weights: tuple[Neighbour, ...]
    activations: tuple[Neighbour, ...]
    behind: tuple[Neighbour, ...]

    def __str__(self) -> str:
        before = f"after {listed(self.weights)}" if self.weights else ""
        if self.activations:
            before = f"after {listed(self.activations)}" + (f" of {listed(self.weights)}" if self.weights else "")
        behind = f"before {listed(self.behind)}" if self.behind else ""
        return ", ".join(part for part in (before, behind) if part)

    def to_dict(self) -> dict[str, list[dict[str, str]]]:
        return {key: [each._asdict() for each in found] for key, found in vars(self).items()}


def listed(items: Sequence[object]) -> str:
    """The first items of a list, and how many more there are."""
    more = f" and {len(items) - LISTED} more" if len(items) > LISTED else ""
    return ", ".join(map(str, items[:LISTED])) + more


def placement(nodes: Sequence[ir.Node]) -> Placement:
    """The placement of a BatchNorm: one node, or several in a row where it is written out as products and sums."""
    source = next((value for value in nodes[0].inputs if value is not None and constant(value) is None), None)
    if source is None:
        return Placement((), (), _named(_downstream(nodes[-1].outputs[0])))
    weights = [found for found in _upstream(source, passes) if isinstance(found, ir.Value) or not passes(found)]
    alone = _upstream(source, lambda node: passes(node) and not _joins(node))
    activations = [found for found in alone if isinstance(found, ir.Node) and _is_activation(found)]
    return Placement(_named(weights), _named(activations), _named(_downstream(nodes[-1].outputs[0])))


def _named(found: Iterable[ir.Node | ir.Value]) -> tuple[Neighbour, ...]:
    neighbours = (
        Neighbour(display_name(each), each.op_type)
        if isinstance(each, ir.Node)
        else Neighbour(each.name or "", OUTPUT if each.is_graph_output() else INPUT)
        for each in found
    )
    return tuple(dict.fromkeys(neighbours))


def _upstream(value: ir.Value, through: Callable[[ir.Node], bool]) -> Iterator[ir.Node | ir.Value]:
    """The nodes and graph inputs from which a tensor is computed; the search goes on behind nodes that are
    `through`."""
    waiting, seen = deque([value]), {value}
    met = set[ir.Node]()
    while waiting:
        value = waiting.popleft()
        node = value.producer()
        if node is None and value.is_graph_input():
            yield value
        if node is None or node in met:
            continue
        met.add(node)
        yield node
        if through(node):
            new = [read for read in tensors_read(node) if read not in seen]
            seen.update(new)
            waiting += new


def _downstream(value: ir.Value) -> Iterator[ir.Node | ir.Value]:
    """The first activation, node with weights, normalisation or graph output on each path from a tensor."""
    start, waiting, met = value.producer(), deque([value]), set[ir.Node]()
    while waiting:
        value = waiting.popleft()
        if value.is_graph_output():
            yield value
        for node, _ in value.uses():
            if node in met:
                continue
            met.add(node)
            if not passes(node) or _is_activation(node):
                yield node
            elif not _gates_itself(node, value, start):
                waiting += [written for written in node.outputs if is_float(written)]


def _gates_itself(node: ir.Node, value: ir.Value, start: ir.Node | None) -> bool:
    """Whether a product completes an activation of the output of `start`, such as x * sigmoid(x)."""
    others = [read for read in tensors_read(node) if read is not value]
    if node.op_type not in GATES or not others:
        return False
    made_by = list(_upstream(others[0], lambda node: passes(node) and node is not start))
    return start in made_by and any(isinstance(each, ir.Node) and _is_activation(each) for each in made_by)


def tensors_read(node: ir.Node) -> list[ir.Value]:
    """The float inputs of a node that are not constant."""
    return [value for value in node.inputs if value is not None and is_float(value) and constant(value) is None]


def passes(node: ir.Node) -> bool:
    """Whether a node has no weights and is not a normalisation."""
    if node.op_type in WEIGHTED_BY_CONSTANTS:
        tensors = [constant(value) for value in node.inputs if is_float(value)]
        return not any(tensor is not None and len(tensor.shape) > 1 for tensor in tensors)
    return node.op_type not in WEIGHTED and node.op_type not in NORMALISATIONS


def _joins(node: ir.Node) -> bool:
    return node.op_type in JOINS and len(tensors_read(node)) > 1


def _is_activation(node: ir.Node) -> bool:
    return node.op_type in ACTIVATIONS or (node.op_type in CLIPS and len(tensors_read(node)) == 1)
