"""Part A of a certificate: before anything is rounded, the folded graph computes what the unfolded one computes.

Both are evaluated in float64, the folded one with exact weights. Correct folds differ by about 1e-15, wrong ones by
1e-2 or more. A model may amplify float64's rounding on some inputs: where the graphs differ by more than 1e-12 for each
layer, the limit is how far random roundings move what the unfolded graph computes.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir

from fold.arrays import Arrays, first_rows, row_count
from fold.artifact import TensorSpec, all_batched
from fold.errors import BnfoldError
from fold.evaluate import Evaluator, MovedTensors, TooLongError, rounding_limits
from fold.graph import constant
from fold.inputs import FREE_SIZES, Family, draw_inputs, works

LIMIT = 1e-12
"""The largest relative difference for each layer of depth, where rounding does not explain more."""
LARGEST_LIMIT = 1e-6
"""A family with a larger limit shows nothing: a wrong fold might differ by less."""
PARAMETRIC = frozenset({"BatchNormalization", "Conv", "ConvTranspose", "Gemm", "InstanceNormalization", "MatMul"})
FAMILIES: tuple[Family, ...] = ("normal", "single", "offset", "sparse")
ROWS = 2
SPREAD_SIZES = (8, 16, 24, 32, 40)
"""Sizes of free dimensions: pairwise different, so that mixed-up axes are noticed, and divisible by 8 for strides."""
SPREAD_STEP = 32
"""The distance of such sizes if the graph does not work with small ones."""


@dataclass(frozen=True)
class FamilyDifference:
    """The largest difference on one family of inputs, relative to the largest value of the `output` that it is in, and
    its limit. `compared` counts the finite values. False if the difference exceeds the limit."""

    name: str
    rows: int
    difference: float
    output: str
    compared: int
    limit: float

    def __bool__(self) -> bool:
        return self.difference <= self.limit  # false for NaN, too

    @property
    def shows(self) -> bool:
        """Whether a wrong fold would show in it."""
        return self.compared > 0 and self.limit <= LARGEST_LIMIT

    @property
    def share(self) -> float:
        """The difference as a share of the limit."""
        return float(np.nan_to_num(self.difference / self.limit, nan=np.inf))


@dataclass(frozen=True)
class Algebra:
    """True if the graphs differ by at most the limit of each family of inputs, and one family shows it. `limit` is that
    of all families where rounding does not explain more: 1e-12 for each layer of `depth`."""

    depth: int
    limit: float
    families: tuple[FamilyDifference, ...]

    def __bool__(self) -> bool:
        return all(self.families) and any(family.shows for family in self.families)

    @property
    def compared(self) -> int:
        return sum(family.compared for family in self.families)

    @property
    def worst(self) -> FamilyDifference:
        return max(self.families, key=lambda family: family.share)

    @property
    def failure(self) -> str:
        """What does not hold, for the certificate's message."""
        if not self.compared:
            return "algebra proves nothing; no output of the unfolded model has a finite value in float64"
        difference, output, family = self.worst.difference, self.worst.output, self.worst.name
        if all(self.families):
            return (
                f"algebra proves nothing; rounding in float64 alone moves output {output!r} by up to "
                f"{self.worst.limit:.3g} of its largest value ({family} inputs)"
            )
        return f"algebra does not hold; in float64 output {output!r} differs by {difference:.3g} ({family} inputs)"

    def to_dict(self) -> dict[str, Any]:
        families = [asdict(family) for family in self.families]
        return {
            "holds": bool(self),
            "depth": self.depth,
            "limit": self.limit,
            "compared": self.compared,
            "families": families,
        }


Families = dict[str, tuple[Arrays, Arrays]]
"""Inputs of each family, and what a graph computes from them in float64."""


@dataclass(frozen=True)
class Truth:
    """What the unfolded graph computes. `depth` is in layers."""

    depth: int
    families: Families

    @property
    def inputs(self) -> dict[str, Arrays]:
        """The inputs of each family."""
        return {name: inputs for name, (inputs, _) in self.families.items()}


def find_truth(
    unfolded: ir.Model,
    specs: Sequence[TensorSpec],
    seed: int,
    given: Arrays | None = None,
    free: Sequence[int] = FREE_SIZES,
    names: Sequence[str] = FAMILIES,
) -> Truth:
    """Evaluate the unfolded graph on every family of inputs, and on `given`. The graph may be released afterwards.

    `names` are those of the families. `free` are sizes of free dimensions with which the graph works.
    """
    run = Evaluator(unfolded)
    inputs = dict(_inputs(specs, seed, _sizes(run, specs, seed, free), given, names))
    return Truth(depth(unfolded.graph), find_answers(run, inputs))


def find_answers(run: Evaluator, inputs: Mapping[str, Arrays]) -> Families:
    """Evaluate a graph on the inputs of each family."""
    answers = run.each(inputs)
    return {name: (family, answers[name]) for name, family in inputs.items()}


