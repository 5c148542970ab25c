"""Part A of a certificate: before anything is rounded, the folded graph is the unfolded one.

Both are evaluated in float64, the folded one with the exact weights. Right folds agree to about 1e-15, wrong ones to
1e-2 or worse, and nothing lies between, so the limit is no tolerance that somebody had to guess.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from fold.arrays import Arrays, first_rows
from fold.artifact import TensorSpec, all_batched
from fold.errors import BnfoldError
from fold.evaluate import Evaluator
from fold.graph import constant
from fold.inputs import FREE_SIZES, draw_inputs
from fold.inputs import Family as Kind

LIMIT = 1e-12
"""Of the relative difference, for each layer of depth."""
PARAMETRIC = frozenset({"BatchNormalization", "Conv", "ConvTranspose", "Gemm", "InstanceNormalization", "MatMul"})
FAMILIES: tuple[Kind, ...] = ("normal", "single", "offset", "sparse")
ROWS = 2
SPREAD_SIZES = (8, 16, 24, 32, 40)
"""Extents of free dimensions: pairwise different, so that no axis is taken for another, and even enough to halve."""


@dataclass(frozen=True)
class Family:
    """The largest difference on one kind of input, relative to the largest value of the output that it is in."""

    name: str
    rows: int
    difference: float
    output: str


@dataclass(frozen=True)
class Algebra:
    """True if no family of inputs sets the graphs further apart than `limit`, which is 1e-12 for each of `depth`."""

    depth: int
    limit: float
    families: tuple[Family, ...]

    def __bool__(self) -> bool:
        return all(family.difference <= self.limit for family in self.families)  # false for NaN, too

    @property
    def worst(self) -> Family:
        return max(self.families, key=lambda family: np.nan_to_num(family.difference, nan=np.inf))

    def to_dict(self) -> dict[str, Any]:
        families = [asdict(family) for family in self.families]
        return {"holds": bool(self), "depth": self.depth, "limit": self.limit, "families": families}


@dataclass(frozen=True)
class Truth:
    """What the unfolded graph, of `depth` layers, computes in float64: inputs and outputs of each family."""

    depth: int
    families: dict[str, tuple[Arrays, Arrays]]


def find_truth(unfolded: ir.Model, specs: Sequence[TensorSpec], seed: int, given: Arrays | None = None) -> Truth:
    """Evaluate the unfolded graph on every family of inputs, and on those that are given. It is not needed after."""
    run = Evaluator(unfolded)
    families = _families(specs, seed, _sizes(run, specs, seed), given)
    return Truth(depth(unfolded.graph), {name: (inputs, run(inputs)) for name, inputs in families})


def check_algebra(truth: Truth, exact: ir.Model) -> Algebra:
    """Hold the exact graph against the truth."""
    run, families = Evaluator(exact), []
    for name, (inputs, outputs) in truth.families.items():
        rows = next((len(array) for array in inputs.values() if array.ndim), 1)
        families.append(Family(name, rows, *apart(outputs, run(inputs))))
    return Algebra(truth.depth, LIMIT * max(truth.depth, 1), tuple(families))


def apart(truth: Arrays, other: Arrays) -> tuple[float, str]:
    """The largest difference of any output, relative to that output's largest value, and the output's name."""
    found = [(0.0, next(iter(truth), ""))]
    for name, expected in truth.items():
        actual = other.get(name)
        if actual is None or actual.shape != expected.shape:
            found.append((np.inf, name))
            continue
        if not np.issubdtype(expected.dtype, np.floating):
            found.append((0.0 if np.array_equal(expected, actual) else np.inf, name))
            continue
        finite = np.isfinite(expected)
        if not np.array_equal(expected[~finite], actual[~finite], equal_nan=True):
            found.append((np.inf, name))
            continue
        size = np.abs(expected[finite]).max(initial=0)
        difference = np.abs(actual[finite] - expected[finite]).max(initial=0)
        found.append((float(difference / size if size else difference), name))
    return max(found, key=lambda pair: np.nan_to_num(pair[0], nan=np.inf))


def depth(graph: ir.Graph) -> int:
    """How many nodes with parameters the longest way through a graph meets."""
    deepest: dict[ir.Value, int] = {}
    for node in graph:
        parametric = node.op_type in PARAMETRIC and any(constant(value) is not None for value in node.inputs)
        before = max((deepest.get(value, 0) for value in node.inputs if value is not None), default=0)
        for output in node.outputs:
            deepest[output] = before + parametric
    return max(deepest.values(), default=0)


def _sizes(run: Evaluator, specs: Sequence[TensorSpec], seed: int) -> Sequence[int]:
    """Different sizes for the free dimensions, unless the graph demands that they are equal, or other multiples."""
    if any(size < 0 for spec in specs for size in spec.shape[1:]):
        try:
            run(draw_inputs(specs, 1, seed, free=SPREAD_SIZES))
        except BnfoldError:
            return FREE_SIZES
    return SPREAD_SIZES


def _families(
    specs: Sequence[TensorSpec], seed: int, free: Sequence[int], given: Arrays | None
) -> Iterable[tuple[str, Arrays]]:
    """Normal, one row, a large offset, mostly zeros, and of those that are given: `ROWS` of each."""
    for index, name in enumerate(FAMILIES):
        yield name, draw_inputs(specs, 1 if name == "single" else ROWS, seed + index, family=name, free=free)
    if given is not None:
        yield "given", first_rows(given, ROWS) if all_batched(specs) else given
