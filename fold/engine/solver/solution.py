"""Which BatchNorms vanish, and under which gauges.

A BatchNorm `v = s*u + t` vanishes if `p_u = s*p_v` and `q_u = t*p_v + q_v` hold beside everything that the laws demand.
Scales are solved first (scales), then shifts (shifts). BatchNorms are taken in graph order, each whole or
not at all, before lone products and sums with constants; the constraint that one runs into is the reason that the user
reads. Where a shift cannot move, the scale need not have moved either: that BatchNorm is left out and all is solved
again, until nothing contradicts.

A dead channel (s = 0) has no inverse. Its u may become 0 (`p_u = 0`), if nothing else reads u; or its v may be left
unwritten, if only weights read v: these take the constant t for it, whatever is carried there.
"""

from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from fold.engine.affine import NOBODY, Array, Conflict, Gauge, Ids
from fold.engine.gauge import Absorber, Candidate, Gauges, Layout
from fold.engine.reasons import Blocked, Code, Part, Reason
from fold.engine.solver.scales import Scales
from fold.engine.solver.shifts import Shifts
from fold.graph import display_name

DROWNING = 2.0**3
"""A shift this many times larger than the signal that it is added to costs 3 of float32's 24 bits, which is as much as
a certificate forgives (fold.proof.decisions.FLOORS)."""
LOUD = 1.0
"""The same, above which a shift is better moved to where it is read, if activations may be opened."""


@dataclass(frozen=True)
class Solution:
    """`vanished` in graph order, why the others stay, and p and q of every variable."""

    vanished: list[Candidate]
    kept: dict[ir.Node, Reason]
    p: Array
    q: Array
    scale_classes: Ids

    def gauge(self, layout: Layout) -> Gauge:
        return Gauge(self.p[layout.scale], self.q[layout.shift])


def solve(gauges: Gauges, refused: dict[ir.Node, Reason]) -> Solution:
    """Let every BatchNorm vanish that can, but for those in `refused`."""
    refused = {**gauges.kept, **refused}
    candidates = sorted(gauges.candidates, key=lambda candidate: not candidate.reported)
    while True:
        scales, refusals = _base_scales(gauges), dict(refused)
        moved, unwritten = _move(gauges, scales, [c for c in candidates if c.node not in refused], refusals)
        anchors = [candidate.v.scale for candidate, _ in moved]
        p = scales.values(np.concatenate([*anchors, np.empty(0, np.int64)]))
        p[unwritten] = np.inf
        shifts, new = _base_shifts(gauges), {}
        for candidate, live in moved:
            conflict = _shift(shifts, candidate, live, p)
            if conflict is not None:
                new[candidate.node] = _demanded(gauges, candidate, Part.SHIFT, candidate.t, conflict)
        q = shifts.values()
        if not new:
            new = {c.node: reason for c, _ in moved if (reason := _drowning(c, p, q)) is not None}
        if not new:
            classes, _ = scales.find(np.arange(gauges.scale_count))
            return Solution([candidate for candidate, _ in moved], refusals, p, q, classes)
        refused.update(new)


Moved = list[tuple[Candidate, NDArray[np.bool_]]]
"""Candidates whose scales moved, each with the channels that take part."""


def _move(
    gauges: Gauges, scales: Scales, candidates: list[Candidate], refusals: dict[ir.Node, Reason]
) -> tuple[Moved, Ids]:
    """Relate the scales of all that can; returns these, and the scale variables of dead channels left unwritten."""
    read_whole = np.zeros(gauges.scale_count, bool)  # by nodes that do not divide by the scale
    for absorber in _absorbers(gauges):
        if not absorber.divides:
            read_whole[absorber.read.scale] = True
    moved: Moved = []
    unwritten = np.empty(0, np.int64)
    for candidate in candidates:
        live = np.ones(len(candidate.s), bool) if candidate.dead is None else ~candidate.dead
        conflict = _relate(scales, candidate, live)
        if conflict is not None and conflict.dead:
            dead = candidate.v.scale[live & (candidate.s == 0)]
            if scales.unbound(dead).all() and not read_whole[dead].any():
                live &= candidate.s != 0
                conflict = _relate(scales, candidate, live)
                if conflict is None:
                    scales.bar(dead)
                    unwritten = np.concatenate([unwritten, dead])
        if conflict is not None:
            refusals[candidate.node] = _scale_reason(gauges, candidate, conflict)
            continue
        moved.append((candidate, live))
        if candidate.absorber.divides:
            scales.release(candidate.u.scale)
    return moved, unwritten


def _relate(scales: Scales, candidate: Candidate, live: NDArray[np.bool_]) -> Conflict | None:
    u, v = candidate.u.scale[live], candidate.v.scale[live]
    conflict = scales.relate(u, v, candidate.s[live], candidate.cause)
    if conflict is None:
        return None
    return replace(conflict, position=int(np.flatnonzero(live)[conflict.position]))


