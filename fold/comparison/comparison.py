"""Whether two models of any origin compute the same: parts A, C and D of a certificate, and where they part.

A is the truth, B is judged. Unlike a folded graph, B was not made by this program: its weights may be computed in
float32, or stored in half precision. So part A asks whether both agree in float64 as far as rounding B's weights
explains, which is measured: B is evaluated again with each weight moved at random (Monte Carlo arithmetic).
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np

from fold.arrays import Arrays, Run, first_rows, in_chunks
from fold.artifact import all_batched
from fold.comparison.layers import Parting, find_parting
from fold.comparison.sides import Match, Side, match, read_side
from fold.errors import BnfoldError
from fold.evaluate import AMPLITUDE_REDUCED, Evaluator, MovedWeights, rounding_limits
from fold.inputs import FREE_SIZES, Family, check_inputs, draw_inputs, working_sizes
from fold.proof import FACTOR, LIMIT, Truth, Verdict, difference, disagreement, find_truth, finite_values
from fold.proof import compare as compare_outputs
from fold.remote import local
from fold.sources import Source

ROWS = 4
"""Rows that are computed at a time."""
ROUNDINGS = 4
"""Roundings that a tool may spend on a weight: a reciprocal root, two products and a sum for a fold."""
LAYER_VALUES = 1 << 18
"""Input values, over all rows, on which layers are compared."""
FAMILIES = ("given", "normal", "sparse", "single", "offset")
"""Families of inputs, the one that tells layers apart best first."""
SMALLEST = 1e-9
"""A relative difference of layers that is not looked at."""

Announce = Callable[[str], None]


@dataclass(frozen=True)
class AlgebraDifference:
    """How far an output of B is from that of A in float64, and how far it may be, relative to A's largest value.

    For the family of inputs with the largest share of the limit. `compared` counts the values that are finite in A.
    """

    name: str
    difference: float
    limit: float
    family: str
    compared: int

    def __bool__(self) -> bool:
        return self.difference <= self.limit  # false for NaN, too

    @property
    def share(self) -> float:
        """The difference as a share of its limit; infinite for NaN."""
        if not self.limit:
            return np.inf if self.difference else 0.0
        return np.inf if np.isnan(self.difference) else self.difference / self.limit


@dataclass(frozen=True)
class Comparison:
    """Parts A, C and D for two models, true if all hold. `parting` says where the models part, if one does not.

    `runtime_fault` is true if B's graph is right but the runtime's optimised run of it is not.
    """

    a: str
    b: str
    algebra: tuple[AlgebraDifference, ...]
    verdict: Verdict
    parting: Parting | None
    runtime_fault: bool
    notes: tuple[str, ...]

    def __bool__(self) -> bool:
        return self.algebra_holds and bool(self.verdict)

    @property
    def algebra_holds(self) -> bool:
        return all(self.algebra) and sum(each.compared for each in self.algebra) > 0

    @property
    def message(self) -> str:
        """The verdict in one sentence."""
        if self:
            return f"the same model over {self.verdict.samples} samples: {self.verdict.summary}"
        if self.verdict.doubt is not None or self.verdict.empty is not None:
            return self.verdict.message
        if not self.algebra_holds:
            worst_output = max(self.algebra, key=lambda each: each.share)
            found = (
                f"in float64 output {worst_output.name!r} differs by {worst_output.difference:.3g} of its largest "
                f"value, and rounding of B's weights explains {worst_output.limit:.3g}"
            )
        else:
            worst_error = self.verdict.worst
            found = (
                f"the graphs agree in float64, but as it is run, output {worst_error.name!r} of B is "
                f"{worst_error.folded_error:.3g} from the truth, A {worst_error.unfolded_error:.3g}, and the limit is "
                f"{worst_error.limit:.3g}"
            )
        if self.runtime_fault:
            found += "; ONNX Runtime computes B rightly without its graph optimisations: turn them off for B"
        elif self.parting is not None:
            found += f"; {self.parting.message}"
        return f"NOT the same model: {found}"

    def to_dict(self) -> dict[str, Any]:
        return {
            "same": bool(self),
            "message": self.message,
            "a": self.a,
            "b": self.b,
            "notes": list(self.notes),
            "algebra": {
                "holds": self.algebra_holds,
                "outputs": [{**asdict(each), "holds": bool(each)} for each in self.algebra],
            },
            "run_time": self.verdict.to_dict(),
            "runtime_fault": self.runtime_fault,
            "parting": None if self.parting is None else self.parting.to_dict(),
        }


def compare(
    a: "Source | Path | str",
    b: "Source | Path | str",
    inputs: Arrays | None = None,
    *,
    samples: int = 16,
    seed: int = 0,
    layers: bool = False,
    announce: Announce = lambda step: None,
) -> Comparison:
    """Compare two models: `.onnx`, `.pt2`, model directories or their URLs, or checkpoints as `fold.sources.Source`.

    `inputs` are arrays by A's input names, batch first; without them, `samples` rows are drawn from `seed`. Layers are
    compared if the models differ in float64, or with `layers`. Everything runs on the CPU. Raises `BnfoldError` for
    models that cannot be read or whose inputs or outputs do not correspond.
    """
    with tempfile.TemporaryDirectory() as folder, _source(a) as source_a, _source(b) as source_b:
        # 1. Both models, and what corresponds
        sides = []
        for name, source in (("a", source_a), ("b", source_b)):
            (Path(folder) / name).mkdir()
            sides.append(read_side(source, Path(folder) / name, announce))
        ours, theirs = sides
        matched = match(ours, theirs)
        announce("looking for sizes that work")
        sizes = working_sizes(ours.model, matched.specs, seed) or FREE_SIZES
        rows = (
            draw_inputs(matched.specs, samples, seed, free=sizes)
            if inputs is None
            else check_inputs(matched.specs, inputs)
        )
        rows = matched.common(rows)

        # 2. Part A: both in float64
        announce("part A: both models in float64")
        truth = find_truth(ours.model, matched.specs, seed, None if inputs is None else rows, sizes)
        algebra, explained, parted = _algebra(truth, theirs, matched, seed)

        # 3. Parts C and D: B as it is run, and A's truth
        announce("parts C and D: both models as they are run")
        at_a_time = ROWS if all_batched(matched.specs) else 0
        stored = _stored(theirs, matched, rows, seed)
        allowed = {name: max(stored.get(name, 0.0), moved / FACTOR) for name, moved in explained.items()}
        verdict = _verdict(ours, matched.run(theirs.served), rows, seed, at_a_time, allowed, drawn=inputs is None)
        if ours.from_pytorch and verdict.doubt is None:
            verdict = replace(verdict, disagreement=disagreement(ours, *truth.families["normal"]))

        # 4. Where they part
        comparison = Comparison(str(source_a.path), str(source_b.path), algebra, verdict, None, False, matched.notes)
        if not comparison and verdict.doubt is None and comparison.algebra_holds and not theirs.from_pytorch:
            announce("B without graph optimisations")
            plain = _verdict(ours, matched.run(theirs.plain), rows, seed, at_a_time, allowed, drawn=False)
            return replace(comparison, runtime_fault=bool(plain))
        if layers or not comparison.algebra_holds:
            announce("comparing the layers")
            family = next((each for each in FAMILIES if each in parted), "normal" if inputs is None else "given")
            few = _for_layers(matched, rows, family, seed, sizes)
            parting = find_parting(
                ours.model,
                theirs.model,
                few,
                lambda inputs: matched.feed(inputs, cast=False),
                matched.outputs,
                _tolerance(algebra),
            )
            return replace(comparison, parting=parting)
        return comparison


@contextmanager
def _source(given: Source | Path | str) -> Iterator[Source]:
    if isinstance(given, Source):
        yield given
    else:
        with local(given) as path:
            yield Source(path)


def _algebra(
    truth: Truth, b: Side, matched: Match, seed: int
) -> tuple[tuple[AlgebraDifference, ...], dict[str, float], set[str]]:
    """Part A, how far rounding of B's weights moves each output on inputs like those of part C, in its unit, and the
    families of inputs on which A does not hold."""
    run, base = matched.run(Evaluator(b.model), cast=False), LIMIT * max(truth.depth, 1)
    found: dict[str, AlgebraDifference] = {}
    explained = dict.fromkeys(matched.outputs, 0.0)
    moved: MovedWeights | None = None
    parted: set[str] = set()
    for family, (inputs, outputs) in truth.families.items():
        answers = run(inputs)
        found_here = {name: difference(exact, answers[name]) for name, exact in outputs.items()}
        limits = {name: base * size for name, (_, size) in found_here.items()}
        unexplained = {name: gap for name, (gap, _) in found_here.items() if limits[name] < gap < np.inf}
        if unexplained:
            moved = moved or MovedWeights(b.model, ROUNDINGS)
            limits, _ = rounding_limits(partial(_draw, moved, matched, inputs), answers, unexplained, limits)
            if family in ("normal", "given"):
                explained |= {name: max(explained[name], limits[name]) for name in unexplained}
        for name, (gap, size) in found_here.items():
            unit, compared = size or 1.0, finite_values({name: outputs[name]})
            one = AlgebraDifference(name, gap / unit, limits[name] / unit, family, compared)
            parted |= set() if one else {family}
            before = found.get(name)
            compared += 0 if before is None else before.compared
            if before is None or one.share > before.share:
                found[name] = one
            found[name] = replace(found[name], compared=compared)
    return tuple(found.values()), explained, parted


def _draw(moved: MovedWeights, matched: Match, inputs: Arrays, draw: int) -> Arrays:
    """What B computes with random errors in its weights."""
    return matched.run(partial(moved, draw=draw), cast=False)(inputs)


def _stored(b: Side, matched: Match, rows: Arrays, seed: int) -> dict[str, float]:
    """How far rounding of the types that B stores moves each output, if these are coarser than float32."""
    if not b.mixed:
        return {}
    few = first_rows(rows, ROWS) if all_batched(matched.specs) else rows
    exact = matched.run(b.exact)(few)
    noisy = matched.run(lambda inputs: b.noisy(inputs, seed, None))(few)
    return {name: difference(truth, noisy[name])[0] / AMPLITUDE_REDUCED for name, truth in exact.items()}


def _verdict(
    a: Side, served: Run, rows: Arrays, seed: int, at_a_time: int, allowed: dict[str, float], *, drawn: bool
) -> Verdict:
    answers = in_chunks(served, rows, at_a_time)
    for name, truth in in_chunks(a.plain, first_rows(rows, 1) if at_a_time else rows, 0).items():
        found = answers[name].shape[1:] if at_a_time else answers[name].shape
        if found != (truth.shape[1:] if at_a_time else truth.shape):
            raise BnfoldError(
                f"output {name!r}: B gives {list(answers[name].shape)}, A {list(truth.shape)} for one row"
            )
    return compare_outputs(a, answers, rows, seed=seed if drawn else None, rows=at_a_time, rounding=allowed)


def _for_layers(matched: Match, rows: Arrays, family: str, seed: int, sizes: Sequence[int]) -> Arrays:
    """A few rows of a family, on which layers are compared."""
    batched = all_batched(matched.specs)
    values = sum(array[0].size for array in rows.values()) if batched else 0
    several = max(2, min(8, LAYER_VALUES // max(values, 1)))
    if family != "given":
        return draw_inputs(matched.specs, several, seed, family=cast(Family, family), free=sizes)
    return first_rows(rows, several) if batched else rows


def _tolerance(algebra: tuple[AlgebraDifference, ...]) -> float:
    """A relative difference between what rounding explains and what was found."""
    worst = max(algebra, key=lambda each: each.share)
    found = worst.difference if np.isfinite(worst.difference) else 1.0
    return max(SMALLEST, float(np.sqrt(worst.limit * max(found, worst.limit))))
