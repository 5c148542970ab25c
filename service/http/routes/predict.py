"""`POST /v1/models/{name}:predict`, the v1 convention: rows in, rows out, without datatypes and shapes.

An instance is one row of the input, or an object by input name if the model has several inputs; a prediction is one row
of the output, or an object likewise. A model with one input takes the rows as a `.npy`, too, and one with one output
answers so if the request accepts it. A model that declares preprocessing takes an image, and answers with labels and
probabilities. On request the reference answers, too.
"""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
from fastapi import APIRouter
from starlette.types import Scope

from fold.arrays import Arrays
from fold.artifact import DTYPES
from fold.prediction import best_classes, class_names, softmax
from service.access import Access
from service.budget import Body, Budget
from service.errors import BadRequestError, ComputeError, NotAcceptableError, UnreadableError, UnsupportedError, shown
from service.headers import JSON, Headers
from service.http.head_cache import JSON_TYPE, RequestHead
from service.http.images import FORMATS, tensor_of_image
from service.http.npy import CONTENT_TYPE, check_npy, is_npy, read_npy, wants_npy, write_npy
from service.http.routes.endpoint import Endpoint
from service.http.routes.proofs import ProofQueue
from service.http.routes.reference import asks_reference, write_both
from service.operations import Turns, compute
from service.proof import reference_answers
from service.protocol import (
    EXPECTED,
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
    is_long,
    json_array,
    parse_object,
    read_document,
    render_json,
    rows_in_pieces,
    written_json,
)
from service.repository import Model, Repository
from service.settings import Settings
from service.telemetry import Metrics

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

    def __init__(
        self,
        settings: Settings,
        repository: Repository,
        metrics: Metrics,
        access: Access,
        budget: Budget,
        turns: Turns,
        proofs: ProofQueue,
    ) -> None:
        super().__init__(settings, repository, metrics, access, budget, turns)
        self._proofs = proofs

    def read(self, model: Model, body: Body, head: RequestHead) -> PredictRequest | None:
        """None for images, much JSON and large arrays, which take long to read, for instances of a model without a
        batch axis, each of which is a run, and where the reference is asked for its answer."""
        signature, kind = model.signature, head.content_type
        if head.reference:
            return None
        form: Form = _form(head, signature) if head.accept else "rows"
        if kind != JSON_TYPE:
            if kind.startswith("image/"):
                return None
            if is_npy(kind, body):
                return self._request(signature, _given(signature, body), form) if len(body) <= NPY_BYTES else None
        if not signature.batched or is_long(body, len(body)):
            return None
        document = _parse(body, kind, self._settings)
        if "reference" in document:
            return None
        columns = columns_of(document, signature, self._settings.max_request_rows)
        return self._request(
            signature, {name: array_of_rows(name, of, signature) for name, of in columns.items()}, form
        )

    def write(self, model: Model, request: PredictRequest, outputs: Arrays) -> tuple[Headers, bytes]:
        if request.form == "npy":
            body = write_npy(next(iter(outputs.values())))
            return [NPY, (b"content-length", b"%d" % len(body))], body
        return _answer(render_json(self._predictions(model, request, outputs)))

    def _predictions(self, model: Model, request: PredictRequest, outputs: Arrays) -> Any:
        if request.form == "labels" and len(outputs) == 1 and (scores := next(iter(outputs.values()))).ndim == 2:
            return _classified(scores, model.manifest.labels)
        by_row = model.signature.batched or request.form == "labels"
        return _rows(outputs, request.rows) if by_row else [_named(outputs)]

    async def answer_in_steps(self, model: Model, body: Body, head: RequestHead, scope: Scope) -> tuple[Headers, bytes]:
        requests, with_reference = await self._read_in_steps(model, body, head)
        if with_reference:
            self._check_reference(requests)
        runs = [await compute(model, request.inputs, request.rows, scope) for request in requests]
        if with_reference:
            return await self._with_reference(model, requests, runs, scope)
        if model.signature.batched or requests[0].form != "rows":
            return await self.written(model, requests[0], runs[0])
        return _answer(await self._turns.run(_texts(runs)))

    async def _read_in_steps(self, model: Model, body: Body, head: RequestHead) -> tuple[list[PredictRequest], bool]:
        """The runs that a request needs, and whether it asks for the reference's answer."""
        if head.content_type.startswith("image/"):
            return [await self._read_image(model, body, head)], head.reference
        signature, form = model.signature, _form(head, model.signature)
        if head.content_type != JSON_TYPE and is_npy(head.content_type, body):
            inputs = await asyncio.to_thread(_given, signature, body)
            return [self._request(signature, inputs, form)], head.reference
        columns, with_reference = await self._columns(model, body, head)
        if signature.batched:
            inputs = {name: array_of_rows(name, of, signature) if type(of) is list else of
                      for name, of in columns.items()}  # fmt: skip
            return [self._request(signature, inputs, form)], with_reference
        return self._each(signature, columns, form), with_reference

    def _check_reference(self, requests: list[PredictRequest]) -> None:
        rows, most = sum(request.rows for request in requests), self._settings.max_samples
        if rows > most:
            raise BadRequestError(f"the reference is asked for {rows} rows; expected at most {most}, as for a proof")
        if requests[0].form == "npy":
            raise NotAcceptableError("with the reference's answer there is no .npy; accept application/json")

    async def _with_reference(
        self, model: Model, requests: list[PredictRequest], runs: list[Arrays], scope: Scope
    ) -> tuple[Headers, bytes]:
        """Served predictions, and those of the reference in float64, with difference and margin."""
        served = [(request.inputs, run) for request, run in zip(requests, runs, strict=True)]
        batched = model.signature.batched
        job = partial(reference_answers, batched, served, self._settings.max_batch_size)
        answers = await self._proofs.submit(model, job, scope)

        def predictions(outputs: list[Arrays]) -> Any:
            if len(outputs) == 1:
                return self._predictions(model, requests[0], outputs[0])
            return [_named(each) for each in outputs]

        return write_both(predictions(runs), predictions([each.outputs for each in answers]), answers)

    def takes_long(self, request: PredictRequest, outputs: Arrays) -> bool:
        if request.form != "rows":
            return False
        return sum([array.size for array in outputs.values()]) > VALUES

    def write_in_pieces(self, model: Model, request: PredictRequest, outputs: Arrays) -> Steps[tuple[Headers, bytes]]:
        if len(outputs) == 1:
            return _answer((yield from array_text(next(iter(outputs.values())))))
        by_row = ({name: array[row] for name, array in outputs.items()} for row in range(request.rows))
        return _answer((yield from _texts(by_row)))

    async def _columns(self, model: Model, body: Body, head: RequestHead) -> tuple[dict[str, Any], bool]:
        """Each input's values over the instances, an array or a list of rows; and whether the reference is asked."""
        signature, most = model.signature, self._settings.max_request_rows
        if is_long(body, len(body)):
            columns, document = await self._turns.run(self._columns_in_pieces(signature, body, head.content_type))
        else:
            document = _parse(body, head.content_type, self._settings)
            columns = columns_of(document, signature, most)
        return columns, asks_reference(document, head)

    def _columns_in_pieces(
        self, signature: Signature, body: Body, kind: str
    ) -> Steps[tuple[dict[str, Any], dict[str, Any]]]:
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
            return columns, document.content
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
