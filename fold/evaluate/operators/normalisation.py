"""Normalisations.

Seen in onnx 1.23: its BatchNormalization trains where opsets 7 to 13 only apply the running statistics. Its LRN loops
over the batch in place of the channels, and takes four axes only. Its LpNormalization sums values in place of absolute
values. Its LogSoftmax takes the logarithm of probabilities that underflow. Its MeanVarianceNormalization and
GroupNormalization round to float32.
"""

import numpy as np
from onnx.reference.op_run import OpRun


class BatchNormalization(OpRun):
    """Of every opset; opsets 7 to 13 only apply the running statistics."""

    def _run(
        self,
        X: np.ndarray,
        scale: np.ndarray,
        B: np.ndarray,
        mean: np.ndarray,
        var: np.ndarray,
        consumed_inputs: list[int] | None = None,
        epsilon: float | None = None,
        is_test: int | None = None,
        momentum: float | None = None,
        spatial: int | None = None,
        training_mode: int | None = None,
    ) -> tuple[np.ndarray, ...]:
        epsilon = float(np.float32(1e-5)) if epsilon is None else epsilon
        over = tuple(axis for axis in range(X.ndim) if axis != 1)
        shape = [-1] + [1] * (X.ndim - 2)
        if not training_mode:
            s = scale / np.sqrt(var + epsilon)
            Y = X - mean.reshape(shape)
            Y *= s.reshape(shape)  # new arrays of large tensors take as long as the arithmetic
            Y += B.reshape(shape)
            return (Y,)
        batch_mean, batch_var = X.mean(axis=over), X.var(axis=over)
        s = scale / np.sqrt(batch_var + epsilon)
        kept = 0.9 if momentum is None else momentum
        return (
            (X - batch_mean.reshape(shape)) * s.reshape(shape) + B.reshape(shape),
            mean * kept + batch_mean * (1 - kept),
            var * kept + batch_var * (1 - kept),
        )


class LRN(OpRun):
    """Of any rank; windows of `size` channels are cut off at both ends."""

    def _run(
        self,
        X: np.ndarray,
        alpha: float = 1e-4,
        beta: float = 0.75,
        bias: float = 1.0,
        size: int = 1,
    ) -> tuple[np.ndarray]:
        before, channels = (size - 1) // 2, X.shape[1]
        squares, total = X**2, np.zeros_like(X)
        for c in range(channels):
            total[:, c] = squares[:, max(0, c - before) : c - before + size].sum(axis=1)
        return (X / (bias + alpha / size * total) ** beta,)


class LpNormalization(OpRun):
    """Zeros stay zeros."""

    def _run(self, X: np.ndarray, axis: int = -1, p: int = 2) -> tuple[np.ndarray]:
        norm = (np.abs(X) ** p).sum(axis=axis, keepdims=True) ** (1 / p)
        return (np.divide(X, norm, out=np.zeros_like(X), where=norm != 0),)


class MeanVarianceNormalization(OpRun):
    """With the deviation of all elements along `axes`."""

    def _run(self, X: np.ndarray, axes: list[int] | None = None) -> tuple[np.ndarray]:
        over = tuple([0, 2, 3] if axes is None else axes)
        return ((X - X.mean(axis=over, keepdims=True)) / (X.std(axis=over, keepdims=True) + 1e-9),)


class LogSoftmax(OpRun):
    """As differences, so that no probability becomes zero."""

    def _run(self, X: np.ndarray, axis: int = -1) -> tuple[np.ndarray]:
        shifted = X - X.max(axis=axis, keepdims=True)
        return (shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True)),)


class GroupNormalization(OpRun):
    """With a scale and a bias for each channel or, in opset 18, for each group."""

    def _run(
        self,
        X: np.ndarray,
        scale: np.ndarray,
        bias: np.ndarray,
        num_groups: int = 1,
        epsilon: float = 1e-5,
        stash_type: int | None = None,
    ) -> tuple[np.ndarray]:
        grouped = X.reshape(X.shape[0], num_groups, -1)
        mean, variance = grouped.mean(axis=2, keepdims=True), grouped.var(axis=2, keepdims=True)
        y = ((grouped - mean) / np.sqrt(variance + epsilon)).reshape(X.shape)
        scale, bias = (np.repeat(array, X.shape[1] // len(array)) for array in (scale, bias))
        shape = [-1] + [1] * (X.ndim - 2)
        return (y * scale.reshape(shape) + bias.reshape(shape),)
