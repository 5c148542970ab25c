"""Operators that select elements.

Seen in onnx 1.23: its GatherElements requires indices of the size of the data, and at most 32 along the axis; its
NonMaxSuppression requires all of its inputs, as vectors; its OneHot requires a depth of rank 0.
"""

import numpy as np
from onnx.reference.op_run import OpRun
from onnx.reference.ops import op_non_max_suppression, op_one_hot


class GatherElements(OpRun):
    """With any number of indices along each axis."""

    def _run(self, X: np.ndarray, indices: np.ndarray, axis: int = 0) -> tuple[np.ndarray]:
        axis %= X.ndim
        places: list[np.ndarray] = list(np.indices(indices.shape, sparse=True))
        places[axis] = indices
        return (X[tuple(places)],)


class NonMaxSuppression(op_non_max_suppression.NonMaxSuppression):
    """Thresholds may be left out or be scalars."""

    def _run(
        self,
        boxes: np.ndarray,
        scores: np.ndarray,
        most: np.ndarray | None = None,
        iou_threshold: np.ndarray | None = None,
        score_threshold: np.ndarray | None = None,
        center_point_box: int = 0,
    ) -> tuple[np.ndarray]:
        count = np.zeros(1, np.int64) if most is None else np.reshape(most, -1)
        overlap = np.zeros(1) if iou_threshold is None else np.reshape(iou_threshold, -1)
        least = None if score_threshold is None else np.reshape(score_threshold, -1)
        (selected,) = super()._run(  # type: ignore[no-untyped-call]
            boxes, scores, count, overlap, least, center_point_box
        )
        return (selected.reshape(-1, 3),)


class OneHot(op_one_hot.OneHot):
    """With a depth of rank 0 or 1."""

    def _run(self, indices: np.ndarray, depth: np.ndarray, values: np.ndarray, axis: int = -1) -> tuple[np.ndarray]:
        (hot,) = super()._run(  # type: ignore[no-untyped-call]
            indices, np.reshape(depth, -1)[0], values, axis=axis
        )
        return (hot,)