def check_algebra(truth: Truth, answers: Families, read_unfolded: Callable[[], ir.Model]) -> Algebra:
    """Compare what the exact graph answers with the truth. The unfolded graph is read if roundings must explain more
    than `LIMIT`: it alone decides how much they may."""
    base, families = LIMIT * max(truth.depth, 1), []
    moved: MovedTensors | None = None
    for name, (inputs, outputs) in truth.families.items():
        rows = row_count(inputs)
        gap, output = largest_difference(outputs, answers[name][1])
        limit = base
        if base < gap < np.inf:
            moved = moved or MovedTensors(read_unfolded())
            try:
                gap, output, limit = _explained(partial(moved, inputs), outputs, answers[name][1], base)
            except TooLongError:
                raise
            except BnfoldError:  # roundings that change a size explain nothing
                pass
        families.append(FamilyDifference(name, rows, gap, output, finite_values(outputs), limit))
    return Algebra(truth.depth, base, tuple(families))


def _explained(moved: Callable[[int], Arrays], truth: Arrays, other: Arrays, base: float) -> tuple[float, str, float]:
    """The difference of the output that is nearest to its limit, or furthest beyond it, its name and the limit. Both
    are relative to its largest value. `moved` are the outputs with random roundings."""
    found = {name: difference(truth[name], other[name]) for name in truth if truth[name].dtype.kind == "f"}
    gaps = {name: gap for name, (gap, _) in found.items()}
    units = {name: size or 1.0 for name, (_, size) in found.items()}
    limits, _ = rounding_limits(moved, truth, gaps, {name: base * unit for name, unit in units.items()})
    name = max(gaps, key=lambda name: gaps[name] / limits[name])
    return gaps[name] / units[name], name, limits[name] / units[name]


def finite_values(arrays: Arrays) -> int:
    """The number of finite values in all arrays; of integers, texts and Booleans all."""
    return sum(
        int(np.isfinite(array).sum()) if np.issubdtype(array.dtype, np.floating) else array.size
        for array in arrays.values()
    )


def largest_difference(truth: Arrays, other: Arrays) -> tuple[float, str]:
    """The largest difference of any output, relative to that output's largest value, and the output's name."""
    found = [(0.0, next(iter(truth), ""))]
    for name, expected in truth.items():
        actual = other.get(name)
        found.append((np.inf if actual is None else relative_difference(expected, actual), name))
    return max(found, key=lambda pair: np.nan_to_num(pair[0], nan=np.inf))


def relative_difference(expected: np.ndarray, actual: np.ndarray) -> float:
    """`difference` relative to the largest value; if that is 0, the difference itself."""
    gap, size = difference(expected, actual)
    return gap / size if size else gap


def difference(expected: np.ndarray, actual: np.ndarray) -> tuple[float, float]:
    """The largest difference of two arrays, and the largest magnitude of `expected`, where it is finite.

    The difference is infinite if shapes differ, if what is infinite or NaN differs, and if integers or texts differ;
    these have the magnitude 0.
    """
    floats = np.issubdtype(expected.dtype, np.floating)
    finite = np.isfinite(expected) if floats else np.zeros(expected.shape, bool)
    size = float(np.abs(expected[finite]).max(initial=0)) if floats else 0.0
    if expected.shape != actual.shape:
        return np.inf, size
    if not np.array_equal(expected[~finite], actual[~finite], equal_nan=bool(floats)):
        return np.inf, size
    return float(np.abs(actual[finite] - expected[finite]).max(initial=0)) if floats else 0.0, size


def depth(graph: ir.Graph) -> int:
    """The largest number of nodes with parameters on any path through a graph."""
    deepest: dict[ir.Value, int] = {}
    for node in graph:
        parametric = node.op_type in PARAMETRIC and any(constant(value) is not None for value in node.inputs)
        before = max((deepest.get(value, 0) for value in node.inputs if value is not None), default=0)
        for output in node.outputs:
            deepest[output] = before + parametric
    return max(deepest.values(), default=0)


def _sizes(run: Evaluator, specs: Sequence[TensorSpec], seed: int, free: Sequence[int]) -> Sequence[int]:
    """Different sizes for the free dimensions, unless the graph does not work with these."""
    if all(size >= 0 for spec in specs for size in spec.shape[1:]):
        return free
    small = tuple(free) == FREE_SIZES
    spread = SPREAD_SIZES if small else tuple(free[-1] + step * SPREAD_STEP for step in range(len(SPREAD_SIZES)))
    try:
        return spread if works(run(draw_inputs(specs, 1, seed, free=spread))) else free
    except TooLongError:
        raise
    except BnfoldError:
        return free


def _inputs(
    specs: Sequence[TensorSpec], seed: int, free: Sequence[int], given: Arrays | None, names: Sequence[str]
) -> Iterable[tuple[str, Arrays]]:
    """Inputs of each family: `ROWS` rows, or one for `single`; and the first `ROWS` rows of `given`."""
    for index, name in enumerate(FAMILIES):
        if name in names:
            yield name, draw_inputs(specs, 1 if name == "single" else ROWS, seed + index, family=name, free=free)
    if given is not None:
        yield "given", first_rows(given, ROWS) if all_batched(specs) else given
