"""Folding, step by step: trace the laws, solve the gauges, re-express the weights, rewrite a copy of the graph."""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from fold.engine.affine import Gauge
from fold.engine.attribution import find_absorbers, find_normalised
from fold.engine.branches import find_branches
from fold.engine.gauge import Candidate, Gauges
from fold.engine.laws import LAWS, normalises_input, written_out
from fold.engine.opening import activations_around, activations_beside, borders_behind, cheap_borders_behind
from fold.engine.reasons import Code, Reason
from fold.engine.report import Folded, FoldReport, Kept, TensorSize
from fold.engine.rewrite import Change, apply, can_store, express, merge, round_weights
from fold.engine.solver import Solution, guilty, loud, solve
from fold.graph import constant, display_name, float64, infer_shapes, is_batchnorm, is_float, is_standard


@dataclass(frozen=True)
class Folding:
    """A folded graph, what became of each BatchNorm, and what its tensors carry of those of the source.

    `carried` has p and q by the name of a float tensor, spread over it by numpy's rules: where the folded graph has a
    tensor of that name, it holds `p*x + q` for the source's x. An infinite p tells that it may hold anything.
    """

    model: ir.Model
    report: FoldReport
    carried: dict[str, Gauge] = field(default_factory=dict)


def fold_model(model: ir.Model, *, open_activations: bool = False) -> tuple[ir.Model, FoldReport]:
    """Fold every BatchNorm of `model` that exact algebra can remove.

    With `open_activations`, a ReLU or clip beside a BatchNorm that would stay may become a clip by channel (Max, Min),
    and a padded convolution behind one may be followed by a constant map, or read a channel of ones: fewer
    BatchNorms, and not always faster. Without it this is done only where no pass over a tensor is added.

    Returns a new model and what became of each BatchNorm; `model` is not touched. A model without a BatchNorm comes
    back equal. Arithmetic is in float64, and every weight is rounded once, to the type it was stored in.
    """
    folding = fold_graph(model, open_activations=open_activations)
    return folding.model, folding.report


def fold_graph(
    model: ir.Model, *, open_activations: bool = False, exact: bool = False, leave: frozenset[str] = frozenset()
) -> Folding:
    """As `fold_model`, for a proof. With `exact` the same is decided, but new weights are left in float64 behind values
    of the type that would store them. The BatchNorms named in `leave` are not folded."""
    started = time.perf_counter()
    source, model = model, model.clone()
    if any(is_batchnorm(node) for function in model.functions.values() for node in function):
        common.InlinePass()(model)  # a function has no weights of its own to fold into
    graph = model.graph
    declared = [value.shape for value in graph.outputs]
    batchnorms = _find_batchnorms(model)
    if not batchnorms and not any(normalises_input(node) for node in graph):
        return Folding(source.clone(), FoldReport((), (), seconds=time.perf_counter() - started))
    left = {found.node for found in batchnorms if found.name in leave}
    merged, branches_merged = _merge(graph, left)
    gauges, solution, changes = _solve(model, open_activations, left, exact=exact)
    into = find_absorbers(gauges, solution, changes)
    normalised = find_normalised(gauges, solution, changes)
    carried = {value.name: solution.gauge(layout) for value, layout in gauges.layouts.items() if value.name}
    names = apply(graph, changes, solution.vanished)
    for value, shape in zip(graph.outputs, declared, strict=True):  # inference may know more than the source declares
        value.shape = value.shape if shape is None else shape
    vanished = {candidate.node for candidate in solution.vanished}
    steps = {change.absorber.node: len(change.steps) for change in changes if change.steps is not None}
    folded, kept = [], []
    for found in batchnorms:
        if found.node in merged:
            folded.append(Folded(found.name, found.node_name, found.channels, merged[found.node], found.warning))
        elif found.node in vanished:
            targets = tuple(dict.fromkeys(name for absorber in into[found.node] for name in names[absorber.node]))
            folded.append(Folded(found.name, found.node_name, found.channels, targets, found.warning))
        else:
            why = solution.kept.get(found.node) or Reason(Code.IN_SUBGRAPH, found.name)
            passes = steps.get(found.node, found.operators)
            kept.append(Kept(found.name, found.node_name, found.channels, why, found.tensor, passes))
    flushed = sum(change.flushed for change in changes) + round_weights(graph, exact=exact)
    normalization = None if normalised is None else normalised.report(solution, names)
    seconds = time.perf_counter() - started
    report = FoldReport(tuple(folded), tuple(kept), flushed, branches_merged, seconds, normalization)
    return Folding(model, report, carried)


def _merge(graph: ir.Graph, left: set[ir.Node]) -> tuple[dict[ir.Node, tuple[str, ...]], int]:
    """Merge parallel branches that hold none of `left`; for each node that went, the initializers that took it up, and
    how many branches did.

    Before anything is solved: a scale that had to pass an identity branch would otherwise grow from block to block.
    """
    merged: dict[ir.Node, tuple[str, ...]] = {}
    count = 0
    for root, branches in find_branches(graph):
        if not left & branches.nodes and can_store(branches, root.outputs[0]):
            names = merge(graph, root, branches)
            merged |= dict.fromkeys(branches.nodes, names)
            count += branches.count
    return merged, count


