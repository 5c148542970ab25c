"""Part B of a certificate: every stored weight is the exact one, rounded once, and its effect is within a bound.

The stored graph must be the one that folding gives, node for node, and each weight the nearest number of its type
(subnormal numbers, which are slow, become zero). That needs no inputs: anybody can compute it from source and manifest.
The effect of rounding on the outputs is then measured in float64 and compared with the bound of fold.evaluate.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from fold.arrays import Arrays
from fold.engine import round_weights, rounded_when_read
from fold.evaluate import Evaluator, RoundingBound
from fold.graph import display_name
from fold.proof.algebra import finite_values
from fold.runtime import release_memory

SHOWN = 5
"""The number of faults that a certificate lists; it counts all."""


@dataclass(frozen=True)
class Fault:
    """A weight or node of the stored graph that is not what folding gives. `layer` is the layer that reads the weight,
    by its module's name; `what` is the predicate of a sentence."""

    name: str
    layer: str
    what: str


@dataclass(frozen=True)
class RoundingEffect:
    """The effect of rounding the weights on one output: the largest measured difference, the largest bound, and the
    largest ratio of the two at any element. Both are None if an operator before the output has no bound. `compared`
    counts the finite values; without any it is false."""

    name: str
    difference: float
    bound: float | None
    ratio: float | None
    compared: int

    def __bool__(self) -> bool:
        return self.compared > 0 and (self.ratio is None or self.ratio <= 1)


@dataclass(frozen=True)
class Rounding:
    """True if all weights are rounded correctly and each output stays within its bound. `unbounded` names operators
    that have no bound. `compared` counts the finite values of weights and outputs; without any it is false."""

    weights: int
    faults: tuple[Fault, ...]
    outputs: tuple[RoundingEffect, ...]
    unbounded: tuple[str, ...]
    compared: int

    def __bool__(self) -> bool:
        return not self.faults and all(self.outputs) and self.compared > 0

    @property
    def failure(self) -> str:
        """What does not hold, for the certificate's message."""
        if self.faults:
            count = len(self.faults)
            what = "1 weight or node is" if count == 1 else f"{count} weights or nodes are"
            return f"rounding does not hold; {what} not what folding gives"
        empty = next((output.name for output in self.outputs if not output.compared), None)
        if empty is not None or not self.compared:
            return f"rounding proves nothing; output {empty!r} of the stored graph has no finite value in float64"
        worst = max(self.outputs, key=lambda output: output.ratio or 0)
        return f"rounding does not hold; output {worst.name!r} differs by {worst.ratio:.3g} times the bound"

    def to_dict(self) -> dict[str, Any]:
        return {
            "holds": bool(self),
            "weights": self.weights,
            "compared": self.compared,
            "wrong": len(self.faults),
            "faults": [asdict(fault) for fault in self.faults[:SHOWN]],
            "outputs": [asdict(output) for output in self.outputs],
            "unbounded": list(self.unbounded),
        }


def check_rounding(
    exact: ir.Model, read_stored: Callable[[], ir.Model], inputs: Arrays, *, unchanged: bool = False
) -> Rounding:
    """Compare the stored graph with the exact one: nodes, each weight, and, if these are right, outputs on `inputs`.
    If the graph is `unchanged` by the fold, no weight is rounded, so no output moves and none needs a bound.

    The exact weights, in float64, take the most memory of a proof. So `exact` is rounded here, in place, and the stored
    graph is read after that.
    """
    bounded: Mapping[str, tuple[np.ndarray, np.ndarray]] = {}
    unbounded: tuple[str, ...] = ()
    if not unchanged:
        bound = RoundingBound(exact, rounded_when_read(exact))
        bounded, unbounded = bound(inputs), bound.unbounded
        del bound
    round_weights(exact.graph)
    release_memory()
    stored = read_stored()
    faults = (*_nodes(exact.graph, stored.graph), *_weights(exact.graph, stored.graph))
    weights = sum(1 for value in exact.graph.initializers.values() if value.const_value is not None)
    if faults:
        return Rounding(weights, faults, (), (), 0)
    rounded = Evaluator(stored)(inputs)
    if unchanged:
        bounded = {name: (array, np.zeros(array.shape)) for name, array in rounded.items()}
    outputs = (_rounding_effect(name, *bounded[name], rounded[name]) for name in bounded)
    effects = tuple(output for output in outputs if output is not None)
    compared = finite_values(rounded) + finite_values(_arrays(stored.graph))
    return Rounding(weights, (), effects, unbounded, compared)


