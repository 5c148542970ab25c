"""`POST /v1/models/{name}:predict`, the v1 convention: rows in, rows out, no datatypes and no shapes to declare.

An instance is one row of the input, or an object by input name where there are several; a prediction is one row of the
output likewise. A model with one input takes the rows as a `.npy` as well, and one with one output gives them so. A
model that declares preprocessing takes an image, and answers with labels and probabilities.
"""

import asyncio
from functools import partial
from math import prod
from typing import Any

import numpy as np
from fastapi import APIRouter
from starlette.types import Receive, Scope, Send

from fold.arrays import Arrays
from service.access import Access
from service.batching import Outcome
from service.errors import (
    BadRequestError,
    ClientGoneError,
    ComputeError,
    MethodError,
    NotAcceptableError,
    UnsupportedError,
    shown,
)
from service.headers import JSON
from service.http.answers import Answer, failure, lose, respond
from service.http.body import read_body, request_headers
from service.http.exchange import Exchange
from service.http.head_cache import ModelPath, RequestHead
from service.http.images import FORMATS, tensor_of_image
from service.http.npy import CONTENT_TYPE, check_npy, is_npy, read_npy, wants_npy, write_npy
from service.operations import compute, hand_in, outputs_of
from service.protocol import DTYPES, Signature, flatten, json_array, numbers, parse_object, render_json
from service.repository import Model, Repository
from service.settings import Settings
from service.telemetry import Metrics

EXPECTED = '{"instances": [...]}'
PREDICT = ":predict"
"""Stands for all paths that predict where it is asked who may."""
JSON_KIND = JSON[1].decode()


def v1_routes(repository: Repository) -> APIRouter:
    router = APIRouter(tags=["v1"])

    @router.get("/v1/models/{name}")
    async def model_ready(name: str) -> dict[str, Any]:
        """Whether the model serves."""
        return {"name": repository.find(name).name, "ready": True}

    return router


class Predict:
    """Both ways to predict, as `Infer` has them: an ASGI endpoint in front of the framework, and for exchanges, whose
    bodies are JSON."""

    def __init__(self, settings: Settings, repository: Repository, metrics: Metrics, access: Access) -> None:
        self._settings = settings
        self._repository = repository
        self._metrics = metrics
        self._access = access

    async def __call__(self, name: str, scope: Scope, receive: Receive, send: Send) -> None:
        """The common way. Whether the client may ask at all was checked before."""
        model: Model | None = None
        try:
            if scope["method"] != "POST":
                raise MethodError(scope["method"], scope["path"], "POST")
            model = self._repository.find(name)
            with model:
                predictions = await _predict(model, scope, receive, self._settings)
            answer = self._success(model, predictions)
        except Exception as error:
            answer = failure(self._metrics, "predict", model, error, scope["headers"])
            if isinstance(error, ClientGoneError):
                return
        await respond(send, *answer)

    def begin(self, head: RequestHead, body: bytes, exchange: Exchange) -> None:
        """The short way."""
        model, route = None, "access"
        try:
            self._access.check(PREDICT, head.headers)
            route = "predict"
            model = self._repository.find(*head.target)
            instances = _instances(body, JSON_KIND, self._settings)
            signature = model.session.signature
            if not signature.batched:  # each is a run of its own
                model.__enter__()  # until the task has ended, which may never begin
                task = asyncio.get_running_loop().create_task(self._one_by_one(model, instances, head, exchange))
                task.add_done_callback(partial(self._leave, model))
                exchange.withdraw = task.cancel
                return
            arrays = _arrays(instances, signature)
            rows = signature.check(arrays, self._settings.max_request_rows)
            hand_in(model, arrays, rows, exchange, partial(self._finish, model, arrays, rows, head, exchange))
        except Exception as error:
            exchange.answer(*failure(self._metrics, route, model, error, head.headers))

    def lose(self, target: ModelPath) -> None:
        lose("predict", target, self._repository, self._metrics)

    def _finish(
        self, model: Model, arrays: Arrays, rows: int, head: RequestHead, exchange: Exchange, outcome: Outcome
    ) -> None:
        try:
            answer = self._success(model, _rows_of(outputs_of(model, arrays, rows, outcome), rows))
        except Exception as error:
            answer = failure(self._metrics, "predict", model, error, head.headers)
        exchange.answer(*answer)

    async def _one_by_one(self, model: Model, instances: list[Any], head: RequestHead, exchange: Exchange) -> None:
        try:
            predictions = await _of_instances(model, instances, {}, self._settings, as_npy=False)
            answer = self._success(model, predictions)
        except Exception as error:
            answer = failure(self._metrics, "predict", model, error, head.headers)
        exchange.answer(*answer)

    def _leave(self, model: Model, task: asyncio.Task[None]) -> None:
        model.__exit__()
        if task.cancelled():
            self._metrics.failed("predict", model, ClientGoneError())

    def _success(self, model: Model, predictions: Any) -> Answer:
        """`predictions` in the form of JSON, or the bytes of a .npy."""
        kind = JSON
        if isinstance(predictions, bytes):
            kind, body = (b"content-type", CONTENT_TYPE.encode()), predictions
        else:
            body = render_json({"predictions": predictions})
        self._metrics.answered("predict", model)
        return 200, [kind, (b"content-length", b"%d" % len(body))], body


