"""Elementwise operators, dequantisation and n-gram counts.

Seen in onnx 1.23: its Erf rounds to float32, and so does its Gelu; its Softsign fails on rank 0; its DequantizeLinear
starts at opset 19; its TfIdfVectorizer writes float32 and fails in some modes.
"""

import math
from typing import Any

import numpy as np
from onnx.reference.op_run import OpRun
from onnx.reference.ops import op_tfidf_vectorizer
from onnx.reference.ops._quant_utils import reshape_input


def _erf(X: np.ndarray) -> np.ndarray:
    return np.asarray(np.vectorize(math.erf, otypes=[X.dtype])(X))


class Erf(OpRun):
    """In float64."""

    def _run(self, X: np.ndarray) -> tuple[np.ndarray]:
        return (_erf(X),)


class Gelu(OpRun):
    """In float64, exact or with tanh."""

    def _run(self, X: np.ndarray, approximate: str | None = None) -> tuple[np.ndarray]:
        if approximate == "tanh":
            return (0.5 * X * (1 + np.tanh(math.sqrt(2 / math.pi) * (X + 0.044715 * X**3))),)
        return (0.5 * X * (1 + _erf(X / math.sqrt(2))),)


class Relu(OpRun):
    """Without a copy."""

    def _run(self, X: np.ndarray) -> tuple[np.ndarray]:
        return (np.asarray(np.maximum(X, 0)),)


class Softsign(OpRun):
    """Of any rank."""

    def _run(self, X: np.ndarray) -> tuple[np.ndarray]:
        return (X / (1 + np.abs(X)),)


class DequantizeLinear(OpRun):
    """Of every opset: one scale, one for each index of an axis, or one for each block."""

    def _run(
        self,
        x: np.ndarray,
        x_scale: np.ndarray,
        x_zero_point: np.ndarray | None = None,
        axis: int | None = None,
        block_size: int | None = None,
        output_dtype: int | None = None,
    ) -> tuple[np.ndarray]:
        along = (x.shape, 1 if axis is None else axis, block_size or 0)
        y = x.astype(np.float64)
        if x_zero_point is not None:
            y -= reshape_input(x_zero_point, *along).astype(np.float64)
        return (y * reshape_input(x_scale, *along),)


class ReduceSumSquare(OpRun):
    """In the type of X, which a sum of numpy's may widen; `axes` is an input or, before opset 18, an attribute."""

    def _run(
        self, X: np.ndarray, axes: Any = None, keepdims: int = 1, noop_with_empty_axes: int = 0
    ) -> tuple[np.ndarray]:
        over = None if axes is None or not len(axes) else tuple(int(axis) for axis in axes)
        if over is None and noop_with_empty_axes:
            return (X**2,)
        return ((X**2).sum(axis=over, keepdims=bool(keepdims), dtype=X.dtype),)


class StringNormalizer(OpRun):
    """Without stopwords, in capital or small letters; one empty text where nothing is left."""

    def _run(
        self,
        X: np.ndarray,
        case_change_action: str = "NONE",
        is_case_sensitive: int = 0,
        locale: str | None = None,
        stopwords: list[str] | None = None,
    ) -> tuple[np.ndarray]:
        changed = {"LOWER": str.lower, "UPPER": str.upper}.get(case_change_action, str)
        compared = str if is_case_sensitive else str.lower
        stopped = {compared(word) for word in stopwords or []}
        kept = [changed(word) for word in X.reshape(-1).tolist() if compared(word) not in stopped]
        return (np.array(kept or [""], object).reshape(*X.shape[:-1], -1),)


class TfIdfVectorizer(op_tfidf_vectorizer.TfIdfVectorizer):
    """In float64."""

    def _run(self, *read: Any, **attributes: Any) -> tuple[np.ndarray]:
        if self.weights_ is None:
            self.weights_ = [1.0] * self.output_size_
        (counts,) = super()._run(*read, **attributes)  # type: ignore[no-untyped-call]
        return (counts.astype(np.float64),)
