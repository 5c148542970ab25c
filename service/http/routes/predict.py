"""`POST /v1/models/{name}:predict`, the v1 convention: rows in, rows out, without datatypes and shapes.

An instance is one row of the input, or an object by input name if the model has several inputs; a prediction is one row
of the output, or an object likewise. A model with one input takes the rows as a `.npy`, too, and one with one output
answers so if the request accepts it. A model that declares preprocessing takes an image, and answers with labels and
probabilities.
"""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from fastapi import APIRouter
from starlette.types import Scope

from fold.arrays import Arrays
from fold.artifact import DTYPES
from fold.prediction import best_classes, class_names, softmax
from service.budget import Body
from service.errors import BadRequestError, ComputeError, NotAcceptableError, UnreadableError, UnsupportedError, shown
from service.headers import JSON, Headers
from service.http.head_cache import JSON_TYPE, RequestHead
from service.http.images import FORMATS, tensor_of_image
from service.http.npy import CONTENT_TYPE, check_npy, is_npy, read_npy, wants_npy, write_npy
from service.http.routes.endpoint import Endpoint
from service.operations import compute
from service.protocol import (
    EXPECTED,
    PIECE,
    VALUES,
    Capacity,
    Estimate,
    Signature,
    Steps,
    Text,
    array_of_rows,
    array_text,
    columns_in_pieces,
    columns_of,
    json_array,
    parse_object,
    read_document,
    render_json,
    rows_in_pieces,
    written_json,
)
from service.repository import Model, Repository
from service.settings import Settings

NPY_BYTES = 1 << 20
"""A larger array is read by a thread, because it may have to be transposed."""
ROWS = 16
"""Rows whose predictions are written at a time."""
NPY = (b"content-type", CONTENT_TYPE.encode())

Form = Literal["rows", "npy", "labels"]
"""Of the answer: predictions in JSON, an array, or predictions with a label for each row."""


def v1_routes(repository: Repository) -> APIRouter:
    router = APIRouter(tags=["v1"])

    @router.get("/v1/models/{name}")
    async def model_ready(name: str) -> dict[str, Any]:
        """Whether the model serves."""
        return {"name": repository.find(name).name, "ready": True}

    return router


@dataclass(slots=True)
class PredictRequest:
    inputs: Arrays
    rows: int
    form: Form
    priority: int = 0
    timeout: float | None = None


