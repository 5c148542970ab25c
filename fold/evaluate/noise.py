"""Monte Carlo arithmetic: how far the rounding of the stored types can move what a graph computes in float64.

The graph is evaluated in float64 once more, and each inexact number is multiplied by `1 + a*u*δ`, with δ uniform in
[-1, 1], `u` half an ulp of the type in which the graph stores that tensor, and `a` the amplitude of that type. A number
that its type holds exactly is left as it is: arithmetic on such numbers need not round, and sizes that are computed as
floats must stay whole.
"""

import numpy as np
import onnx_ir as ir

from fold.arrays import Arrays, widened
from fold.evaluate.float64 import Evaluator
from fold.graph import FLOATS, constant, float64

HALF_ULP = {
    ir.DataType.FLOAT16: 2.0**-11,
    ir.DataType.BFLOAT16: 2.0**-8,
    ir.DataType.FLOAT: 2.0**-24,
    ir.DataType.DOUBLE: 2.0**-53,
}
"""The largest relative error of rounding to a type; tensors of other types are taken for float32."""
HALF_ULP_TF32 = 2.0**-11
"""That of the factors of a product in TF32."""
AMPLITUDE, AMPLITUDE_REDUCED = 256.0, 32.0
"""The multiple of rounding, for float32 and for coarser types. Sums within one operator round at each step: U was up to
40 times as far from R as the noise of one rounding for each tensor (docs/certificate.md). Where tensors are of coarser
types, such sums are float32."""


class NoisyEvaluator:
    """Evaluates a graph with noise on its inputs and on each float tensor that its nodes write; with `tf32`, the noise
    of float32 tensors is that of TF32."""

    def __init__(self, model: ir.Model, *, tf32: bool = False) -> None:
        self._run = Evaluator(model)
        values = (*model.graph.inputs, *(output for node in model.graph for output in node.outputs))
        self._types = {value.name or "": value.dtype for value in values if value.dtype in FLOATS}
        self._tf32 = tf32

    def __call__(self, inputs: Arrays, seed: int, record: Arrays | None = None) -> Arrays:
        """Outputs by name, in float64. The same seed gives the same noise. `record` gets each tensor with its noise."""
        random = np.random.default_rng(seed)

        def moved(name: str, array: np.ndarray, exact: np.ndarray) -> np.ndarray:
            noise = self._size(name) * random.uniform(-1, 1, array.shape)
            return np.where(exact, array, array * (1 + noise))

        def written(name: str, array: np.ndarray) -> np.ndarray:
            kind = self._types.get(name) or ir.DataType.FLOAT
            with np.errstate(over="ignore"):
                stored = array.astype((kind if kind in HALF_ULP else ir.DataType.FLOAT).numpy()).astype(np.float64)
            in_tf32 = self._tf32 and kind not in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
            noisy = moved(name, array, array == (np.round(array) if in_tf32 else stored))
            if record is not None:
                record[name] = noisy
            return noisy

        wide = widened(inputs)
        floats = {name: array for name, array in wide.items() if array.dtype == np.float64}
        return self._run({**wide, **{name: moved(name, a, a == np.round(a)) for name, a in floats.items()}}, written)

    def _size(self, name: str) -> float:
        """The largest relative noise of a tensor."""
        kind = self._types.get(name) or ir.DataType.FLOAT
        unit = max(HALF_ULP.get(kind, HALF_ULP[ir.DataType.FLOAT]), HALF_ULP_TF32 if self._tf32 else 0)
        return unit * (AMPLITUDE_REDUCED if unit > HALF_ULP[ir.DataType.FLOAT] else AMPLITUDE)


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


def with_moved_weights(model: ir.Model, roundings: float, seed: int) -> ir.Model:
    """A copy of a graph in float64 in which each weight is moved as `roundings` roundings to its stored type might.

    The error is uniform in ±`roundings` half units in the last place, of the weight itself or, for a vector, which may
    be a difference of larger numbers, of its root mean square if that is larger. Whole numbers stay as they are.
    """
    random = np.random.default_rng(seed)
    model = model.clone()
    moved: set[ir.Value] = set()
    for node in model.graph:
        if node.op_type not in WEIGHTED:
            continue
        for value in node.inputs:
            stored = constant(value)
            if value is None or stored is None or stored.dtype not in FLOATS or value in moved:
                continue
            moved.add(value)
            exact = float64(stored)
            size = np.abs(exact)
            if exact.ndim < 2:
                size = np.maximum(size, np.sqrt(np.mean(exact**2)))
            unit = HALF_ULP.get(stored.dtype, HALF_ULP[ir.DataType.FLOAT])
            error = random.uniform(-1, 1, exact.shape) * roundings * unit * size
            value.const_value = ir.tensor(np.where(exact == np.round(exact), exact, exact + error), name=value.name)
            value.type = ir.TensorType(ir.DataType.DOUBLE)
    return model
