"""Folding, step by step: trace the laws, solve the gauges, re-express the weights, rewrite a copy of the graph."""

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from fold.engine.affine import Gauge
from fold.engine.attribution import find_absorbers, find_input_scaling
from fold.engine.branches import find_branches
from fold.engine.gauge import BEHIND, IN_FRONT, Candidate, Gauges
from fold.engine.laws import LAWS, Kind, find_affines, scales_input, written_out
from fold.engine.opening import activations_around, activations_beside, borders_behind, cheap_borders_behind
from fold.engine.padding import find_padding
from fold.engine.reasons import Code, Reason
from fold.engine.report import Affines, Folded, FoldReport, Kept, TensorSize
from fold.engine.rewrite import Change, apply, can_store, express, merge, merge_padding, round_weights
from fold.engine.solver import Solution, sharing_scales, solve, with_large_shifts
from fold.graph import (
    constant,
    correct_shapes,
    display_name,
    float64,
    infer_shapes,
    integers,
    is_batchnorm,
    is_float,
    is_standard,
)


@dataclass(frozen=True)
class Folding:
    """A folded graph, its report, and the gauge of each of its tensors.

    `carried` has (p, q) by the name of a float tensor, broadcastable to it: the folded graph's tensor of that name
    holds `p*x + q` for the source's x. Where p is infinite, it may hold anything. `unchanged` if there was nothing to
    fold: the graph is the source's to the letter.
    """

    model: ir.Model
    report: FoldReport
    carried: dict[str, Gauge] = field(default_factory=dict)
    unchanged: bool = False


def fold_model(model: ir.Model, *, open_activations: bool = False) -> tuple[ir.Model, FoldReport]:
    """Fold every BatchNorm of `model` that exact algebra can remove.

    With `open_activations`, a ReLU or clip beside a BatchNorm that would stay may be rewritten as a clip by channel
    (Max, Min), and a padded convolution behind one may be followed by a constant map, or read a channel of ones. This
    leaves fewer BatchNorms, and is not always faster. Without it, it is done only where no pass over a tensor is added.
    Other products and sums with constants, and parallel branches, are folded too where that leaves fewer nodes.

    Returns a new model and a report on each BatchNorm; `model` is not changed. A model without any of these is returned
    equal. Stored shapes that contradict the operators are inferred anew. All arithmetic is in float64, and every weight
    is rounded once, to the type in which it was stored.
    """
    folding = fold_graph(correct_shapes(model), open_activations=open_activations)
    return folding.model, folding.report


def fold_graph(
    model: ir.Model, *, open_activations: bool = False, exact: bool = False, leave: frozenset[str] = frozenset()
) -> Folding:
    """As `fold_model`, for a proof. With `exact` the decisions are the same, but new weights stay in float64, although
    their values declare the type that would store them. The BatchNorms named in `leave` are not folded."""
    # 1. Copy the model and find its BatchNorms.
    started = time.perf_counter()
    source, model = model, model.clone()
    if any(is_batchnorm(node) for function in model.functions.values() for node in function):
        common.InlinePass()(model)  # a function has no weights of its own to fold into
    graph = model.graph
    declared = [value.shape for value in graph.outputs]
    batchnorms, affines = _find_batchnorms(model), list(find_affines(graph))
    # 2. Merge padding and parallel branches, then solve the gauges and compute the new weights.
    excluded = {found.node for found in batchnorms if found.name in leave}
    pads = {}
    for padding in list(find_padding(graph)) if batchnorms or any(map(scales_input, graph)) else ():
        if not any(integers(padding.conv, "pads")):
            pads[padding.conv] = padding.pad
        merge_padding(graph, padding)
    merged, branches_merged = _merge(graph, excluded)
    gauges, solution, changes = _solve(model, open_activations, excluded, pads, exact=exact)
    # 3. Note which weights absorb what, while the graph is still the source's.
    if not batchnorms and not changes and not solution.removed and not branches_merged:
        report = FoldReport((), (), seconds=time.perf_counter() - started, affines=_counted(affines, set()))
        return Folding(source.clone(), report, unchanged=True)
    into = find_absorbers(gauges, solution, changes)
    scaling = find_input_scaling(gauges, solution, changes)
    carried = {value.name: solution.gauge(layout) for value, layout in gauges.layouts.items() if value.name}
    # 4. Store the new weights and remove BatchNorms.
    names = apply(graph, changes, solution.removed)
    flushed = sum(change.flushed for change in changes) + round_weights(graph, exact=exact)
    for value, shape in zip(graph.outputs, declared, strict=True):  # inference may know more than the source declares
        value.shape = value.shape if shape is None else shape
    # 5. Report on each BatchNorm.
    removed = {candidate.node for candidate in solution.removed}
    steps = {change.absorber.node: len(change.steps) for change in changes if change.steps is not None}
    folded, kept = [], []
    for found in batchnorms:
        if found.node in merged:
            folded.append(Folded(found.name, found.node_name, found.channels, merged[found.node], found.warning))
        elif found.node in removed:
            targets = tuple(dict.fromkeys(name for absorber in into[found.node] for name in names[absorber.node]))
            folded.append(Folded(found.name, found.node_name, found.channels, targets, found.warning))
        else:
            why = solution.kept.get(found.node) or Reason(Code.IN_SUBGRAPH, found.name)
            passes = steps.get(found.node, found.operators)
            kept.append(Kept(found.name, found.node_name, found.channels, why, found.tensor, passes))
    normalization = None if scaling is None else scaling.report(solution, names)
    seconds = time.perf_counter() - started
    counts = _counted(affines, removed | merged.keys())
    report = FoldReport(tuple(folded), tuple(kept), flushed, branches_merged, seconds, normalization, counts)
    return Folding(model, report, carried)


