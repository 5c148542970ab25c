"""The classification extension: of each row the highest values, as strings `value:index[:label]`.

Values are written as Triton writes them: six decimals for whatever is no whole number. Equal values come in the order
of their index, and NaN last.
"""

from collections.abc import Sequence
from math import prod

import numpy as np

from fold.prediction import descending
from service.protocol.pieces import VALUES, Steps


def classify(array: np.ndarray, count: int, labels: Sequence[str] | None, *, batched: bool) -> np.ndarray:
    """BYTES of shape [rows, min(count, n)], without the rows where there is no batch axis; n are a row's values.

    Labels that are not as many as the values are those of another output.
    """
    rows, values = (len(array), prod(array.shape[1:])) if batched else (1, array.size)
    table = array.reshape(rows, values)
    names = labels if labels is not None and len(labels) == values else None
    best = descending(table)[:, :count]
    texts = [
        _text(value, index, names)
        for row, order in zip(table, best, strict=True)
        for value, index in zip(row[order].tolist(), order.tolist(), strict=True)
    ]
    return np.array(texts, np.object_).reshape(best.shape if batched else best.shape[1:])


def classify_in_pieces(
    array: np.ndarray, count: int, labels: Sequence[str] | None, *, batched: bool
) -> Steps[np.ndarray]:
    """As `classify`, some rows at a time."""
    if not batched:
        return classify(array, count, labels, batched=False)
    at_a_time = max(VALUES // max(prod(array.shape[1:]), 1), 1)
    parts = []
    for begin in range(0, max(len(array), 1), at_a_time):
        parts.append(classify(array[begin : begin + at_a_time], count, labels, batched=True))
        yield
    return np.concatenate(parts)


def _text(value: float, index: int, labels: Sequence[str] | None) -> str:
    number = str(value) if isinstance(value, int) else f"{value:f}"
    return f"{number}:{index}" if labels is None else f"{number}:{index}:{labels[index]}"
