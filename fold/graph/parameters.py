"""Parameters with which a model cannot compute: weights and statistics that are NaN or infinite, and a wrong ε."""

import math
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from fold.errors import BnfoldError, short
from fold.graph.reading import FLOATS, constant, display_name, float64, integer, is_batchnorm, is_standard, real

WEIGHTED = frozenset(
    {
        *("Conv", "ConvTranspose", "DeformConv", "DequantizeLinear", "Gemm", "MatMul", "PRelu"),
        *("BatchNormalization", "GroupNormalization", "InstanceNormalization", "LayerNormalization"),
        *("GRU", "LSTM", "RNN"),
    }
)
"""Operators whose constant inputs are weights or statistics. Elsewhere an infinity may be meant: a mask, a bound."""
ARITHMETIC = frozenset({"Add", "Div", "Mul", "Sub"})
"""Operators of a BatchNorm that is written out. A constant infinity may be a mask; NaN is none."""
EPSILON = float(np.float32(1e-5))
"""ONNX's default of ε."""
MEND = "train again, recompute the statistics, or take an earlier checkpoint"


def refuse_not_finite(model: ir.Model) -> None:
    """Raise `BnfoldError` that names the layer if a constant weight or statistic of `model` is NaN or infinite, an ε is
    negative or not finite, or a BatchNorm's variance + ε is not positive.

    Such a model writes NaN or infinities, and these can hide behind what follows: a proof that compares only what is
    finite proves too little of it.
    """
    seen = set[ir.Value]()
    for node in model.graph.all_nodes():
        if not is_standard(node):
            continue
        if "epsilon" in node.attributes:
            epsilon = real(node, "epsilon", EPSILON)
            if not (math.isfinite(epsilon) and epsilon >= 0):
                raise BnfoldError(
                    f"{_name(node)} has an ε of {epsilon:g}, expected a number of at least 0; export the model again"
                )
        if node.op_type in WEIGHTED | ARITHMETIC:
            for value, tensor in _weights(node):
                if value not in seen:
                    seen.add(value)
                    _check(node, value, tensor)
        if is_batchnorm(node):
            _check_variance(node)


def _weights(node: ir.Node) -> Iterator[tuple[ir.Value, ir.TensorProtocol]]:
    for value in node.inputs:
        tensor = constant(value)
        if value is not None and tensor is not None and tensor.dtype in FLOATS:
            yield value, tensor


def _check(node: ir.Node, value: ir.Value, tensor: ir.TensorProtocol) -> None:
    array = tensor.numpy()
    wrong = np.isnan(array) if node.op_type in ARITHMETIC else ~np.isfinite(array)
    if wrong.any():
        raise BnfoldError(
            f"{_name(node)} has parameters that are NaN or infinite: {int(wrong.sum()):,} of {wrong.size:,} numbers of "
            f"{short(value.name or '')!r}; {MEND}"
        )


def _check_variance(node: ir.Node) -> None:
    variance = constant(node.inputs[4])
    if variance is None or integer(node, "training_mode", 0):
        return
    sums = float64(variance) + real(node, "epsilon", EPSILON)
    if (sums <= 0).any():
        channel = int(np.flatnonzero(sums <= 0)[0])
        raise BnfoldError(
            f"{_name(node)} has a variance + ε of {sums[channel]:.3g} in channel {channel}, which must be positive; "
            f"{MEND}"
        )


def _name(node: ir.Node) -> str:
    return short(display_name(node))
