"""Who took up what vanished: the weights before a BatchNorm or behind it, and those behind a normalised input."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import onnx_ir as ir

from fold.engine.gauge import Absorber, Candidate, Gauges
from fold.engine.laws import normalises_input
from fold.engine.report import ScalingOutcome
from fold.engine.rewrite import Change
from fold.engine.solver import Solution
from fold.graph import is_batchnorm, is_float


def find_absorbers(gauges: Gauges, solution: Solution, changes: list[Change]) -> dict[ir.Node, list[Absorber]]:
    """For each vanished BatchNorm the nearest absorbers that took it up: on what they write before it, or on what they
    read behind it."""
    absorbing = _absorbing(gauges) | {candidate.node for candidate in gauges.candidates}
    changed = {change.absorber.node: change.absorber for change in changes}
    writing = {node for node, absorber in changed.items() if not solution.gauge(absorber.write).trivial}
    reading = {node for node, absorber in changed.items() if not solution.gauge(absorber.read).trivial}
    moved = _moved(gauges, solution)
    return {
        candidate.node: [
            *(changed[node] for node in _writers(candidate, absorbing, moved) if node in writing),
            *(changed[node] for node in _readers(candidate.absorber.result, absorbing, moved) if node in reading),
        ]
        for candidate in solution.vanished
    }


Moved = Callable[[ir.Value], bool]
"""Whether a tensor is not carried as it is: where it is, no change of weights has come or gone this way."""


def _moved(gauges: Gauges, solution: Solution) -> Moved:
    def moved(value: ir.Value) -> bool:
        layout = gauges.layouts.get(value)  # none inside of what one absorber speaks for, a product and its bias
        return is_float(value) and (layout is None or not solution.gauge(layout).trivial)

    return moved


def _absorbing(gauges: Gauges) -> set[ir.Node]:
    return {absorber.node for absorber in gauges.absorbers if absorber.divides}


@dataclass(frozen=True)
class Normalised:
    """The two halves of an input's standardisation, the input's name, and who took them up."""

    input: str
    scale: Candidate
    shift: Candidate
    into: tuple[ir.Node, ...]

    def report(self, solution: Solution, names: dict[ir.Node, tuple[str, ...]]) -> ScalingOutcome:
        scale, shift = (solution.kept.get(half.node) for half in (self.scale, self.shift))
        beside = scale is not None and solution.gauge(self.scale.v).q.any()  # the product that stays adds it as well
        into = tuple(dict.fromkeys(name for node in self.into for name in names[node]))
        return ScalingOutcome(
            self.input,
            "kept" if scale else "folded",
            into,
            "kept" if shift or beside else "folded" if self.shift.t.any() else "none",
            scale or shift,
        )


def find_normalised(gauges: Gauges, solution: Solution, changes: list[Change]) -> Normalised | None:
    """The standardisation of an input, before anything is changed."""
    halves = [candidate for candidate in gauges.candidates if normalises_input(candidate.node)]
    if not halves:
        return None
    scale, shift = halves
    x: ir.Value | None = scale.absorber.source
    while x is not None and (producer := x.producer()) is not None:
        x = producer.inputs[0]
    vanished = {candidate.node for candidate in solution.vanished}
    absorbing = (_absorbing(gauges) | {candidate.node for candidate in gauges.candidates}) - vanished
    reading = {change.absorber.node for change in changes if not solution.gauge(change.absorber.read).trivial}
    into = [node for node in _readers(shift.absorber.result, absorbing, _moved(gauges, solution)) if node in reading]
    return Normalised((x and x.name) or "", scale, shift, tuple(into))


def _writers(candidate: Candidate, absorbing: set[ir.Node], moved: Moved) -> Iterable[ir.Node]:
    """The nearest parametric nodes before a BatchNorm; what other BatchNorms read is theirs to account for."""
    stack, seen = [candidate.absorber.source], set[ir.Value]()
    while stack:
        value = stack.pop()
        producer = value.producer()
        if value in seen or producer is None or not moved(value):
            continue
        seen.add(value)
        if producer in absorbing:
            yield producer
        else:
            for read in producer.inputs:
                others = [] if read is None else [user for user, _ in read.uses() if user is not candidate.node]
                if read is not None and not any(is_batchnorm(user) for user in others):
                    stack.append(read)


def _readers(value: ir.Value, absorbing: set[ir.Node], moved: Moved) -> Iterable[ir.Node]:
    """The nearest parametric nodes behind what a BatchNorm writes."""
    stack, seen = [value], set[ir.Value]()
    while stack:
        value = stack.pop()
        if value in seen or not moved(value):
            continue
        seen.add(value)
        for reader, _ in value.uses():
            if reader in absorbing:
                yield reader
            else:
                stack.extend(reader.outputs)
