"""What rounding of the weights can do to each element of a tensor, bounded a priori and carried through the graph.

Beside every value x a bound e is carried such that |x' - x| <= e holds elementwise for the same graph with other
weights w', |w' - w| <= u|w|, in the place of the rounded ones. u is the unit roundoff of the type that stores a weight.
How an operator carries bounds on is in fold.evaluate.bound_rules.

Float64 rounds as well, in the evaluation of either graph. Each operation therefore adds what it may lose, in units of
`EPSILON` of the magnitudes that it sums or writes; for float32 weights that is a millionth of the bound or less. A
bound of infinity says that nothing is known.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from fold.arrays import widened
from fold.errors import BnfoldError
from fold.evaluate.bound_rules import Bounded, certain, is_data, rule_for
from fold.evaluate.float64 import Evaluator, captured
from fold.graph import FLOATS, VALUELESS

__all__ = ["Bounded", "RoundingBound"]


class Unit(NamedTuple):
    """How a type rounds: by `roundoff` relatively; and by `least` where a number is too small for that."""

    roundoff: float
    least: float


UNITS = {
    ir.DataType.FLOAT: Unit(2.0**-24, 2.0**-126),  # what is subnormal is stored as zero (fold.engine.rewrite)
    ir.DataType.DOUBLE: Unit(2.0**-53, 2.0**-1022),
    ir.DataType.FLOAT16: Unit(2.0**-11, 2.0**-25),  # half the distance of its subnormals, which are kept
    ir.DataType.BFLOAT16: Unit(2.0**-8 + 2.0**-24, 2.0**-126),  # numpy rounds by way of float32
}


class RoundingBound:
    """The outputs of a folded graph with unrounded weights, with bounds of what storing them may do.

    `exact` holds the unrounded weights, `stored` is the same graph as it is stored: it tells in which type, and which
    weights were rounded at all, for one that is equal in both is exact. Raises `BnfoldError` where `stored` lacks a
    weight. `unbounded` names the operators for which there is no rule, and behind which every bound is infinite.
    """

    def __init__(self, exact: ir.Model, stored: ir.Model) -> None:
        self._units = _rounded(exact, stored)
        if exact.functions:
            exact = exact.clone()
            common.InlinePass()(exact)
        self._evaluator = Evaluator(exact)
        self.unbounded = self._without_rule()

    def __call__(self, inputs: Mapping[str, np.ndarray]) -> dict[str, Bounded]:
        """Each output with its bounds. Inputs are exact, as float64."""
        return self._evaluator.walk(
            {name: certain(array) for name, array in widened(inputs).items()}, self._weight, self._step
        )

    def _weight(self, name: str) -> Bounded:
        value = self._evaluator.weight(name)
        if name not in self._units:
            return certain(value)
        size, unit = np.abs(value), self._units[name]
        return Bounded(value, np.minimum(size, np.maximum(unit.roundoff * size, unit.least)))

    def _step(self, node: Any, read: list[Bounded | None], context: dict[str, Bounded]) -> list[Bounded]:
        given = [None if x is None else x.value for x in read]
        written = self._evaluator.run(node, given, {name: x.value for name, x in context.items()})
        uncertain = [x is not None and not x.exact for x in (*read, *context.values())]
        if node.op_type in VALUELESS or not any(uncertain):
            return [certain(value) for value in written]
        sequences = any(not isinstance(value, np.ndarray) for value in (*given, *written) if value is not None)
        rule = None if sequences else rule_for(node)
        data = [is_data(node, index, x) for index, x in enumerate(read)] + [False] * len(context)
        bounds: list[np.ndarray] = []
        if rule is not None and not any(doubt and not held for doubt, held in zip(uncertain, data, strict=True)):
            with np.errstate(all="ignore"):  # infinite bounds are a result
                bounds = [np.where(np.isnan(bound), np.inf, bound) for bound in rule(node, read, written)]
        bounds += [np.array(np.inf)] * (len(written) - len(bounds))
        return [
            Bounded(y, np.broadcast_to(bound if y.dtype == np.float64 else np.inf, y.shape))
            if isinstance(y, np.ndarray)
            else Bounded(y, bound)
            for y, bound in zip(written, bounds, strict=True)
        ]

    def _without_rule(self) -> tuple[str, ...]:
        """The operators, without a rule, that read what rounding may have changed."""
        changed, found = set(self._units), set()
        for node in self._evaluator.nodes:
            if node.op_type in VALUELESS or changed.isdisjoint({*node.input, *captured(node.onnx_node)}):
                continue
            changed.update(filter(None, node.output))
            if rule_for(node) is None:
                found.add(node.op_type)
        return tuple(sorted(found))


def _rounded(exact: ir.Model, stored: ir.Model) -> dict[str, Unit]:
    """How each weight was rounded, by its name, if it was."""
    units = {}
    for name, value in exact.graph.initializers.items():
        unrounded = value.const_value
        if unrounded is None or unrounded.dtype not in FLOATS:
            continue
        other = stored.graph.initializers.get(name)
        tensor = None if other is None else other.const_value
        if tensor is None or tensor.dtype not in UNITS or tensor.shape != unrounded.shape:
            raise BnfoldError(
                f"the stored graph has no weight {name!r} of shape {unrounded.shape}; fold the model again"
            )
        if not np.array_equal(tensor.numpy().astype(np.float64), unrounded.numpy().astype(np.float64)):
            units[name] = UNITS[tensor.dtype]
    return units
