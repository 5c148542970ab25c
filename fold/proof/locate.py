"""Where the fault is if a certificate fails: the wrong fold, and the first layer whose activations differ."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from fold.arrays import Arrays
from fold.engine import FoldReport, Gauge, fold_graph
from fold.errors import BnfoldError
from fold.evaluate import Evaluator, NoisyEvaluator
from fold.graph import described, display_name, infer_shapes, is_float
from fold.proof.algebra import largest_difference
from fold.proof.decisions import FACTOR, FLOORS
from fold.proof.rounding import Fault

NOISE = 1e-9
"""A relative difference of activations, far above float64's rounding within a model, far below that of a wrong fold."""

REPORT_REFERENCE = (
    "nothing is proven by such a reference: report the node and its attributes as an error of bnfold, and serve the "
    "unfolded model"
)

RunAll = Callable[[ir.Model, Arrays], Arrays]
"""Runs a graph all of whose tensors are outputs, as it is served."""


@dataclass(frozen=True)
class Located:
    """`batchnorm` is the BatchNorm whose fold is wrong, `layer` the first layer whose activations are wrong; None if
    there is none. `fault` says how they are wrong, `advice` what to do."""

    batchnorm: str | None
    layer: str | None
    advice: str
    fault: str = "the first layer that differs is"

    @property
    def message(self) -> str:
        what = [f"the fold of {self.batchnorm} is wrong"] if self.batchnorm else []
        what += [f"{self.fault} {self.layer}"] if self.layer else []
        return "; ".join([*what, self.advice])

    def to_dict(self) -> dict[str, Any]:
        return {"batchnorm": self.batchnorm, "layer": self.layer, "advice": self.advice, "message": self.message}


def of_algebra(unfolded: ir.Model, inputs: Arrays, limit: float, *, open_activations: bool) -> Located:
    """Where part A fails on `inputs`: the graphs differ by more than `limit`. Bisection over the folds finds the first
    one that makes the graph wrong."""
    truth = Evaluator(unfolded)(inputs)

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
    layer = _first_different(unfolded, whole.model, whole.carried, inputs, max(limit, NOISE))
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


def of_reference(unfolded: ir.Model, inputs: Arrays, plain: RunAll) -> Located:
    """Where R and U part: the first node whose tensor in float64 is further from that of ONNX Runtime, run node by node
    (`plain`), than a multiple of rounding moves it."""
    truth: Arrays = {}
    noisy: Arrays = {}
    layer, fault = None, "the first node where they part is"
    unfolded = unfolded.clone()
    infer_shapes(unfolded)
    try:
        Evaluator(unfolded)(inputs, on_tensor=truth.__setitem__)
        NoisyEvaluator(unfolded)(inputs, 0, record=noisy)
        written = plain(_all_outputs(unfolded), inputs)
    except BnfoldError:
        return Located(None, None, REPORT_REFERENCE)
    for node in unfolded.graph:
        names = [output.name for output in node.outputs if output.name in truth and output.name in written]
        if any(_part(truth[name], noisy[name], written[name]) for name in names if name is not None):
            layer = described(node)
            break
    return Located(None, layer, REPORT_REFERENCE, fault)


def of_nothing(unfolded: ir.Model, inputs: Arrays) -> Located:
    """The first node that writes no finite number, if an output has none."""
    empty: set[str] = set()

    def note(name: str, array: np.ndarray) -> None:
        if not np.isfinite(array).any():
            empty.add(name)

    shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in inputs.items())
    advice = f"the inputs were {shapes}; if other sizes are needed, give them by --input"
    try:
        Evaluator(unfolded)(inputs, on_tensor=note)
    except BnfoldError:
        return Located(None, None, advice)
    nodes = (node for node in unfolded.graph if node.op_type != "Constant")
    first = next((node for node in nodes if any(output.name in empty for output in node.outputs)), None)
    layer = None if first is None else described(first)
    return Located(None, layer, advice, "the first node that writes no finite number is")


def _part(exact: np.ndarray, noisy: np.ndarray, other: np.ndarray) -> bool:
    if exact.shape != other.shape or exact.shape != noisy.shape:
        return True
    wide = other.astype(np.float64)
    finite = np.isfinite(exact) & np.isfinite(wide)
    if (~np.isfinite(exact) & np.isfinite(wide)).any():
        return True
    size = np.abs(exact[finite]).max(initial=0)
    explained = np.abs(noisy - exact)[finite & np.isfinite(noisy)].max(initial=0)
    return bool(np.abs(wide - exact)[finite].max(initial=0) > max(FLOORS["fp32"] * size, explained))


def _first_different(
    unfolded: ir.Model, folded: ir.Model, carried: dict[str, Gauge], inputs: Arrays, limit: float
) -> str | None:
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
        if not same_shape or not largest_difference({name: expected[known]}, {name: array[known]})[0] <= limit:
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