async def _predict(model: Model, scope: Scope, receive: Receive, settings: Settings) -> Any:
    """Predictions in the form of JSON, or the bytes of a .npy."""
    headers = request_headers(scope)
    body = await read_body(headers, receive, settings.max_body_bytes)
    kind = headers.get(b"content-type", b"").split(b";")[0].strip().lower().decode("latin-1")
    as_npy = wants_npy(headers.get(b"accept", b"").decode("latin-1"), len(model.session.signature.outputs))
    if kind.startswith("image/"):
        return await _of_image(model, kind, body, scope, settings, as_npy=as_npy)
    if is_npy(kind, body):
        arrays = _given(model.session.signature, body)
        return await _of_rows(model, arrays, scope, settings, as_npy=as_npy)
    instances = _instances(body, kind, settings)
    return await _of_instances(model, instances, scope, settings, as_npy=as_npy)


def _instances(body: bytes, kind: str, settings: Settings) -> list[Any]:
    try:
        document = parse_object(body, settings.max_json_depth, EXPECTED)
    except BadRequestError as error:
        # Clients send JSON under many names, so the name counts only where the body is no JSON.
        if kind in ("", "application/json", "application/octet-stream", "application/x-www-form-urlencoded"):
            raise
        raise UnsupportedError(
            f"Content-Type {shown(kind)} is not read here; expected JSON, {EXPECTED}, or "
            f"{', '.join((CONTENT_TYPE, *FORMATS))}"
        ) from error
    instances = document.get("instances")
    if type(instances) is not list or not instances:
        raise BadRequestError(f'"instances" is missing or no list with elements; expected {EXPECTED}')
    if len(instances) > settings.max_request_rows:
        raise BadRequestError(f"{len(instances)} instances came, at most {settings.max_request_rows} are taken")
    return instances


async def _of_instances(model: Model, instances: list[Any], scope: Scope, settings: Settings, *, as_npy: bool) -> Any:
    signature = model.session.signature
    if signature.batched:
        return await _of_rows(model, _arrays(instances, signature), scope, settings, as_npy=as_npy)
    columns = _columns(instances, signature)
    if as_npy and len(instances) > 1:
        raise NotAcceptableError("without a batch axis each instance is a run, and a .npy holds one; send one instance")
    found = []
    for position in range(len(instances)):
        arrays = {name: _array(name, values[position : position + 1], signature)[0] for name, values in columns.items()}
        found.append(await _of_rows(model, arrays, scope, settings, as_npy=as_npy))
    return found[0] if as_npy else [prediction for run in found for prediction in run]


def _given(signature: Signature, body: bytes) -> Arrays:
    if len(signature.inputs) != 1:
        names = ", ".join(repr(name) for name in signature.inputs)
        raise BadRequestError(f"a .npy is one array, but there are {names}; send them as JSON, or by infer")
    name = next(iter(signature.inputs))
    return {name: read_npy(name, body)}


async def _of_rows(model: Model, arrays: Arrays, scope: Scope, settings: Settings, *, as_npy: bool) -> Any:
    """The predictions of one run in the form of JSON, or the bytes of a .npy."""
    signature = model.session.signature
    rows = signature.check(arrays, settings.max_request_rows)
    if as_npy:
        check_npy(DTYPES[next(iter(signature.outputs.values())).datatype])
    outputs = await compute(model, arrays, rows, scope)
    if as_npy:
        return write_npy(next(iter(outputs.values())))
    return _rows_of(outputs, rows) if signature.batched else [_named(outputs)]


