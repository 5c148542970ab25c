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
from fold.graph import FLOATS

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

    def __call__(
        self, inputs: Arrays, seed: int, roundings: float | None = None, record: Arrays | None = None
    ) -> Arrays:
        """Outputs by name, in float64, with noise of so many `roundings`; None: of the amplitude of each type. The same
        seed gives the same noise. `record` gets each tensor with its noise."""
        random = np.random.default_rng(seed)

        def moved(name: str, array: np.ndarray, exact: np.ndarray) -> np.ndarray:
            noise = self._size(name, roundings) * random.uniform(-1, 1, array.shape)
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

    def _size(self, name: str, roundings: float | None) -> float:
        """The largest relative noise of a tensor."""
        kind = self._types.get(name) or ir.DataType.FLOAT
        unit = max(HALF_ULP.get(kind, HALF_ULP[ir.DataType.FLOAT]), HALF_ULP_TF32 if self._tf32 else 0)
        if roundings is None:
            roundings = AMPLITUDE_REDUCED if unit > HALF_ULP[ir.DataType.FLOAT] else AMPLITUDE
        return unit * roundings