def _shift(shifts: Shifts, candidate: Candidate, live: NDArray[np.bool_], p: Array) -> Conflict | None:
    """The equations of the channels that take part, and for unwritten ones `q_v = -t`, as a void gauge is read."""
    u, v, t = candidate.u, candidate.v, candidate.t
    conflict = shifts.add([(1.0, u.shift[live]), (-1.0, v.shift[live])], t[live] * p[v.scale[live]], candidate.cause)
    unwritten = np.isinf(p[v.scale])
    if conflict is None and unwritten.any():
        conflict = shifts.add([(-1.0, v.shift[unwritten])], t[unwritten], candidate.cause)
        live = unwritten
    return None if conflict is None else replace(conflict, position=int(np.flatnonzero(live)[conflict.position]))


def _absorbers(gauges: Gauges) -> list[Absorber]:
    return [*gauges.absorbers, *(candidate.absorber for candidate in gauges.candidates)]


def _base_scales(gauges: Gauges) -> Scales:
    """The scales with what the laws demand, which can never contradict: `p = 1` everywhere satisfies it."""
    readers = [absorber.read.scale.ravel() for absorber in _absorbers(gauges) if absorber.divides]
    reads = np.bincount(np.concatenate([*readers, np.empty(0, np.int64)]), minlength=gauges.scale_count)
    scales = Scales(reads)
    for constraint in gauges.constraints:
        if constraint.kind == "equal":
            (_, a), (_, b) = constraint.terms
            scales.relate(a, b, np.ones(len(a)), constraint.cause)
    for constraint in gauges.constraints:
        if constraint.kind == "one":
            scales.fix(constraint.terms[0][1], constraint.cause)
        elif constraint.kind == "positive":
            scales.hold_positive(constraint.terms[0][1], constraint.cause)
    return scales


def _base_shifts(gauges: Gauges) -> Shifts:
    """The shifts with what the laws demand, which can never contradict: `q = 0` everywhere satisfies it."""
    shifts = Shifts(gauges.shift_preferences)
    for constraint in gauges.constraints:
        if constraint.kind == "sum":
            shifts.add(list(constraint.terms), np.zeros(len(constraint.terms[0][1])), constraint.cause)
    return shifts


def _scale_reason(gauges: Gauges, candidate: Candidate, conflict: Conflict) -> Reason:
    if not conflict.dead:
        return _demanded(gauges, candidate, Part.SCALE, candidate.s, conflict)
    if conflict.cause != NOBODY:
        return _demanded(gauges, candidate, Part.DEAD_CHANNEL, candidate.s, conflict)
    blocked = Blocked(Part.DEAD_CHANNEL, conflict.position, 0.0)
    source = candidate.node.inputs[0]
    others = [user for user, _ in source.uses() if user is not candidate.node] if source is not None else []
    if others:
        return Reason(Code.SHARED_INPUT, display_name(others[0]), blocked=blocked)
    return Reason(Code.USED_ELSEWHERE, (source.name if source is not None else "") or "", blocked=blocked)


def _demanded(gauges: Gauges, candidate: Candidate, part: Part, values: Array, conflict: Conflict) -> Reason:
    """The demand that the scale or shift of a channel ran into."""
    blocked = Blocked(part, conflict.position, float(values[conflict.position]))
    if conflict.cause in (NOBODY, candidate.cause):
        return Reason(Code.FIXED_TWICE, display_name(candidate.node), blocked=blocked)
    return replace(gauges.causes[conflict.cause], blocked=blocked)


def _drowning(candidate: Candidate, p: Array, q: Array) -> Reason | None:
    """Keep a BatchNorm where others read u out of a sum in which the shift is so large that u's low bits are lost."""
    shift, signal = _shared(candidate, p, q)
    drowned = (shift > DROWNING * signal) & (signal > 0)  # none where p = 0, or where there are no statistics
    if not drowned.any():
        return None
    channel = int(np.flatnonzero(drowned)[0])
    factor = float(shift[channel] / signal[channel])
    return Reason(Code.DROWNING_SHIFT, display_name(candidate.node), {"channel": channel, "factor": factor})


def loud(solution: Solution) -> list[Candidate]:
    """The vanished BatchNorms that add a shift larger than the signal to what others read, or to one not known."""
    found = []
    for candidate in solution.vanished:
        shift, signal = _shared(candidate, solution.p, solution.q)
        if candidate.reported and ((shift > LOUD * signal) & (solution.p[candidate.u.scale] != 0)).any():
            found.append(candidate)
    return found


def _shared(candidate: Candidate, p: Array, q: Array) -> tuple[Array, Array]:
    """The shift that is added to u, and how large the signal is that others read from it (0: not known); [channels].

    Where nobody else reads u there is no such shift. Where p = 0 the channel is dead, and nobody else reads it.
    """
    shift = np.abs(q[candidate.u.shift])
    signal = np.zeros_like(shift) if candidate.size is None else np.abs(p[candidate.u.scale]) * candidate.size
    return np.zeros_like(shift) if candidate.private else shift, signal


def guilty(solution: Solution, absorber: Absorber) -> list[Candidate]:
    """The vanished BatchNorms whose scales share a class with what `absorber` reads or writes."""
    touched = solution.scale_classes[np.concatenate([absorber.read.scale.ravel(), absorber.write.scale.ravel()])]
    return [
        candidate
        for candidate in solution.vanished
        if np.isin(solution.scale_classes[np.concatenate([candidate.u.scale, candidate.v.scale])], touched).any()
    ]
