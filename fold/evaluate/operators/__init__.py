"""Operators that replace those of onnx's reference implementation where it is wrong, incomplete or wasteful.

What was wrong in onnx 1.23 stands in each module. tests/fold/evaluate/test_operators_sweep.py compares every operator
that the evaluator runs, replaced or not, with ONNX Runtime.
"""

from onnx.reference.op_run import OpRun

from fold.evaluate.operators import control, elements, normalisation, products, recurrent, sampling, selection, windows
from fold.evaluate.operators.sampling import interpolation
from fold.evaluate.operators.windows import Windows

__all__ = ["OPERATORS", "Windows", "interpolation"]

OPERATORS: list[type[OpRun]] = [
    control.Loop,
    control.OptionalGetElement,
    control.Scan,
    elements.DequantizeLinear,
    elements.Erf,
    elements.Gelu,
    elements.ReduceSumSquare,
    elements.Relu,
    elements.Softsign,
    elements.StringNormalizer,
    elements.TfIdfVectorizer,
    normalisation.BatchNormalization,
    normalisation.GroupNormalization,
    normalisation.LRN,
    normalisation.LogSoftmax,
    normalisation.LpNormalization,
    normalisation.MeanVarianceNormalization,
    products.Einsum,
    recurrent.GRU,
    recurrent.LSTM,
    recurrent.RNN,
    sampling.AffineGrid,
    sampling.DeformConv,
    sampling.GridSample,
    sampling.MaxRoiPool,
    sampling.Resize,
    sampling.Upsample,
    selection.GatherElements,
    selection.NonMaxSuppression,
    selection.OneHot,
    windows.AveragePool,
    windows.Conv,
    windows.ConvTranspose,
    windows.GlobalLpPool,
    windows.GlobalMaxPool,
    windows.LpPool,
    windows.MaxPool,
    windows.Pad,
]
