"""Which fold is guilty, where a certificate fails, and the first layer whose activations differ."""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from fold.arrays import Arrays
from fold.engine import FoldReport, Gauge, fold_graph
from fold.errors import BnfoldError
from fold.evaluate import Evaluator
from fold.graph import display_name, is_float
from fold.proof.algebra import LIMIT, apart, depth
from fold.proof.decisions import FACTOR, FLOORS
from fold.proof.rounding import Fault

RunAll = Callable[[ir.Model, Arrays], Arrays]
"""Runs a graph whose every tensor is an output, as it is served."""


@dataclass(frozen=True)
class Located:
    """`batchnorm` is the fold that is guilty, `layer` the first one whose activations differ, each None where there is
    no such thing; `advice` says what to do."""

    batchnorm: str | None
    layer: str | None
    advice: str

    @property
    def message(self) -> str:
        what = [f"the fold of {self.batchnorm} is wrong"] if self.batchnorm else []
        what += [f"the first layer that differs is {self.layer}"] if self.layer else []
        return "; ".join([*what, self.advice])

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "message": self.message}


def of_algebra(unfolded: ir.Model, inputs: Arrays, *, open_activations: bool) -> Located:
    """Where the algebra is wrong: folds are taken back by bisection until the first that does harm is left."""
    truth = Evaluator(unfolded)(inputs)
    limit = LIMIT * max(depth(unfolded.graph), 1)

    def wrong(leave: frozenset[str]) -> bool:
        folding = fold_graph(unfolded, open_activations=open_activations, exact=True, leave=leave)
        return not apart(truth, Evaluator(folding.model)(inputs))[0] <= limit

    whole = fold_graph(unfolded, open_activations=open_activations, exact=True)
    names = list(dict.fromkeys(folded.name for folded in whole.report.folded))
    guilty = None
    if names and not wrong(frozenset(names)):
        right, harmful = 0, len(names)  # with the first `right` folds the graph is right, with `harmful` it is not
        while harmful - right > 1:
            middle = (right + harmful) // 2
            right, harmful = (right, middle) if wrong(frozenset(names[middle:])) else (middle, harmful)
        guilty = names[harmful - 1]
    layer = _first_apart(unfolded, whole.model, whole.carried, inputs)
    return Located(guilty, layer, "this is an error of bnfold: report it with the model, and serve the unfolded graph")


def of_rounding(faults: tuple[Fault, ...], report: FoldReport) -> Located:
    """Where the stored graph is not what folding gives: the first wrong weight, and the fold that made it."""
    first = faults[0]
    into = next((folded.name for folded in report.folded if first.name in folded.into), None)
    return Located(into, first.layer or None, f"{first.name} {first.what}; fold the model again")


def of_run_time(stored: ir.Model, inputs: Arrays, served: RunAll, plain: RunAll, precision: str) -> Located:
    """Where a right graph is computed wrongly: the first layer that, as served, is further from float64 than rounding
    puts the same graph run node by node, of this `precision`."""
    watched = _all_outputs(stored)
    truth: Arrays = {}
    Evaluator(stored)(inputs, on_tensor=truth.__setitem__)
    as_served, as_written = served(watched, inputs), plain(watched, inputs)
    layer = None
    for node in stored.graph:
        for output in node.outputs:
            name = output.name or ""
            if layer is None and name in truth and name in as_served:
                R, F, U = truth[name], as_served[name].astype(np.float64), as_written[name].astype(np.float64)
                size = np.abs(R).max(initial=0)
                allowed = FACTOR * np.abs(U - R).max(initial=0) + FLOORS[precision] * size
                if not np.abs(F - R).max(initial=0) <= allowed:
                    layer = display_name(node)
    return Located(None, layer, "the graph is right, but this provider computes it less exactly; serve it on another")


def _first_apart(unfolded: ir.Model, folded: ir.Model, carried: dict[str, Gauge], inputs: Arrays) -> str | None:
    """The first layer of the folded graph that does not write what it should carry, `p*x + q`."""
    truth: Arrays = {}
    Evaluator(unfolded)(inputs, on_tensor=truth.__setitem__)
    makers = {output.name: node for node in folded.graph for output in node.outputs}
    found: list[str] = []

    def compare(name: str, array: np.ndarray) -> None:
        if found or name not in truth or name not in carried:
            return
        gauge = carried[name]
        with np.errstate(invalid="ignore"):
            expected = gauge.p * truth[name] + gauge.q
        meant = np.isfinite(expected)  # where p is infinite anything may be carried
        if expected.shape != array.shape or not apart({name: expected[meant]}, {name: array[meant]})[0] <= _NOISE:
            found.append(name)

    try:
        Evaluator(folded)(inputs, on_tensor=compare)
    except BnfoldError:
        return None
    return display_name(makers[found[0]]) if found and found[0] in makers else None


_NOISE = 1e-9
"""Far above float64's rounding within one model, far below what a wrong fold does."""


def _all_outputs(model: ir.Model) -> ir.Model:
    """A copy of a graph that gives every float tensor that it computes."""
    model = model.clone()
    outputs = model.graph.outputs
    new: Iterable[ir.Value] = [value for node in model.graph for value in node.outputs if is_float(value)]
    outputs.extend(value for value in new if not value.is_graph_output() and value.name)
    return model
