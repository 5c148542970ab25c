"""Outputs of a run as predictions in JSON: one for each row, or labels with probabilities."""

from collections.abc import Iterable
from typing import Any, Literal

import numpy as np

from fold.arrays import Arrays
from fold.prediction import best_classes, class_names, softmax
from service.errors import ComputeError
from service.headers import JSON, Headers
from service.protocol import Steps, array_text, json_array, render_json, written_json
from service.repository import Model

ROWS = 16
"""Rows whose predictions are written at a time."""

Form = Literal["rows", "npy", "labels"]
"""Of the answer: predictions in JSON, an array, or predictions with a label for each row."""


def predictions(model: Model, form: Form, rows: int, outputs: Arrays) -> Any:
    """For `render_json`."""
    if form == "labels" and len(outputs) == 1 and (scores := next(iter(outputs.values()))).ndim == 2:
        return _classified(scores, model.manifest.labels)
    by_row = model.signature.batched or form == "labels"
    return _of_rows(outputs, rows) if by_row else [named(outputs)]


def named(outputs: Arrays) -> Any:
    """One prediction: the output itself where there is one, an object by name where there are several."""
    values = {name: json_array(np.asarray(array)) for name, array in outputs.items()}
    return next(iter(values.values())) if len(values) == 1 else values


def predictions_text(rows: Iterable[Arrays]) -> Steps[bytes]:
    """The predictions of several rows or runs as a JSON list."""
    texts = []
    for outputs in rows:
        parts = {}
        for name, array in outputs.items():
            parts[name] = written_json((yield from array_text(np.asarray(array))))
        texts.append(render_json(next(iter(parts.values())) if len(parts) == 1 else parts))
        if len(texts) % ROWS == 0:
            yield
    return b"[%b]" % b",".join(texts)


def answer_of(text: bytes) -> tuple[Headers, bytes]:
    """Headers and body of an answer with this JSON list of predictions."""
    body = b'{"predictions":%b}' % text
    return [JSON, (b"content-length", b"%d" % len(body))], body


def _of_rows(outputs: Arrays, rows: int) -> Any:
    if len(outputs) == 1:
        return json_array(next(iter(outputs.values())))
    return [named({name: array[row, ...] for name, array in outputs.items()}) for row in range(rows)]


def _classified(scores: np.ndarray, labels: tuple[str, ...] | None) -> list[dict[str, Any]]:
    """The softmax of each row of scores, by label."""
    if not np.isfinite(scores).all():
        raise ComputeError("the model's scores for this image are not finite, so no label follows from them")
    names, best = class_names(labels, scores.shape[1]), best_classes(scores, labels, 1)
    return [
        {
            "label": best.label[row, 0],
            "index": int(best.index[row, 0]),
            "probability": float(best.probability[row, 0]),
            "probabilities": dict(zip(names, probabilities.tolist(), strict=True)),
        }
        for row, probabilities in enumerate(softmax(scores))
    ]
