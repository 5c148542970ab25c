"""Which BatchNorms can be removed, and under which gauges.

A BatchNorm `v = s*u + t` can be removed if `p_u = s*p_v` and `q_u = t*p_v + q_v` hold together with all constraints of
the laws. Scales are solved first (`scales`), then shifts (`shifts`). BatchNorms are tried in graph order, each as a
whole, before single products and sums with constants. The constraint that one contradicts is the reason that the user
reads. If a shift cannot move, moving the scale was useless: that BatchNorm is left out and everything is solved again,
until nothing contradicts.

A dead channel (s = 0) has no inverse. Either its u becomes 0 (`p_u = 0`), if no other node reads u; or its v is left
unwritten, if only weights read v: these treat the channel as the constant t, whatever the tensor carries there.
"""

from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from fold.engine.affine import NO_CAUSE, Array, Conflict, Gauge, Ids
from fold.engine.gauge import Absorber, Candidate, Gauges, Layout
from fold.engine.reasons import Blocked, BlockedPart, Code, Reason
from fold.engine.solver.scales import Scales
from fold.engine.solver.shifts import Shifts
from fold.graph import display_name

DROWNING = 2.0**3
"""A shift that is larger than its signal by this factor costs 3 of float32's 24 bits, which is as much as a certificate
allows (fold.proof.decisions.FLOORS)."""
FLOAT16_LARGEST = 65504 / 16
"""The largest size by the statistics, mean + 3 standard deviations, that float16 stores: outliers of 16 times that
size still fit."""
LARGE = 1.0
"""The factor above which it is better to move a shift to its readers, if activations may be opened."""


@dataclass(frozen=True)
class Solution:
    """The removed candidates in graph order, the reasons of the others, and p and q of every variable."""

    removed: list[Candidate]
    kept: dict[ir.Node, Reason]
    p: Array
    q: Array
    scale_classes: Ids

    def gauge(self, layout: Layout) -> Gauge:
        return Gauge(self.p[layout.scale], self.q[layout.shift])


def solve(gauges: Gauges, refused: dict[ir.Node, Reason]) -> Solution:
    """Remove every BatchNorm that can be removed, but for those in `refused`."""
    refused = {**gauges.kept, **refused}
    candidates = sorted(gauges.candidates, key=lambda candidate: not candidate.reported)
    while True:
        scales, refusals = _base_scales(gauges), dict(refused)
        related, unwritten = _relate_all(gauges, scales, [c for c in candidates if c.node not in refused], refusals)
        anchors = [candidate.v.scale for candidate, _ in related]
        p = scales.values(np.concatenate([*anchors, np.empty(0, np.int64)]))
        p[unwritten] = np.inf
        shifts, new = _base_shifts(gauges), {}
        for candidate, live in related:
            conflict = _shift(shifts, candidate, live, p)
            if conflict is not None:
                new[candidate.node] = _demanded(gauges, candidate, BlockedPart.SHIFT, candidate.t, conflict)
        q = shifts.values()
        if not new:
            half = _in_float16(gauges)
            checked = ((c, _drowning(c, p, q) or _out_of_range(c, half, p, q)) for c, _ in related)
            new = {candidate.node: reason for candidate, reason in checked if reason is not None}
        if not new:
            classes, _ = scales.find(np.arange(gauges.scale_count))
            return Solution([candidate for candidate, _ in related], refusals, p, q, classes)
        refused.update(new)


Related = list[tuple[Candidate, NDArray[np.bool_]]]
"""Candidates whose scales of u and v are related, each with the channels for which they are."""


def _relate_all(
    gauges: Gauges, scales: Scales, candidates: list[Candidate], refusals: dict[ir.Node, Reason]
) -> tuple[Related, Ids]:
    """Relate the scales of every candidate that allows it; returns these candidates, and the scale variables of dead
    channels that are left unwritten."""
    read_whole = np.zeros(gauges.scale_count, bool)  # read by nodes that do not divide by the scale
    for absorber in _absorbers(gauges):
        if not absorber.divides:
            read_whole[absorber.read.scale] = True
    related: Related = []
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
                    scales.exclude(dead)
                    unwritten = np.concatenate([unwritten, dead])
        if conflict is not None:
            refusals[candidate.node] = _scale_reason(gauges, candidate, conflict)
            continue
        related.append((candidate, live))
        if candidate.absorber.divides:
            scales.release(candidate.u.scale)
    return related, unwritten


def _relate(scales: Scales, candidate: Candidate, live: NDArray[np.bool_]) -> Conflict | None:
    u, v = candidate.u.scale[live], candidate.v.scale[live]
    conflict = scales.relate(u, v, candidate.s[live], candidate.cause)
    if conflict is None:
        return None
    return replace(conflict, position=int(np.flatnonzero(live)[conflict.position]))


def _shift(shifts: Shifts, candidate: Candidate, live: NDArray[np.bool_], p: Array) -> Conflict | None:
    """Add the equations of the related channels, and `q_v = -t` for unwritten ones: readers take these as constant
    t."""
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
    """The scales with the constraints of the laws. These never contradict: `p = 1` everywhere satisfies them."""
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
    """The shifts with the constraints of the laws. These never contradict: `q = 0` everywhere satisfies them."""
    shifts = Shifts(gauges.shift_preferences)
    for constraint in gauges.constraints:
        if constraint.kind == "sum":
            shifts.add(list(constraint.terms), np.zeros(len(constraint.terms[0][1])), constraint.cause)
    return shifts