def _counted(affines: list[tuple[Kind, tuple[ir.Node, ...]]], removed: set[ir.Node]) -> tuple[Affines, ...]:
    """How many chains of each kind there are, and of how many the last node was removed."""
    counts: dict[Kind, list[int]] = {}
    for kind, nodes in affines:
        counts.setdefault(kind, [0, 0])[nodes[-1] not in removed] += 1
    return tuple(Affines(str(kind), *counts[kind]) for kind in Kind if kind in counts)


def _merge(graph: ir.Graph, excluded: set[ir.Node]) -> tuple[dict[ir.Node, tuple[str, ...]], int]:
    """Merge parallel branches that contain no excluded node. Returns for each removed node the initializers that
    absorbed it, and the number of branches merged.

    This is done before the gauges are solved: a scale that has to pass an identity branch would otherwise grow from
    block to block.
    """
    merged: dict[ir.Node, tuple[str, ...]] = {}
    count = 0
    for root, branches in find_branches(graph):
        if not excluded & branches.nodes and can_store(branches, root.outputs[0]):
            names = merge(graph, root, branches)
            merged |= dict.fromkeys(branches.nodes, names)
            count += branches.count
    return merged, count


@dataclass(frozen=True)
class _BatchNorm:
    """A BatchNorm to report on, as it was before the fold. `node` is its only or last node."""

    node: ir.Node
    name: str
    node_name: str
    channels: int
    warning: str | None
    tensor: TensorSize
    operators: int


def batchnorm_nodes(model: ir.Model) -> Iterator[tuple[tuple[ir.Node, ...], int]]:
    """In graph order the nodes and channels of every BatchNormalization, also in subgraphs, and of every BatchNorm that
    is written out as products and sums. Shapes must have been inferred."""
    covered = set[ir.Node]()
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        if is_batchnorm(node):
            yield (node,), _channels(node)
        elif node not in covered and node.graph is model.graph and (run := written_out(node)) is not None:
            covered.update(run[0])
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


def trace(graph: ir.Graph, opened: frozenset[ir.Node], pads: Mapping[ir.Node, ir.Node]) -> Gauges:
    """Apply the law of every node; `opened` nodes may be rewritten as other operators. `pads` has the Pad that was
    merged into a convolution, by the convolution."""
    gauges = Gauges(opened, pads)
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


def _solve(
    model: ir.Model,
    open_activations: bool,
    excluded: set[ir.Node],
    pads: Mapping[ir.Node, ir.Node],
    *,
    exact: bool,
) -> Solved:
    """Solve with nothing opened, then open nodes step by step and keep what helps: near BatchNorms that are kept, and,
    if activations may be opened, near those whose shift is larger than the signal that other nodes read."""

    def solved(gauges: Gauges) -> Solved:
        return gauges, *_solve_and_express(gauges, excluded, exact=exact)

    def too_large(solution: Solution) -> list[Candidate]:
        return with_large_shifts(solution) if open_activations else []

    def merit(solution: Solution) -> tuple[int, int]:
        return sum(candidate.reported for candidate in solution.removed), -len(too_large(solution))

    best = solved(trace(model.graph, frozenset(), pads))
    searches = (activations_beside, activations_around, borders_behind) if open_activations else (cheap_borders_behind,)
    opened = frozenset[ir.Node]()
    for search in searches:
        gauges, solution, _ = best
        kept = [c for c in gauges.candidates if c.reported and c.node in solution.kept.keys() - excluded]
        more = search([*kept, *too_large(solution)]) - opened
        if not more:
            continue
        opened |= more
        trial = solved(trace(model.graph, opened, pads))
        if merit(trial[1]) > merit(best[1]):
            best = trial
    plain = {c.node for c in best[1].removed if not c.reported and not scales_input(c.node)}
    if not plain or _gain(best) > 0:
        return best
    without = best[0], *_solve_and_express(best[0], excluded | plain, exact=exact)
    return best if _gain(best) > _gain(without) else without


def _gain(solved: Solved) -> int:
    """How many nodes fewer a solution leaves of products and sums with constants, not counting BatchNorms. Less
    than nothing if it stores a second copy of weights that several nodes share."""
    _, solution, changes = solved
    gone = sum(len(c.absorber.nodes) for c in solution.removed if not c.reported)
    for change in changes:
        if change.steps is not None:
            gone += len(change.absorber.nodes) - len(change.steps)
        gone -= sum(index in (BEHIND, IN_FRONT) for _, index in change.constants)
    copied = sum(
        stored.tensor.nbytes
        for change in changes
        for (node, index), stored in change.constants.items()
        if 0 <= index < len(node.inputs) and (old := node.inputs[index]) is not None and len(old.uses()) > 1
        if len(stored.tensor.shape) > 1  # not biases, which exporters share where they are equal by chance
    )
    return -copied or gone


def _solve_and_express(gauges: Gauges, excluded: set[ir.Node], *, exact: bool) -> tuple[Solution, list[Change]]:
    """Solve, and solve again without the BatchNorms whose folded weights would overflow the type that stores them."""
    refused = {node: Reason(Code.LEFT, display_name(node)) for node in excluded}
    while True:
        solution = solve(gauges, refused)
        removed = {candidate.node for candidate in solution.removed}
        kept = [candidate.absorber for candidate in gauges.candidates if candidate.node not in removed]
        expressed = [express(absorber, solution, exact=exact) for absorber in (*gauges.absorbers, *kept)]
        changes = [change for change in expressed if change is not None]
        overflowing = [change.absorber for change in changes if change.overflows]
        new = {
            candidate.node: Reason(Code.OVERFLOW, display_name(absorber.node))
            for absorber in overflowing
            for candidate in sharing_scales(solution, absorber)
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
