"""Part B of a certificate: every stored weight is the exact one, rounded once, with no larger effect than rounding has.

The stored graph must be the one that folding gives, node for node, and each weight the nearest number of its type
(subnormal numbers, which are slow, become zero). That needs no inputs: anybody can compute it from source and manifest.
The effect on the outputs is then measured in float64 and compared with that of random roundings of the same weights.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from fold.arrays import Arrays
from fold.engine import rounded_when_read
from fold.evaluate import DRAWS, Evaluator, RandomRounding, jumping, rounding_limits
from fold.graph import display_name
from fold.proof.algebra import Families, finite_values

SHOWN = 5
"""The number of faults that a certificate lists; it counts all."""
FLOOR = 2.0**-24
"""A change of an output by this share of its largest value is none in float32."""


@dataclass(frozen=True)
class Fault:
    """A weight or node of the stored graph that is not what folding gives. `layer` is the layer that reads the weight,
    by its module's name; `what` is the predicate of a sentence."""

    name: str
    layer: str
    what: str


@dataclass(frozen=True)
class RoundingEffect:
    """The effect of rounding the weights on one output: the largest difference, the bound that random roundings stay
    within, and the ratio of the two, for the `family` of inputs with the largest ratio. Bound and ratio are None if an
    operator before the output jumps. `compared` counts the finite values of all families; without any it is false."""

    name: str
    difference: float
    bound: float | None
    ratio: float | None
    family: str
    compared: int

    def __bool__(self) -> bool:
        return self.compared > 0 and (self.ratio is None or self.ratio <= 1)


@dataclass(frozen=True)
class Rounding:
    """True if all weights are rounded correctly and each output stays within its bound. `unbounded` names operators
    whose results jump, `draws` is the number of random roundings. `compared` counts the finite values of weights and
    outputs; without any it is false."""

    weights: int
    faults: tuple[Fault, ...]
    outputs: tuple[RoundingEffect, ...]
    unbounded: tuple[str, ...]
    draws: int
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
        return (
            f"rounding does not hold; output {worst.name!r} differs by {worst.ratio:.3g} times what random roundings "
            "of the weights explain"
        )

    def to_dict(self) -> dict[str, Any]:
        return {
            "holds": bool(self),
            "weights": self.weights,
            "compared": self.compared,
            "wrong": len(self.faults),
            "faults": [asdict(fault) for fault in self.faults[:SHOWN]],
            "outputs": [asdict(output) for output in self.outputs],
            "unbounded": list(self.unbounded),
            "draws": self.draws,
        }


def check_rounding(exact: ir.Model, read_stored: Callable[[], ir.Model], families: Families) -> Rounding:
    """Compare the stored graph with the exact one: nodes, each weight, and outputs. `families` hold those of `exact`.

    Outputs are not compared if the graphs differ in more than numbers. The exact weights, in float64, take the most
    memory of a proof, so the rounded ones are computed whenever they are read.
    """
    # 1. Nodes and weights
    rounded, stored = rounded_when_read(exact), read_stored()
    weights = sum(1 for value in exact.graph.initializers.values() if value.const_value is not None)
    nodes = tuple(_nodes(exact.graph, stored.graph))
    faults = (*nodes, *_weights(rounded.graph, stored.graph))
    if nodes or _forms(rounded.graph) != _forms(stored.graph):
        return Rounding(weights, faults, (), (), 0, 0)

    # 2. The effect of rounding. `single` is one row of the kind `normal`
    if "single" in families:
        families = {name: pair for name, pair in families.items() if name != "normal"}
    asked = {family: inputs for family, (inputs, _) in families.items()}
    found, random = Evaluator(stored).each(asked), RandomRounding(exact)
    compared = finite_values(_arrays(stored.graph)) + sum(map(finite_values, found.values()))

    # 3. What explains it. The first draws are computed for all families together
    jumped, unbounded = jumping(exact, random.types.keys())
    first = [random(asked, draw) for draw in range(DRAWS)] if random.types else []
    effects: dict[str, RoundingEffect] = {}
    draws = len(first)
    for family, (inputs, answers) in families.items():

        def draw(number: int, family: str = family, inputs: Arrays = inputs) -> Arrays:
            return first[number][family] if number < len(first) else random({family: inputs}, number)[family]

        differences = {n: _difference(array, found[family][n]) for n, array in answers.items() if _compared(array)}
        judged = {name: gap for name, (gap, _, _) in differences.items() if name not in jumped and random.types}
        floors = {name: FLOOR * size for name, (_, size, _) in differences.items()}
        limits, count = rounding_limits(draw, answers, judged, floors)
        draws = max(draws, count)
        for name, (gap, _, finite) in differences.items():
            limit = None if name in jumped else limits[name] if random.types else 0.0
            ratio = None if limit is None else gap / limit if limit else np.inf if gap else 0.0
            effect = RoundingEffect(name, gap, limit, ratio, family, finite)
            effects[name] = _worse(effects.get(name), effect)
    return Rounding(weights, faults, tuple(effects.values()), unbounded, draws, compared)


def _worse(before: RoundingEffect | None, effect: RoundingEffect) -> RoundingEffect:
    """The one with the larger ratio, or difference if there is none; and the values of both."""
    if before is None:
        return effect
    sizes = [each.difference if each.ratio is None else each.ratio for each in (before, effect)]
    return replace(before if sizes[0] >= sizes[1] else effect, compared=before.compared + effect.compared)


def _compared(array: np.ndarray) -> bool:
    """False for integers, which are not rounded, and for an empty array."""
    return np.issubdtype(array.dtype, np.floating) and array.size > 0


def _difference(exact: np.ndarray, rounded: np.ndarray) -> tuple[float, float, int]:
    """The largest difference where both are finite, the largest size there, and the number of such values. The
    difference is infinite if the weights decide how many values there are, and do so differently."""
    if exact.shape != rounded.shape:
        return np.inf, 0.0, int(np.isfinite(exact).sum())
    finite = np.isfinite(exact) & np.isfinite(rounded)
    size = float(np.abs(exact[finite]).max(initial=0))
    return float(np.abs(rounded[finite] - exact[finite]).max(initial=0)), size, int(finite.sum())


def _arrays(graph: ir.Graph) -> Arrays:
    values = graph.initializers.items()
    return {name: value.const_value.numpy() for name, value in values if value.const_value is not None}


def _forms(graph: ir.Graph) -> Mapping[str, object]:
    """Type and shape of each weight."""
    values = graph.initializers.items()
    return {n: (v.const_value.dtype, v.const_value.shape) for n, v in values if v.const_value is not None}


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
        right_numbers, numbers = wanted.numpy(), found.numpy()
        wrong = ~_same(right_numbers, numbers)
        if wrong.any():
            at = tuple(int(i) for i in np.argwhere(wrong)[0])
            which = f"{list(at)} is {numbers[at]!s}, expected {right_numbers[at]!s}"
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