def _scale_reason(gauges: Gauges, candidate: Candidate, conflict: Conflict) -> Reason:
    if not conflict.dead:
        return _demanded(gauges, candidate, BlockedPart.SCALE, candidate.s, conflict)
    if conflict.cause != NO_CAUSE:
        return _demanded(gauges, candidate, BlockedPart.DEAD_CHANNEL, candidate.s, conflict)
    blocked = Blocked(BlockedPart.DEAD_CHANNEL, conflict.position, 0.0)
    source = candidate.node.inputs[0]
    others = [user for user, _ in source.uses() if user is not candidate.node] if source is not None else []
    if others:
        return Reason(Code.SHARED_INPUT, display_name(others[0]), blocked=blocked)
    return Reason(Code.USED_ELSEWHERE, (source.name if source is not None else "") or "", blocked=blocked)


def _demanded(gauges: Gauges, candidate: Candidate, part: BlockedPart, values: Array, conflict: Conflict) -> Reason:
    """The reason why the scale or shift of a channel cannot move: the demand that it contradicts."""
    blocked = Blocked(part, conflict.position, float(values[conflict.position]))
    if conflict.cause in (NO_CAUSE, candidate.cause):
        return Reason(Code.FIXED_TWICE, display_name(candidate.node), blocked=blocked)
    return replace(gauges.causes[conflict.cause], blocked=blocked)


def _drowning(candidate: Candidate, p: Array, q: Array) -> Reason | None:
    """The reason to keep a BatchNorm where other nodes read u, and adding the shift to u would lose u's low bits."""
    shift, signal = _shared(candidate, p, q)
    if not candidate.reported and shift.any():  # without statistics, nothing says how large the signal is
        return Reason(Code.SHARED_INPUT, display_name(candidate.node))
    drowned = (shift > DROWNING * signal) & (signal > 0)  # none where p = 0, or where there are no statistics
    if not drowned.any():
        return None
    channel = int(np.flatnonzero(drowned)[0])
    factor = float(shift[channel] / signal[channel])
    return Reason(Code.DROWNING_SHIFT, display_name(candidate.node), {"channel": channel, "factor": factor})


def _in_float16(gauges: Gauges) -> NDArray[np.bool_]:
    """Which scale variables are of a tensor that a Cast stores in float16."""
    stored = np.zeros(gauges.scale_count, bool)
    for layout in gauges.stored_in_float16:
        stored[layout.scale] = True
    return stored


def _out_of_range(candidate: Candidate, half: NDArray[np.bool_], p: Array, q: Array) -> Reason | None:
    """The reason to keep a BatchNorm in a wider type, if what replaces its input and output is cast to or from float16
    and could overflow there, or is much larger than what float16 holds without the fold, so that it rounds more.

    Sizes are by the statistics, and as the folded graph carries them.
    """
    at_u, at_v = half[candidate.u.scale], half[candidate.v.scale]
    of_u, of_v = candidate.size, candidate.size_of_v
    if not candidate.reported and (at_u | at_v).any():  # without statistics
        return Reason(
            Code.FLOAT16_RANGE, display_name(candidate.node), {"channel": 0, "size": np.inf, "before": np.inf}
        )
    if of_u is None or of_v is None or candidate.absorber.result.dtype == ir.DataType.FLOAT16:
        return None
    p_u, p_v = (
        np.where(np.isfinite(factor), np.abs(factor), 0) for factor in (p[candidate.u.scale], p[candidate.v.scale])
    )
    carried = np.where(at_u | at_v, p_u * of_u + np.abs(q[candidate.u.shift]), 0)
    before = float(max((at_u * p_u * of_u).max(initial=0), (at_v * p_v * of_v).max(initial=0)))
    largest = float(carried.max(initial=0))
    if largest <= min(FLOAT16_LARGEST, DROWNING * before):
        return None
    details = {"channel": int(carried.argmax()), "size": largest, "before": before}
    return Reason(Code.FLOAT16_RANGE, display_name(candidate.node), details)


def with_large_shifts(solution: Solution) -> list[Candidate]:
    """The removed BatchNorms that add, to a tensor that other nodes read, a shift larger than the signal, or one that
    cannot be compared because the signal is not known."""
    found = []
    for candidate in solution.removed:
        shift, signal = _shared(candidate, solution.p, solution.q)
        if candidate.reported and ((shift > LARGE * signal) & (solution.p[candidate.u.scale] != 0)).any():
            found.append(candidate)
    return found


def _shared(candidate: Candidate, p: Array, q: Array) -> tuple[Array, Array]:
    """The shift that is added to u, and the size of the signal that other nodes read from it (0: not known);
    [channels].

    The shift is 0 where no other node reads u. Where p = 0 the channel is dead, and no other node reads it.
    """
    shift = np.abs(q[candidate.u.shift])
    signal = np.zeros_like(shift) if candidate.size is None else np.abs(p[candidate.u.scale]) * candidate.size
    return np.zeros_like(shift) if candidate.private else shift, signal


def sharing_scales(solution: Solution, absorber: Absorber) -> list[Candidate]:
    """The removed BatchNorms whose scales are in one class with those of an absorber's input or output."""
    touched = solution.scale_classes[np.concatenate([absorber.read.scale.ravel(), absorber.write.scale.ravel()])]
    return [
        candidate
        for candidate in solution.removed
        if np.isin(solution.scale_classes[np.concatenate([candidate.u.scale, candidate.v.scale])], touched).any()
    ]
