"""`POST /v1/models/{name}:predict`, the v1 convention: rows in, rows out, without datatypes and shapes.

An instance is one row of the input, or an object by input name if the model has several inputs; a prediction is one row
of the output, or an object likewise. A model with one input takes the rows as a `.npy`, too, and one with one output
answers so if the request accepts it. A model that declares preprocessing takes an image, and answers with labels and
probabilities.
"""

import asyncio
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import numpy as np
from fastapi import APIRouter
from starlette.types import Scope

from fold.arrays import Arrays
from service.budget import Body
from service.errors import BadRequestError, ComputeError, NotAcceptableError, UnsupportedError, shown
from service.headers import JSON, Headers
from service.http.head_cache import JSON_TYPE, RequestHead
from service.http.images import FORMATS, tensor_of_image
from service.http.npy import CONTENT_TYPE, check_npy, is_npy, read_npy, wants_npy, write_npy
from service.http.routes.endpoint import Endpoint
from service.operations import compute
from service.protocol import DTYPES, Signature, flatten, json_array, numbers, parse_object, render_json
from service.repository import Model, Repository
from service.settings import Settings

EXPECTED = '{"instances": [...]}'
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
        """None for images, which take long to decode, and for instances of a model without a batch axis, each of which
        is a run."""
        signature, kind = model.session.signature, head.content_type
        form: Form = _form(head, signature) if head.accept else "rows"
        if kind != JSON_TYPE:
            if kind.startswith("image/"):
                return None
            if is_npy(kind, body):
                return self._request(signature, _given(signature, body), form)
        if not signature.batched:
            return None
        columns = _columns(_instances(body, kind, self._settings), signature)
        return self._request(signature, {name: _array(name, of, signature) for name, of in columns.items()}, form)

    def write(self, model: Model, request: PredictRequest, outputs: Arrays) -> tuple[Headers, bytes]:
        if request.form == "npy":
            body = write_npy(next(iter(outputs.values())))
            return [NPY, (b"content-length", b"%d" % len(body))], body
        if request.form == "labels" and len(outputs) == 1 and (scores := next(iter(outputs.values()))).ndim == 2:
            return _json([_classified(row, model.manifest.labels) for row in scores.astype(np.float64)])
        by_row = model.session.signature.batched or request.form == "labels"
        return _json(_rows(outputs, request.rows) if by_row else [_named(outputs)])

    async def answer_in_steps(self, model: Model, body: Body, head: RequestHead, scope: Scope) -> tuple[Headers, bytes]:
        if head.content_type.startswith("image/"):
            request = await self._read_image(model, body, head)
            return self.write(model, request, await compute(model, request.inputs, request.rows, scope))
        requests = self._read_each(model, body, head)
        runs = [await compute(model, request.inputs, request.rows, scope) for request in requests]
        if requests[0].form == "npy":
            return self.write(model, requests[0], runs[0])
        return _json([_named(outputs) for outputs in runs])

    def _request(self, signature: Signature, inputs: Arrays, form: Form) -> PredictRequest:
        rows = signature.check(inputs, self._settings.max_request_rows)
        if form == "npy":
            check_npy(DTYPES[next(iter(signature.outputs.values())).datatype])
        return PredictRequest(inputs, rows, form)

    def _read_each(self, model: Model, body: Body, head: RequestHead) -> list[PredictRequest]:
        """A request for each instance, for a model without a batch axis."""
        signature = model.session.signature
        form = _form(head, signature)
        instances = _instances(body, head.content_type, self._settings)
        if form == "npy" and len(instances) > 1:
            raise NotAcceptableError(
                "without a batch axis each instance is a run, and a .npy holds one; send one instance"
            )
        columns = _columns(instances, signature)
        return [
            self._request(
                signature,
                {name: _array(name, of[position : position + 1], signature)[0] for name, of in columns.items()},
                form,
            )
            for position in range(len(instances))
        ]

    async def _read_image(self, model: Model, body: Body, head: RequestHead) -> PredictRequest:
        how, kind = model.manifest.preprocessing, head.content_type
        signature = model.session.signature
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


def _json(predictions: Any) -> tuple[Headers, bytes]:
    body = render_json({"predictions": predictions})
    return [JSON, (b"content-length", b"%d" % len(body))], body


def _form(head: RequestHead, signature: Signature) -> Form:
    return "npy" if wants_npy(head.accept, len(signature.outputs)) else "rows"


def _instances(body: Body, kind: str, settings: Settings) -> list[Any]:
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


def _columns(instances: list[Any], signature: Signature) -> dict[str, list[Any]]:
    """Each input's values over the instances."""
    if len(signature.inputs) == 1 and type(instances[0]) is not dict:
        return {next(iter(signature.inputs)): instances}
    for position, instance in enumerate(instances):
        if type(instance) is not dict or instance.keys() != signature.inputs.keys():
            names = ", ".join(repr(name) for name in signature.inputs)
            raise BadRequestError(f"instance {position} is {shown(instance)}; expected an object with {names}")
    return {name: [instance[name] for instance in instances] for name in signature.inputs}


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
