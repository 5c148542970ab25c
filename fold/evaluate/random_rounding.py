"""Monte Carlo arithmetic: how far random roundings move the outputs of a graph, of its weights or of all its tensors.

A number gets a random error of about a rounding, and the graph is evaluated in float64 again. Rounding treats equal
numbers alike, also up to the sign and a power of two, and then their errors add up. So a random error depends on the
significand alone, and has the sign of the number.

From a few draws follows the standard deviation σ of each output, and from that a limit. The model is that of Higham and
Mary, SIAM J. Sci. Comput. 2019: errors of different numbers are independent and have mean zero. It is a model and no
theorem, because rounding is not random.
"""

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import onnx_ir as ir

from fold.arrays import Arrays, widened
from fold.evaluate.float64 import Evaluator
from fold.evaluate.noise import HALF_ULP
from fold.graph import FLOATS, VALUELESS, constant, inner_nodes

RISK = 1e-9
"""The probability that rounding alone takes an output beyond its limit, if its errors are as the model says."""
DRAWS, MOST_DRAWS = 3, 128
"""The number of draws, and the most if a difference exceeds its limit: σ from three draws may be far too small."""
ROUNDINGS = 4
"""Half units in the last place by which each tensor moves. Right folds need a third of one: sums within one operator
round at each step, and the folded graph rounds, too (docs/certificate.md)."""
LEAST = {ir.DataType.FLOAT16: 2.0**-25}
"""Half the distance of subnormal numbers, for a type that keeps them; a smaller number becomes zero."""
SMALLEST_NORMAL = 2.0**-126
"""A smaller number becomes zero in other types (fold.engine.rewrite)."""
BLOCK = 1 << 14
"""Numbers that are rounded together: they stay in the processor's cache."""
WEIGHTED = frozenset(
    {
        "Add",
        "BatchNormalization",
        "Conv",
        "ConvTranspose",
        "Div",
        "GRU",
        "Gather",
        "Gemm",
        "GroupNormalization",
        "InstanceNormalization",
        "LSTM",
        "LayerNormalization",
        "MatMul",
        "Mul",
        "PRelu",
        "RNN",
        "Sub",
    }
)
"""Operators whose constants are weights, which a tool may compute anew. Those of Resize, Clip or Pad are settings."""

Draw = Callable[[int], Arrays]
"""Outputs with random errors; others for each number."""


class RandomRounding:
    """A graph with exact weights, evaluated in float64 with each weight rounded at random when its type holds less.

    A number that rounds to itself or to zero is no random number.
    """

    def __init__(self, exact: ir.Model) -> None:
        self._run = Evaluator(exact)
        self.types = rounded_weights(exact)

    def __call__(self, families: Mapping[str, Arrays], draw: int) -> dict[str, Arrays]:
        """The outputs for each of several inputs."""
        return self._run.each(families, on_weight=partial(self._moved, draw))

    def _moved(self, draw: int, name: str, exact: np.ndarray) -> np.ndarray | None:
        if name not in self.types:
            return None
        numbers = exact.reshape(-1)
        moved = np.empty_like(numbers)
        for start in range(0, numbers.size, BLOCK):
            part = slice(start, start + BLOCK)
            moved[part] = _rounded_at_random(numbers[part], self.types[name], draw)
        return moved.reshape(exact.shape)


class MovedWeights:
    """A stored graph, evaluated in float64 with each weight moved as `roundings` roundings to its type might move it.

    The error is uniform in ±`roundings` half units in the last place, of the weight itself or, for a vector, which may
    be a difference of larger numbers, of its root mean square if that is larger. Whole numbers stay as they are.
    """

    def __init__(self, model: ir.Model, roundings: float) -> None:
        self._run, self._roundings = Evaluator(model), roundings
        self._units = {
            value.name or "": HALF_ULP[stored.dtype]
            for node in model.graph
            if node.op_type in WEIGHTED
            for value in node.inputs
            if value is not None and (stored := constant(value)) is not None and stored.dtype in FLOATS
        }

    def __call__(self, inputs: Arrays, draw: int) -> Arrays:
        moved = partial(self._moved, draw)
        return self._run(inputs, on_tensor=moved, on_weight=moved)  # a node may write a constant

    def _moved(self, draw: int, name: str, stored: np.ndarray) -> np.ndarray | None:
        if name not in self._units:
            return None
        size = np.abs(stored)
        if stored.ndim < 2:
            size = np.maximum(size, np.sqrt(np.mean(stored**2)))
        with np.errstate(invalid="ignore"):  # an infinity is a whole number
            moved = stored + self._roundings * self._units[name] * size * _shares(stored, draw)
        return np.where(stored == np.round(stored), stored, moved)