@dataclass(frozen=True)
class _BatchNorm:
    """One to report, described before anything changes. `node` is its only or last node."""

    node: ir.Node
    name: str
    node_name: str
    channels: int
    warning: str | None
    tensor: TensorSize
    operators: int


def batchnorm_nodes(model: ir.Model) -> Iterator[tuple[tuple[ir.Node, ...], int]]:
    """The nodes and channels of every BatchNormalization, also in subgraphs, and of every one that is written out with
    constants, in graph order. Shapes were inferred."""
    spoken_for = set[ir.Node]()
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        if is_batchnorm(node):
            yield (node,), _channels(node)
        elif node not in spoken_for and node.graph is model.graph and (run := written_out(node)) is not None:
            spoken_for.update(run[0])
            yield run


def _find_batchnorms(model: ir.Model) -> list[_BatchNorm]:
    infer_shapes(model)
    found = []
    for nodes, channels in batchnorm_nodes(model):
        last = nodes[-1]
        warning = _warning(last) if is_batchnorm(last) else None
        size = TensorSize.of(last.outputs[0])
        found.append(
            _BatchNorm(last, display_name(last), last.name or "", channels, warning, size, operators=len(nodes))
        )
    return found


def trace(graph: ir.Graph, opened: frozenset[ir.Node] = frozenset()) -> Gauges:
    """Let every node's law write down what it demands; `opened` nodes may become other operators."""
    gauges = Gauges(opened)
    for value in graph.inputs:
        if is_float(value):
            gauges.pin(value, Reason(Code.GRAPH_INPUT, value.name or ""))
    for node in graph:
        if gauges.known(node):
            continue
        law = LAWS.get(node.op_type) if is_standard(node) else None
        shaped = all(value.shape is not None for value in (*node.inputs, *node.outputs) if value is not None)
        if law is not None and shaped:
            law(node, gauges)
        elif is_batchnorm(node):
            gauges.keep(node, Reason(Code.UNKNOWN_SHAPE, display_name(node)))
        else:
            gauges.boundary(node)
        for value in _captured(node):
            gauges.pin(value, Reason(Code.READ_IN_SUBGRAPH, display_name(node), {"operator": node.op_type}))
    for value in graph.outputs:
        if is_float(value):
            gauges.pin(value, Reason(Code.GRAPH_OUTPUT, value.name or ""))
    return gauges


Solved = tuple[Gauges, Solution, list[Change]]


def _solve(model: ir.Model, open_activations: bool, left: set[ir.Node], *, exact: bool) -> Solved:
    """Solve with everything closed, then open nodes step by step where it helps: near the BatchNorms that stay, and,
    if activations may be opened, near those whose shift is louder than the signal that others read."""

    def solved(gauges: Gauges) -> Solved:
        return gauges, *_solve_and_express(gauges, left, exact=exact)

    def too_loud(solution: Solution) -> list[Candidate]:
        return loud(solution) if open_activations else []

    def merit(solution: Solution) -> tuple[int, int]:
        return sum(candidate.reported for candidate in solution.vanished), -len(too_loud(solution))

    best = solved(trace(model.graph))
    searches = (activations_beside, activations_around, borders_behind) if open_activations else (cheap_borders_behind,)
    opened = frozenset[ir.Node]()
    for search in searches:
        gauges, solution, _ = best
        staying = [c for c in gauges.candidates if c.reported and c.node in solution.kept.keys() - left]
        more = search([*staying, *too_loud(solution)]) - opened
        if not more:
            continue
        opened |= more
        trial = solved(trace(model.graph, opened))
        if merit(trial[1]) > merit(best[1]):
            best = trial
    return best


def _solve_and_express(gauges: Gauges, left: set[ir.Node], *, exact: bool) -> tuple[Solution, list[Change]]:
    """Solve, and solve again without the BatchNorms whose folded weights would overflow the type they are stored in."""
    refused = {node: Reason(Code.LEFT, display_name(node)) for node in left}
    while True:
        solution = solve(gauges, refused)
        vanished = {candidate.node for candidate in solution.vanished}
        kept = [candidate.absorber for candidate in gauges.candidates if candidate.node not in vanished]
        expressed = [express(absorber, solution, exact=exact) for absorber in (*gauges.absorbers, *kept)]
        changes = [change for change in expressed if change is not None]
        overflowing = [change.absorber for change in changes if change.overflows]
        new = {
            candidate.node: Reason(Code.OVERFLOW, display_name(absorber.node))
            for absorber in overflowing
            for candidate in guilty(solution, absorber)
        }
        if not new:
            return solution, changes
        refused |= new


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
