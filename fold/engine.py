"""Folding, step by step: trace the laws, solve the gauges, re-express the weights, rewrite a copy of the graph."""

import time
from collections.abc import Iterable

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from fold.errors import BnfoldError
from fold.gauge import Absorber, Candidate, Cause, Gauges, Refusal
from fold.graph import constant, display_name, float64, is_float, is_standard
from fold.laws import LAWS
from fold.report import Folded, FoldReport, Kept
from fold.rewrite import Change, apply, express
from fold.solver import Solution, guilty, solve

BATCHNORM = "BatchNormalization"


def fold_model(model: ir.Model, *, open_activations: bool = False) -> tuple[ir.Model, FoldReport]:
    """Fold every BatchNorm of `model` that exact algebra can remove while activations stay as they are.

    Returns a new model and what became of each BatchNorm; `model` is not touched. A model without a BatchNorm that can
    go comes back equal. Arithmetic is in float64, and every weight is rounded once, to the type it was stored in.
    Raises `BnfoldError` for `open_activations`: no law of this version opens one.
    """
    if open_activations:
        raise BnfoldError("open_activations: this version folds with activations closed only; leave it out")
    started = time.perf_counter()
    model = model.clone()
    if any(_is_batchnorm(node) for function in model.functions.values() for node in function):
        common.InlinePass()(model)  # a function has no weights of its own to fold into
    graph = model.graph
    nodes = [node for node in ir.traversal.RecursiveGraphIterator(graph) if _is_batchnorm(node)]
    if not nodes:
        return model, FoldReport((), (), seconds=time.perf_counter() - started)
    gauges = trace(model)
    solution, changes = _solve_and_express(gauges)
    into = _attribute(gauges, solution, changes)
    channels = {node: _channels(node) for node in nodes}
    warnings = {node: _warning(node) for node in nodes}
    names = apply(graph, changes, solution.vanished)
    folded, kept = [], []
    vanished = {candidate.node for candidate in solution.vanished}
    for node in nodes:
        name, node_name = display_name(node), node.name or ""
        if node in vanished:
            targets = tuple(dict.fromkeys(name for absorber in into[node] for name in names[absorber.node]))
            folded.append(Folded(name, node_name, channels[node], targets, warnings[node]))
        else:
            refusal = solution.refusals.get(node) or Refusal("it is inside a subgraph, where folding stops", name)
            kept.append(Kept(name, node_name, channels[node], refusal.reason, refusal.culprit))
    flushed = sum(change.flushed for change in changes)
    return model, FoldReport(tuple(folded), tuple(kept), flushed, seconds=time.perf_counter() - started)


def trace(model: ir.Model) -> Gauges:
    """Let every node's law write down what it demands. Shapes that are missing are inferred first, in place."""
    graph = model.graph
    outputs = [value for node in graph for value in node.outputs]
    if any(value.dtype is None or (is_float(value) and value.shape is None) for value in outputs):
        common.ShapeInferencePass()(model)
    gauges = Gauges()
    for value in graph.inputs:
        if is_float(value):
            gauges.pin(value, Cause(value.name or "", "is an input of the graph, carried as it is"))
    for node in graph:
        if gauges.known(node):
            continue
        law = LAWS.get(node.op_type) if is_standard(node) else None
        shaped = all(value.shape is not None for value in (*node.inputs, *node.outputs) if value is not None)
        if law is not None and shaped:
            law(node, gauges)
        elif _is_batchnorm(node):
            gauges.keep(node, "the shape of its input is not known")
        else:
            gauges.boundary(node)
        for value in _captured(node):
            gauges.pin(value, Cause(display_name(node), f"({node.op_type}) reads it in a subgraph"))
    for value in graph.outputs:
        if is_float(value):
            gauges.pin(value, Cause(value.name or "", "is an output of the graph, carried as it is"))
    return gauges


