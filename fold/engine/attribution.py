"""Which weights absorbed each removed BatchNorm: those before it, those behind it, or both.

The scaling of an input (`--normalize`) is treated the same.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import onnx_ir as ir

from fold.engine.gauge import Absorber, Candidate, Gauges
from fold.engine.laws import scales_input
from fold.engine.report import ScalingOutcome
from fold.engine.rewrite import Change
from fold.engine.solver import Solution
from fold.graph import is_batchnorm, is_float


def find_absorbers(gauges: Gauges, solution: Solution, changes: list[Change]) -> dict[ir.Node, list[Absorber]]:
    """For each removed BatchNorm the nearest absorbers that changed: before it those whose output has a new gauge,
    behind it those whose input has one."""
    absorbing = _absorbing(gauges) | {candidate.node for candidate in gauges.candidates}
    changed = {change.absorber.node: change.absorber for change in changes}
    writing = {node for node, absorber in changed.items() if not solution.gauge(absorber.write).trivial}
    reading = {node for node, absorber in changed.items() if not solution.gauge(absorber.read).trivial}
    gauged = _gauged(gauges, solution)
    return {
        candidate.node: [
            *(changed[node] for node in _writers(candidate, absorbing, gauged) if node in writing),
            *(changed[node] for node in _readers(candidate.absorber.result, absorbing, gauged) if node in reading),
        ]
        for candidate in solution.removed
    }


Gauged = Callable[[ir.Value], bool]
"""Whether a tensor has another gauge than (1, 0). A search stops at one that has not: no weights changed beyond it."""


def _gauged(gauges: Gauges, solution: Solution) -> Gauged:
    def gauged(value: ir.Value) -> bool:
        layout = gauges.layouts.get(value)  # None inside an absorber of several nodes, such as a product and its bias
        return is_float(value) and (layout is None or not solution.gauge(layout).trivial)

    return gauged


def _absorbing(gauges: Gauges) -> set[ir.Node]:
    return {absorber.node for absorber in gauges.absorbers if absorber.divides}


@dataclass(frozen=True)
class ScalingCandidates:
    """The two halves of an input's scaling, the input's name, and the nodes that absorbed them."""

    input: str
    scale: Candidate
    shift: Candidate
    into: tuple[ir.Node, ...]

    def report(self, solution: Solution, names: dict[ir.Node, tuple[str, ...]]) -> ScalingOutcome:
        scale, shift = (solution.kept.get(half.node) for half in (self.scale, self.shift))
        shift_with_scale = scale is not None and solution.gauge(self.scale.v).q.any()  # the kept product adds it too
        into = tuple(dict.fromkeys(name for node in self.into for name in names[node]))
        return ScalingOutcome(
            self.input,
            "kept" if scale else "folded",
            into,
            "kept" if shift or shift_with_scale else "folded" if self.shift.t.any() else "none",
            scale or shift,
        )


def find_input_scaling(gauges: Gauges, solution: Solution, changes: list[Change]) -> ScalingCandidates | None:
    """The scaling of an input, found before the graph is changed; None where no input is scaled."""
    halves = [candidate for candidate in gauges.candidates if scales_input(candidate.node)]
    if not halves:
        return None
    scale, shift = halves
    x: ir.Value | None = scale.absorber.source
    while x is not None and (producer := x.producer()) is not None:
        x = producer.inputs[0]
    removed = {candidate.node for candidate in solution.removed}
    absorbing = (_absorbing(gauges) | {candidate.node for candidate in gauges.candidates}) - removed
    reading = {change.absorber.node for change in changes if not solution.gauge(change.absorber.read).trivial}
    into = [node for node in _readers(shift.absorber.result, absorbing, _gauged(gauges, solution)) if node in reading]
    return ScalingCandidates((x and x.name) or "", scale, shift, tuple(into))


def _writers(candidate: Candidate, absorbing: set[ir.Node], gauged: Gauged) -> Iterable[ir.Node]:
    """The nearest absorbers before a BatchNorm. Tensors that other BatchNorms read too are left to those."""
    stack, seen = [candidate.absorber.source], set[ir.Value]()
    while stack:
        value = stack.pop()
        producer = value.producer()
        if value in seen or producer is None or not gauged(value):
            continue
        seen.add(value)
        if producer in absorbing:
            yield producer
        else:
            for read in producer.inputs:
                others = [] if read is None else [user for user, _ in read.uses() if user is not candidate.node]
                if read is not None and not any(is_batchnorm(user) for user in others):
                    stack.append(read)


def _readers(value: ir.Value, absorbing: set[ir.Node], gauged: Gauged) -> Iterable[ir.Node]:
    """The nearest absorbers behind a tensor."""
    stack, seen = [value], set[ir.Value]()
    while stack:
        value = stack.pop()
        if value in seen or not gauged(value):
            continue
        seen.add(value)
        for reader, _ in value.uses():
            if reader in absorbing:
                yield reader
            else:
                stack.extend(reader.outputs)