class MovedTensors:
    """A graph, evaluated in float64 with each number of its inputs, of its weights and of what its nodes write moved as
    `ROUNDINGS` roundings of float64 might move it.

    What is computed from shapes alone stays as it is, and so do whole numbers, which may be sizes as well.
    """

    def __init__(self, model: ir.Model) -> None:
        self._run = Evaluator(model)
        moved, weights = set[ir.Value | None](model.graph.inputs), set[ir.Value | None]()
        for node in model.graph:
            read = {*node.inputs, *(value for inner in inner_nodes(node) for value in inner.inputs)}
            if node.op_type not in VALUELESS and not read.isdisjoint(moved):
                moved.update(node.outputs)
                weights.update(value for value in read if node.op_type in WEIGHTED and constant(value) is not None)
        self._names = {value.name for value in moved | weights if value is not None}

    def __call__(self, inputs: Arrays, draw: int) -> Arrays:
        """The outputs. The same number gives the same errors. Raises `BnfoldError` where these change a size."""
        moved = partial(self._moved, draw)
        wide = widened(inputs)
        given = {name: moved(name, array) if array.dtype == np.float64 else array for name, array in wide.items()}
        return self._run(given, on_tensor=moved, on_weight=moved)

    def _moved(self, draw: int, name: str, array: np.ndarray) -> np.ndarray:
        if name not in self._names:
            return array
        with np.errstate(invalid="ignore"):  # an infinity is a whole number
            error = array * (ROUNDINGS * HALF_ULP[ir.DataType.DOUBLE] * _shares(array, draw))
        return np.where(array == np.round(array), array, array + error)


def rounded_weights(exact: ir.Model) -> dict[str, ir.DataType]:
    """The weights that are more exact than the type that will store them, and that type."""
    return {
        name: value.dtype
        for name, value in exact.graph.initializers.items()
        if value.const_value is not None and value.dtype is not None and value.const_value.dtype != value.dtype
    }


def rounding_limits(
    draw: Draw, base: Arrays, gaps: Mapping[str, float], floors: Mapping[str, float]
) -> tuple[dict[str, float], int]:
    """How far random errors move each output in `gaps` at most, but for `RISK`; and the number of draws.

    `σ·√(2·ln(2m/RISK))` for an output of m numbers, with the largest σ of any of them about `base`, and at least
    `floors`. It is to be compared with `gaps`. There are more than `DRAWS` draws while a gap exceeds its limit and so
    few draws may have estimated σ too small: its error is Student's, whose tail for k draws falls like x⁻ᵏ.
    """
    sums = {name: np.zeros(base[name].shape) for name in gaps}
    limits = dict(floors)
    count = 0
    while gaps and count < MOST_DRAWS:
        moved = draw(count)
        count += 1
        for name in gaps:
            if moved[name].shape == base[name].shape:  # else the weights decide how many there are
                with np.errstate(invalid="ignore"):
                    change = moved[name] - base[name]
                sums[name] += np.where(np.isfinite(change), change, 0.0) ** 2
            sigma = np.sqrt(sums[name].max(initial=0) / count)
            limits[name] = max(floors[name], float(sigma * np.sqrt(2 * np.log(2 * max(base[name].size, 1) / RISK))))
        unclear = RISK ** (-1 / count)
        if count >= DRAWS and not any(limits[name] < gap <= unclear * limits[name] for name, gap in gaps.items()):
            break
    return limits, count


def _rounded_at_random(exact: np.ndarray, dtype: ir.DataType, draw: int) -> np.ndarray:
    """Float64 numbers, as they might be stored in a type."""
    bits, half_ulp = exact.view(np.uint64), HALF_ULP[dtype]
    powers = (bits & np.uint64(0x7FF0_0000_0000_0000)).view(np.float64)  # the largest power of two in each number
    half_units = powers * half_ulp
    if dtype in LEAST:
        half_units = np.maximum(half_units, LEAST[dtype])
    with np.errstate(invalid="ignore"):  # an infinity is no random number
        moved = exact + half_units * _shares(exact, draw)
    lost = np.uint64(2.0**52 * 2 * half_ulp - 1)  # the bits of a significand that the type does not hold
    moved = np.where(bits & lost, moved, exact)
    vanishing = powers < LEAST.get(dtype, SMALLEST_NORMAL)
    return np.where(vanishing, 0.0, moved) if vanishing.any() else moved


def _shares(array: np.ndarray, draw: int) -> np.ndarray:
    """Uniform in [-1, 1), by the first 32 bits of the significand of each number of a float64 array; of both signs."""
    key = (array.reshape(-1).view(np.uint64) >> np.uint64(20)).astype(np.uint32)
    key ^= np.uint32(draw * 0x9E37_79B9 & 0xFFFF_FFFF)
    for shift, factor in ((16, 0x85EB_CA6B), (15, 0xC2B2_AE35)):  # as hash functions end
        key *= np.uint32(factor)
        key ^= key >> np.uint32(shift)
    shares: np.ndarray = key.view(np.int32).reshape(array.shape) * 2.0**-31
    return np.where(array < 0, -shares, shares)