class Predict(Endpoint[PredictRequest]):
    route = "predict"

    def read(self, model: Model, body: Body, head: RequestHead) -> PredictRequest | None:
        """None for images, much JSON and large arrays, which take long to read, and for instances of a model without a
        batch axis, each of which is a run."""
        signature, kind = model.signature, head.content_type
        form: Form = _form(head, signature) if head.accept else "rows"
        if kind != JSON_TYPE:
            if kind.startswith("image/"):
                return None
            if is_npy(kind, body):
                return self._request(signature, _given(signature, body), form) if len(body) <= NPY_BYTES else None
        if not signature.batched or len(body) > PIECE:
            return None
        columns = columns_of(_parse(body, kind, self._settings), signature, self._settings.max_request_rows)
        return self._request(
            signature, {name: array_of_rows(name, of, signature) for name, of in columns.items()}, form
        )

    def write(self, model: Model, request: PredictRequest, outputs: Arrays) -> tuple[Headers, bytes]:
        if request.form == "npy":
            body = write_npy(next(iter(outputs.values())))
            return [NPY, (b"content-length", b"%d" % len(body))], body
        if request.form == "labels" and len(outputs) == 1 and (scores := next(iter(outputs.values()))).ndim == 2:
            return _answer(render_json(_classified(scores, model.manifest.labels)))
        by_row = model.signature.batched or request.form == "labels"
        return _answer(render_json(_rows(outputs, request.rows) if by_row else [_named(outputs)]))

    async def answer_in_steps(self, model: Model, body: Body, head: RequestHead, scope: Scope) -> tuple[Headers, bytes]:
        if head.content_type.startswith("image/"):
            request = await self._read_image(model, body, head)
            return self.write(model, request, await compute(model, request.inputs, request.rows, scope))
        signature, form = model.signature, _form(head, model.signature)
        if head.content_type != JSON_TYPE and is_npy(head.content_type, body):
            inputs = await asyncio.to_thread(_given, signature, body)
            request = self._request(signature, inputs, form)
            outputs = await compute(model, request.inputs, request.rows, scope)
            return await self.written(model, request, outputs)
        columns = await self._columns(model, body, head)
        if signature.batched:
            request = self._request(signature, columns, form)
            outputs = await compute(model, request.inputs, request.rows, scope)
            return await self.written(model, request, outputs)
        requests = self._each(signature, columns, form)
        runs = [await compute(model, request.inputs, request.rows, scope) for request in requests]
        if form == "npy":
            return self.write(model, requests[0], runs[0])
        return _answer(await self._turns.run(_texts(runs)))

    def takes_long(self, request: PredictRequest, outputs: Arrays) -> bool:
        if request.form != "rows":
            return False
        return sum([array.size for array in outputs.values()]) > VALUES

    def write_in_pieces(self, model: Model, request: PredictRequest, outputs: Arrays) -> Steps[tuple[Headers, bytes]]:
        if len(outputs) == 1:
            return _answer((yield from array_text(next(iter(outputs.values())))))
        by_row = ({name: array[row] for name, array in outputs.items()} for row in range(request.rows))
        return _answer((yield from _texts(by_row)))

    async def _columns(self, model: Model, body: Body, head: RequestHead) -> dict[str, Any]:
        """Each input's values over the instances: an array, or a list for a model without a batch axis."""
        signature, most = model.signature, self._settings.max_request_rows
        if len(body) > PIECE:
            return await self._turns.run(self._columns_in_pieces(signature, body, head.content_type))
        return columns_of(_parse(body, head.content_type, self._settings), signature, most)

    def _columns_in_pieces(self, signature: Signature, body: Body, kind: str) -> Steps[dict[str, Any]]:
        estimate, most = Estimate(self._budget), self._settings.max_request_rows
        try:
            text, capacity = Text.of(body, len(body)), Capacity.of(signature, most)
            try:
                document = yield from read_document(text, capacity, estimate, EXPECTED)
            except BadRequestError as error:
                _refuse_kind(kind, error)
                raise
            columns, refused = {}, ""
            try:
                columns = yield from columns_in_pieces(document.content, signature, most, self._budget, estimate)
            except UnreadableError:
                raise
            except BadRequestError as error:
                refused = str(error)
            yield from document.finish(estimate, self._settings.max_json_depth)  # what is no JSON is told first
            if refused:
                raise BadRequestError(refused)
            if signature.batched:
                for name, values in columns.items():
                    columns[name] = yield from rows_in_pieces(name, values, signature)
            return columns
        finally:
            estimate.close()

    def _request(self, signature: Signature, inputs: Arrays, form: Form) -> PredictRequest:
        rows = signature.check(inputs, self._settings.max_request_rows)
        if form == "npy":
            check_npy(DTYPES[next(iter(signature.outputs.values())).datatype])
        return PredictRequest(inputs, rows, form)

    def _each(self, signature: Signature, columns: dict[str, Any], form: Form) -> list[PredictRequest]:
        """A request for each instance, for a model without a batch axis."""
        count = len(next(iter(columns.values())))
        if form == "npy" and count > 1:
            raise NotAcceptableError(
                "without a batch axis each instance is a run, and a .npy holds one; send one instance"
            )
        return [
            self._request(
                signature, {name: _instance(name, of[position], signature) for name, of in columns.items()}, form
            )
            for position in range(count)
        ]

    async def _read_image(self, model: Model, body: Body, head: RequestHead) -> PredictRequest:
        how, kind = model.manifest.preprocessing, head.content_type
        signature = model.signature
        if how is None or how.input not in signature.inputs:
            raise UnsupportedError(
                f"model {model} declares no preprocessing, so it takes no images; expected {EXPECTED}"
            )
        if kind not in FORMATS:
            raise UnsupportedError(f"Content-Type {shown(kind)} is not read here; expected {', '.join(FORMATS)}")
        form: Form = "npy" if _form(head, signature) == "npy" else "labels"
        datatype = signature.inputs[how.input].datatype
        # Decoding releases the interpreter for most of its time, and a photograph takes longer than many models.
        tensor = await asyncio.to_thread(
            tensor_of_image, body, kind, how, datatype, self._settings.max_image_pixels, self._budget
        )
        return self._request(signature, {how.input: tensor}, form)


def _instance(name: str, value: Any, signature: Signature) -> np.ndarray:
    array: np.ndarray = value if type(value) is np.ndarray else array_of_rows(name, [value], signature)[0]
    return array


def _texts(rows: Iterable[Arrays]) -> Steps[bytes]:
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


def _answer(predictions: bytes) -> tuple[Headers, bytes]:
    body = b'{"predictions":%b}' % predictions
    return [JSON, (b"content-length", b"%d" % len(body))], body


def _form(head: RequestHead, signature: Signature) -> Form:
    return "npy" if wants_npy(head.accept, len(signature.outputs)) else "rows"


def _parse(body: Body, kind: str, settings: Settings) -> dict[str, Any]:
    try:
        return parse_object(body, settings.max_json_depth, EXPECTED)
    except BadRequestError as error:
        _refuse_kind(kind, error)
        raise


def _refuse_kind(kind: str, error: BadRequestError) -> None:
    """Raise `UnsupportedError` for a body that is neither JSON nor declared as JSON. Clients send JSON by many names,
    so the name counts only if it is none."""
    if kind not in ("", "application/json", "application/octet-stream", "application/x-www-form-urlencoded"):
        raise UnsupportedError(
            f"Content-Type {shown(kind)} is not read here; expected JSON, {EXPECTED}, or "
            f"{', '.join((CONTENT_TYPE, *FORMATS))}"
        ) from error


def _given(signature: Signature, body: Body) -> Arrays:
    if len(signature.inputs) != 1:
        names = ", ".join(repr(name) for name in signature.inputs)
        raise BadRequestError(f"a .npy is one array, but there are {names}; send them as JSON, or by infer")
    name = next(iter(signature.inputs))
    return {name: read_npy(name, body)}


def _rows(outputs: Arrays, rows: int) -> Any:
    """A prediction for each row."""
    if len(outputs) == 1:
        return json_array(next(iter(outputs.values())))
    return [_named({name: array[row, ...] for name, array in outputs.items()}) for row in range(rows)]


def _named(outputs: Arrays) -> Any:
    """One prediction: the output itself where there is one, an object by name where there are several."""
    values = {name: json_array(np.asarray(array)) for name, array in outputs.items()}
    return next(iter(values.values())) if len(values) == 1 else values


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