def _arrays(graph: ir.Graph) -> Arrays:
    values = graph.initializers.items()
    return {name: value.const_value.numpy() for name, value in values if value.const_value is not None}


def _rounding_effect(name: str, exact: np.ndarray, limit: np.ndarray, rounded: np.ndarray) -> RoundingEffect | None:
    """None for an output of integers, which are not rounded, and for an empty one."""
    if not np.issubdtype(exact.dtype, np.floating) or not exact.size:
        return None
    finite = np.isfinite(exact) & np.isfinite(rounded)
    difference, limits = np.abs(rounded - exact)[finite], limit[finite]
    largest = float(difference.max(initial=0))
    if not np.isfinite(limits).all():
        return RoundingEffect(name, largest, None, None, int(finite.sum()))
    ratio = np.divide(difference, limits, out=np.where(difference > 0, np.inf, 0.0), where=limits > 0)
    return RoundingEffect(name, largest, float(limits.max(initial=0)), float(ratio.max(initial=0)), int(finite.sum()))


def _weights(expected: ir.Graph, stored: ir.Graph) -> Iterable[Fault]:
    for name in sorted(expected.initializers.keys() | stored.initializers.keys()):
        right, value = expected.initializers.get(name), stored.initializers.get(name)
        if right is None or value is None:
            yield Fault(name, _reader(value or right), "is missing" if value is None else "is not what folding gives")
            continue
        if right.const_value is None or value.const_value is None:
            continue
        wanted, found = right.const_value, value.const_value
        if wanted.dtype != found.dtype or wanted.shape != found.shape:
            described = (f"{tensor.dtype.name}{list(tensor.shape.numpy())}" for tensor in (found, wanted))
            yield Fault(name, _reader(value), "is {}, expected {}".format(*described))
            continue
        wrong = ~_same(wanted.numpy(), found.numpy())
        if wrong.any():
            at = tuple(int(i) for i in np.argwhere(wrong)[0])
            which = f"{list(at)} is {found.numpy()[at]!s}, expected {wanted.numpy()[at]!s}"
            yield Fault(name, _reader(value), f"has {int(wrong.sum())} wrong of {wrong.size} numbers: {which}")


def _same(wanted: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Where two arrays of one type are equal; NaN equals NaN."""
    same = np.asarray(wanted == found)
    return same | ((wanted != wanted) & (found != found)) if wanted.dtype.kind not in "biuSO" else same  # noqa: PLR0124


def _nodes(exact: ir.Graph, stored: ir.Graph) -> Iterable[Fault]:
    """The first node that differs in its operator, attributes, inputs or outputs; those behind it may all differ."""
    right, found = list(exact), list(stored)
    for wanted, node in zip(right, found, strict=False):
        if _described(wanted) != _described(node):
            what = f"is not the {wanted.op_type} that folding gives"
            yield Fault(node.name or node.op_type, display_name(node), what)
            return
    if len(right) != len(found):
        longer = max(right, found, key=len)[min(len(right), len(found))]
        what = "is missing" if len(right) > len(found) else "is not what folding gives"
        yield Fault(longer.name or longer.op_type, display_name(longer), what)


def _described(node: ir.Node) -> tuple[object, ...]:
    attributes = {name: ir.to_proto(attribute).SerializeToString() for name, attribute in node.attributes.items()}
    names = [[None if value is None else value.name for value in values] for values in (node.inputs, node.outputs)]
    return node.domain, node.op_type, sorted(attributes.items()), *names


def _reader(value: ir.Value | None) -> str:
    """The layer that reads a weight, by its module's name."""
    readers = [] if value is None else [node for node, _ in value.uses()]
    return display_name(readers[0]) if readers else ""
