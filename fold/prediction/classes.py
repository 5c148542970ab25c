"""Classes from the scores of a classifier: their order, their probabilities, their labels."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Classes:
    """The classes with the highest scores of each row, the best first. All arrays have the shape [rows, k].

    `index` is int64, the position of the class among the scores. `label` holds texts: those of the model, or the index
    as a text where it has no labels for this output. `probability` is float64, the softmax of the row's scores.
    """

    index: np.ndarray
    label: np.ndarray
    probability: np.ndarray


def best_classes(scores: np.ndarray, labels: Sequence[str] | None, count: int) -> Classes:
    """The `count` best classes of each row of `scores` [rows, classes], or all if there are fewer."""
    index = descending(scores)[:, :count]
    probability = np.take_along_axis(softmax(scores), index, axis=1)
    return Classes(index, np.array(class_names(labels, scores.shape[1]), np.object_)[index], probability)


def descending(table: np.ndarray) -> np.ndarray:
    """Indices of each row's values [rows, values] from the highest to the lowest. Equal values come in the order of
    their index, and NaN last."""
    if table.dtype.kind not in "iu":
        table = np.where(np.isnan(table), -np.inf, table.astype(np.float64))
    backwards = np.argsort(table[:, ::-1], axis=1, kind="stable")[:, ::-1]
    order: np.ndarray = table.shape[1] - 1 - backwards
    return order


def softmax(scores: np.ndarray) -> np.ndarray:
    """The probabilities of finite scores [rows, classes], in float64."""
    wide = scores.astype(np.float64)
    weights = np.exp(wide - wide.max(axis=1, keepdims=True))
    probabilities: np.ndarray = weights / weights.sum(axis=1, keepdims=True)
    return probabilities


def class_names(labels: Sequence[str] | None, count: int) -> Sequence[str]:
    """The labels of `count` classes. Labels that are not as many are those of another output: then the numbers."""
    return labels if labels is not None and len(labels) == count else tuple(map(str, range(count)))
