"""Where the fault is if a certificate fails: the wrong fold, and the first layer whose activations differ."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from fold.arrays import Arrays
from fold.engine import FoldReport, Gauge, fold_graph
from fold.errors import BnfoldError
from fold.evaluate import Evaluator
from fold.graph import display_name, is_float
from fold.proof.algebra import LIMIT, depth, largest_difference
from fold.proof.decisions import FACTOR, FLOORS
from fold.proof.rounding import Fault

NOISE = 1e-9
"""A relative difference of activations, far above float64's rounding within a model, far below that of a wrong fold."""

RunAll = Callable[[ir.Model, Arrays], Arrays]
"""Runs a graph all of whose tensors are outputs, as it is served."""


@dataclass(frozen=True)
class Located:
    """`batchnorm` is the BatchNorm whose fold is wrong, `layer` the first layer whose activations differ; None if there
    is none. `advice` says what to do."""

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
    """Where part A fails. Bisection over the folds finds the first one that makes the graph wrong."""
    truth = Evaluator(unfolded)(inputs)
    limit = LIMIT * max(depth(unfolded.graph), 1)

    def wrong(leave: frozenset[str]) -> bool:
        folding = fold_graph(unfolded, open_activations=open_activations, exact=True, leave=leave)
        return not largest_difference(truth, Evaluator(folding.model)(inputs))[0] <= limit

    whole = fold_graph(unfolded, open_activations=open_activations, exact=True)
    names = list(dict.fromkeys(folded.name for folded in whole.report.folded))
    culprit = None
    if names and not wrong(frozenset(names)):
        right, harmful = 0, len(names)  # the first `right` folds leave the graph right, the first `harmful` do not
        while harmful - right > 1:
            middle = (right + harmful) // 2
            right, harmful = (right, middle) if wrong(frozenset(names[middle:])) else (middle, harmful)
        culprit = names[harmful - 1]
    layer = _first_different(unfolded, whole.model, whole.carried, inputs)
    return Located(culprit, layer, "this is an error of bnfold: report it with the model, and serve the unfolded graph")


def of_rounding(faults: tuple[Fault, ...], report: FoldReport) -> Located:
    """Where part B fails: the first wrong weight or node, and the BatchNorm that was folded into it."""
    first = faults[0]
    into = next((folded.name for folded in report.folded if first.name in folded.into), None)
    return Located(into, first.layer or None, f"{first.name} {first.what}; fold the model again")


def of_run_time(stored: ir.Model, inputs: Arrays, served: RunAll, plain: RunAll, precision: str) -> Located:
    """Where part C fails though the graph is right: the first layer that is too far from float64 as served.

    The allowed distance is that of part C, with the same graph run node by node (`plain`) as U.
    """
    observed = _all_outputs(stored)
    truth: Arrays = {}
    Evaluator(stored)(inputs, on_tensor=truth.__setitem__)
    as_served, as_written = served(observed, inputs), plain(observed, inputs)
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


def _first_different(unfolded: ir.Model, folded: ir.Model, carried: dict[str, Gauge], inputs: Arrays) -> str | None:
    """The first layer of the folded graph whose output is not `p*x + q` of the unfolded graph's tensor x."""
    truth: Arrays = {}
    Evaluator(unfolded)(inputs, on_tensor=truth.__setitem__)
    producers = {output.name: node for node in folded.graph for output in node.outputs}
    found: list[str] = []

    def compare(name: str, array: np.ndarray) -> None:
        if found or name not in truth or name not in carried:
            return
        gauge = carried[name]
        with np.errstate(invalid="ignore"):
            expected = gauge.p * truth[name] + gauge.q
        known = np.isfinite(expected)  # where p is infinite, the tensor may hold anything
        same_shape = expected.shape == array.shape
        if not same_shape or not largest_difference({name: expected[known]}, {name: array[known]})[0] <= NOISE:
            found.append(name)

    try:
        Evaluator(folded)(inputs, on_tensor=compare)
    except BnfoldError:
        return None
    return display_name(producers[found[0]]) if found and found[0] in producers else None


def _all_outputs(model: ir.Model) -> ir.Model:
    """A copy of a graph in which each float tensor that it computes is an output."""
    model = model.clone()
    values = [value for node in model.graph for value in node.outputs if is_float(value)]
    model.graph.outputs.extend(value for value in values if not value.is_graph_output() and value.name)
    return model