def _solve_and_express(gauges: Gauges) -> tuple[Solution, list[Change]]:
    """Solve, and solve again without the BatchNorms whose folded weights would overflow the type they are stored in."""
    refused: dict[ir.Node, Refusal] = {}
    while True:
        solution = solve(gauges, refused)
        vanished = {candidate.node for candidate in solution.vanished}
        kept = [candidate.absorber for candidate in gauges.candidates if candidate.node not in vanished]
        expressed = [express(absorber, solution) for absorber in (*gauges.absorbers, *kept)]
        changes = [change for change in expressed if change is not None]
        overflowing = [change.absorber for change in changes if change.overflows]
        new = {
            candidate.node: Refusal(
                f"its folded weights in {display_name(absorber.node)} would overflow the type that stores them",
                display_name(absorber.node),
            )
            for absorber in overflowing
            for candidate in guilty(solution, absorber)
        }
        if not new:
            return solution, changes
        refused |= new


def _attribute(gauges: Gauges, solution: Solution, changes: list[Change]) -> dict[ir.Node, list[Absorber]]:
    """For each vanished BatchNorm the nearest absorbers that took it up: on what they write before it, or on what they
    read behind it."""
    absorbing = {absorber.node for absorber in gauges.absorbers} | {c.node for c in gauges.candidates}
    changed = {change.absorber.node: change.absorber for change in changes}
    writing = {node for node, absorber in changed.items() if not solution.gauge(absorber.write).trivial}
    reading = {node for node, absorber in changed.items() if not solution.gauge(absorber.read).trivial}
    return {
        candidate.node: [
            *(changed[node] for node in _writers(candidate, absorbing) if node in writing),
            *(changed[node] for node in _readers(candidate, absorbing) if node in reading),
        ]
        for candidate in solution.vanished
    }


def _writers(candidate: Candidate, absorbing: set[ir.Node]) -> Iterable[ir.Node]:
    """The nearest parametric nodes before a BatchNorm; what other BatchNorms read is theirs to account for."""
    stack, seen = [candidate.node.inputs[0]], set[ir.Value]()
    while stack:
        value = stack.pop()
        producer = None if value is None else value.producer()
        if value is None or value in seen or producer is None or not is_float(value):
            continue
        seen.add(value)
        if producer in absorbing:
            yield producer
        else:
            for read in producer.inputs:
                others = [] if read is None else [user for user, _ in read.uses() if user is not candidate.node]
                if not any(_is_batchnorm(user) for user in others):
                    stack.append(read)


def _readers(candidate: Candidate, absorbing: set[ir.Node]) -> Iterable[ir.Node]:
    """The nearest parametric nodes behind a BatchNorm."""
    stack, seen = [candidate.node.outputs[0]], set[ir.Value]()
    while stack:
        value = stack.pop()
        if value in seen or not is_float(value):
            continue
        seen.add(value)
        for reader, _ in value.uses():
            if reader in absorbing:
                yield reader
            else:
                stack.extend(reader.outputs)


def _is_batchnorm(node: ir.Node) -> bool:
    return node.op_type == BATCHNORM and is_standard(node)


def _captured(node: ir.Node) -> Iterable[ir.Value]:
    """Float tensors of the outer graph that the subgraphs of a node (If, Loop, Scan) read."""
    for attribute in node.attributes.values():
        graphs = (
            [attribute.as_graph()]
            if attribute.type == ir.AttributeType.GRAPH
            else attribute.as_graphs()
            if attribute.type == ir.AttributeType.GRAPHS
            else []
        )
        for subgraph in graphs:
            own = {id(output) for inner in subgraph.all_nodes() for output in inner.outputs}
            own |= {id(value) for value in (*subgraph.inputs, *subgraph.initializers.values())}
            read = [*subgraph.outputs, *(value for inner in subgraph.all_nodes() for value in inner.inputs)]
            yield from (value for value in read if value is not None and is_float(value) and id(value) not in own)


def _channels(node: ir.Node) -> int:
    shape = next((value.shape for value in node.inputs[1:5] if value is not None and value.shape is not None), None)
    return int(shape.numpy()[0]) if shape is not None and shape.is_static() and len(shape) == 1 else 0


def _warning(node: ir.Node) -> str | None:
    mean, variance = (constant(value) for value in node.inputs[3:5])
    if mean is None or variance is None or np.any(float64(mean) != 0) or np.any(float64(variance) != 1):
        return None
    return "never trained: its statistics are still mean 0, variance 1"
