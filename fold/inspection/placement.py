"""Where a BatchNorm stands in a network: behind which weights, behind or in front of which activation.

It is read off the graph. Tensors are followed through whatever holds no weights of its own, nearest nodes first.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import onnx_ir as ir

from fold.graph import constant, display_name, is_float

WEIGHTED = frozenset({"Conv", "ConvTranspose", "DeformConv", "GRU", "Gemm", "LSTM", "RNN"})
WEIGHTED_BY_CONSTANTS = frozenset({"Einsum", "Gather", "MatMul"})
"""Weights where they read a constant of two axes or more, else a product or a choice of computed tensors."""
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
"""Behind one of several tensors, what lies on the way to one of them does not hold for all that arrives."""
GATES = frozenset({"Div", "Mul"})
INPUT, OUTPUT = "input", "output"
LISTED = 3
"""Names that a sentence can bear."""


class Neighbour(NamedTuple):
    """A node by the name that a user knows and its operator, or an input or output of the graph."""

    name: str
    operator: str

    def __str__(self) -> str:
        return f"the {self.operator} {self.name}" if self.operator in (INPUT, OUTPUT) else f"{self.name} ({self[1]})"


@dataclass(frozen=True)
class Placement:
    """What lies around a BatchNorm, nearest first.

    `weights` are those that write what it reads, or other normalisations, or inputs of the graph. `activations` lie
    between them and the BatchNorm, where all of its input passes. `behind` is what is met first on each way onwards:
    activations, weights, normalisations, outputs of the graph.
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
    """The first few of a list, and how many there are more."""
    more = f" and {len(items) - LISTED} more" if len(items) > LISTED else ""
    return ", ".join(map(str, items[:LISTED])) + more


def placement(nodes: Sequence[ir.Node]) -> Placement:
    """Of a BatchNorm: one node, or several in a row where it is written out with constants."""
    source = next((value for value in nodes[0].inputs if value is not None and constant(value) is None), None)
    if source is None:
        return Placement((), (), _named(_downstream(nodes[-1].outputs[0])))
    weights = [found for found in _upstream(source, _passes) if isinstance(found, ir.Value) or not _passes(found)]
    alone = _upstream(source, lambda node: _passes(node) and not _joins(node))
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
    """The nodes that a tensor is made by, and the graph's inputs, going on from those that are passed `through`."""
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
            new = [read for read in _tensors(node) if read not in seen]
            seen.update(new)
            waiting += new


def _downstream(value: ir.Value) -> Iterator[ir.Node | ir.Value]:
    """What is met first on each way from a tensor."""
    start, waiting, met = value.producer(), deque([value]), set[ir.Node]()
    while waiting:
        value = waiting.popleft()
        if value.is_graph_output():
            yield value
        for node, _ in value.uses():
            if node in met:
                continue
            met.add(node)
            if not _passes(node) or _is_activation(node):
                yield node
            elif not _gates_itself(node, value, start):
                waiting += [written for written in node.outputs if is_float(written)]


def _gates_itself(node: ir.Node, value: ir.Value, start: ir.Node | None) -> bool:
    """Whether a product is the end of an activation of `start`'s tensor, such as x * sigmoid(x)."""
    others = [read for read in _tensors(node) if read is not value]
    if node.op_type not in GATES or not others:
        return False
    made_by = list(_upstream(others[0], lambda node: _passes(node) and node is not start))
    return start in made_by and any(isinstance(each, ir.Node) and _is_activation(each) for each in made_by)


def _tensors(node: ir.Node) -> list[ir.Value]:
    """The float inputs of a node that are no constants."""
    return [value for value in node.inputs if value is not None and is_float(value) and constant(value) is None]


def _passes(node: ir.Node) -> bool:
    """Whether a node has no weights, and is no normalisation."""
    if node.op_type in WEIGHTED_BY_CONSTANTS:
        tensors = [constant(value) for value in node.inputs if is_float(value)]
        return not any(tensor is not None and len(tensor.shape) > 1 for tensor in tensors)
    return node.op_type not in WEIGHTED and node.op_type not in NORMALISATIONS


def _joins(node: ir.Node) -> bool:
    return node.op_type in JOINS and len(_tensors(node)) > 1


def _is_activation(node: ir.Node) -> bool:
    return node.op_type in ACTIVATIONS or (node.op_type in CLIPS and len(_tensors(node)) == 1)