def _rows_of(outputs: Arrays, rows: int) -> Any:
    """A prediction for each row."""
    if len(outputs) == 1:
        return json_array(next(iter(outputs.values())))
    return [_named({name: array[row, ...] for name, array in outputs.items()}) for row in range(rows)]


def _named(outputs: Arrays) -> Any:
    """One prediction: the output itself where there is one, an object by name where there are several."""
    values = {name: json_array(np.asarray(array)) for name, array in outputs.items()}
    return next(iter(values.values())) if len(values) == 1 else values


def _columns(instances: list[Any], signature: Signature) -> dict[str, list[Any]]:
    """Each input's values over the instances."""
    if len(signature.inputs) == 1 and type(instances[0]) is not dict:
        return {next(iter(signature.inputs)): instances}
    for position, instance in enumerate(instances):
        if type(instance) is not dict or instance.keys() != signature.inputs.keys():
            names = ", ".join(repr(name) for name in signature.inputs)
            raise BadRequestError(f"instance {position} is {shown(instance)}; expected an object with {names}")
    return {name: [instance[name] for instance in instances] for name in signature.inputs}


def _arrays(instances: list[Any], signature: Signature) -> Arrays:
    """The inputs, with a first axis for the instances."""
    return {name: _array(name, values, signature) for name, values in _columns(instances, signature).items()}


def _array(name: str, values: list[Any], signature: Signature) -> np.ndarray:
    """The values as one array with a first axis for the instances. A row may be flat where its shape is fixed."""
    spec = signature.inputs[name]
    row_shape = spec.shape[1:] if signature.batched else spec.shape
    measured = _nesting(values[0])
    shape: tuple[int, ...]
    if len(measured) == 1 and len(row_shape) > 1 and -1 not in row_shape and measured[0] == prod(row_shape):
        measured, shape = row_shape, (len(values), prod(row_shape))
    else:
        shape = (len(values), *measured)
    flat = flatten(name, values, shape)
    return numbers(f"input {name!r}", spec.datatype, flat).reshape(len(values), *measured)


def _nesting(value: Any) -> tuple[int, ...]:
    shape = []
    while type(value) is list:
        shape.append(len(value))
        value = value[0] if value else None
    return tuple(shape)


async def _of_image(model: Model, kind: str, body: bytes, scope: Scope, settings: Settings, *, as_npy: bool) -> Any:
    how = model.manifest.preprocessing
    signature = model.session.signature
    if how is None or how.input not in signature.inputs:
        raise UnsupportedError(f"model {model} declares no preprocessing, so it takes no images; expected {EXPECTED}")
    if kind not in FORMATS:
        raise UnsupportedError(f"Content-Type {shown(kind)} is not read here; expected {', '.join(FORMATS)}")
    datatype = signature.inputs[how.input].datatype
    # Decoding releases the interpreter for most of its time, and a photograph takes longer than many a model.
    tensor = await asyncio.to_thread(tensor_of_image, body, kind, how, datatype, settings.max_image_pixels)
    arrays = {how.input: tensor}
    if as_npy:
        return await _of_rows(model, arrays, scope, settings, as_npy=True)
    rows = signature.check(arrays, settings.max_request_rows)
    outputs = await compute(model, arrays, rows, scope)
    scores = next(iter(outputs.values()))
    if len(outputs) > 1 or scores.ndim != 2:
        return [_named({name: array[row, ...] for name, array in outputs.items()}) for row in range(rows)]
    return [_classified(row, model.manifest.labels) for row in scores.astype(np.float64)]


def _classified(scores: np.ndarray, labels: tuple[str, ...] | None) -> dict[str, Any]:
    """The softmax of one row of scores, by label."""
    if not np.isfinite(scores).all():
        raise ComputeError("the model's scores for this image are not finite, so no label follows from them")
    names = labels if labels is not None and len(labels) == len(scores) else tuple(map(str, range(len(scores))))
    weights = np.exp(scores - scores.max())
    probabilities = weights / weights.sum()
    best = int(probabilities.argmax())
    return {
        "label": names[best],
        "index": best,
        "probability": float(probabilities[best]),
        "probabilities": dict(zip(names, probabilities.tolist(), strict=True)),
    }
