"""`POST /v1/models/{name}:predict`, the v1 convention: rows in, rows out, without datatypes and shapes.

An instance is one row of the input, or an object by input name if the model has several inputs; a prediction is one row
of the output, or an object likewise. A model with one input takes the rows as a `.npy`, too, and one with one output
answers so if the request accepts it. A model that declares preprocessing takes an image, and answers with labels and
probabilities. On request the reference answers, too.
"""

import asyncio
from dataclasses import dataclass
from functools import partial
from typing import Any

from fastapi import APIRouter
from starlette.types import Scope

from fold.arrays import Arrays
from fold.artifact import DTYPES
from service.budget import Body
from service.errors import BadRequestError, NotAcceptableError, UnsupportedError, shown
from service.headers import Headers
from service.http.head_cache import JSON_TYPE, RequestHead
from service.http.images import FORMATS, tensor_of_image
from service.http.npy import CONTENT_TYPE, check_npy, is_npy, read_npy, wants_npy, write_npy
from service.http.routes.endpoint import Endpoint, Later
from service.http.routes.predict.instances import inputs_in_pieces, inputs_of, parse_instances
from service.http.routes.predict.predictions import Form, answer_of, named, predictions, predictions_text
from service.http.routes.predict.reference import asks_reference, write_both
from service.http.routes.proofs import ProofQueue
from service.operations import Shared, compute
from service.proof import reference_answers
from service.protocol import EXPECTED, VALUES, Signature, Steps, array_text, count_strings, is_long, render_json
from service.repository import Model, Repository

NPY_BYTES = 1 << 20
"""A larger array is read by a thread, because it may have to be transposed."""
NPY = (b"content-type", CONTENT_TYPE.encode())


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

    def __init__(self, shared: Shared, proofs: ProofQueue) -> None:
        super().__init__(shared)
        self._proofs = proofs

    def read(self, model: Model, body: Body, head: RequestHead) -> PredictRequest | Later:
        """Later are images, much JSON and large arrays, which take long to read, instances of a model without a batch
        axis, each of which is a run, and requests for the reference's answer."""
        signature, kind = model.signature, head.content_type
        form: Form = "npy" if head.accept and wants_npy(head.accept, len(signature.outputs)) else "rows"
        if kind != JSON_TYPE:
            if kind.startswith("image/"):
                return Later(partial(self._answer_image, model, body, head, "labels" if form == "rows" else form))
            if is_npy(kind, body):
                if len(body) > NPY_BYTES:
                    return Later(partial(self._answer_large_array, model, body, head, form))
                return self._planned(model, [_of_npy(signature, body)], form, with_reference=head.reference)
        if is_long(body, len(body)):
            return Later(partial(self._answer_much_json, model, body, head, form))
        document = parse_instances(body, kind, self._shared.settings)
        inputs = inputs_of(document, signature, self._shared.settings.max_request_rows, body)
        if signature.has_texts:
            count_strings(inputs[0], body, self._shared.budget)
        return self._planned(model, inputs, form, with_reference=asks_reference(document, head))

    async def _answer_image(
        self, model: Model, body: Body, head: RequestHead, form: Form, scope: Scope
    ) -> tuple[Headers, bytes]:
        signature, how, kind = model.signature, model.manifest.preprocessing, head.content_type
        if how is None or how.input not in signature.inputs:
            raise UnsupportedError(
                f"model {model} declares no preprocessing, so it takes no images; expected {EXPECTED}"
            )
        if kind not in FORMATS:
            raise UnsupportedError(f"Content-Type {shown(kind)} is not read here; expected {', '.join(FORMATS)}")
        datatype, most = signature.inputs[how.input].datatype, self._shared.settings.max_image_pixels
        # Decoding releases the interpreter for most of its time, and a photograph takes longer than many models.
        tensor = await asyncio.to_thread(tensor_of_image, body, kind, how, datatype, most, self._shared.budget)
        planned = self._planned(model, [{how.input: tensor}], form, with_reference=head.reference)
        return await self.answered(model, planned, scope)

    async def _answer_large_array(
        self, model: Model, body: Body, head: RequestHead, form: Form, scope: Scope
    ) -> tuple[Headers, bytes]:
        inputs = await asyncio.to_thread(_of_npy, model.signature, body)
        planned = self._planned(model, [inputs], form, with_reference=head.reference)
        return await self.answered(model, planned, scope)

    async def _answer_much_json(
        self, model: Model, body: Body, head: RequestHead, form: Form, scope: Scope
    ) -> tuple[Headers, bytes]:
        steps = inputs_in_pieces(body, head.content_type, model.signature, self._shared.settings, self._shared.budget)
        inputs, document = await self._shared.turns.run(steps)
        planned = self._planned(model, inputs, form, with_reference=asks_reference(document, head))
        return await self.answered(model, planned, scope)

    def _planned(
        self, model: Model, inputs: list[Arrays], form: Form, *, with_reference: bool
    ) -> PredictRequest | Later:
        """One request for each run, checked. Later unless it is one run without the reference."""
        signature = model.signature
        if form == "npy" and len(inputs) > 1:
            raise NotAcceptableError(
                "without a batch axis each instance is a run, and a .npy holds one; send one instance"
            )
        requests = [self._checked(signature, each, form) for each in inputs]
        if with_reference:
            return Later(partial(self._answer_with_reference, model, requests))
        if not signature.batched and form == "rows":
            return Later(partial(self._answer_runs, model, requests))
        return requests[0]

    def _checked(self, signature: Signature, inputs: Arrays, form: Form) -> PredictRequest:
        rows = signature.check(inputs, self._shared.settings.max_request_rows)
        if form == "npy":
            check_npy(DTYPES[next(iter(signature.outputs.values())).datatype])
        return PredictRequest(inputs, rows, form)

    async def _answer_runs(self, model: Model, requests: list[PredictRequest], scope: Scope) -> tuple[Headers, bytes]:
        runs = [await compute(model, request.inputs, request.rows, scope) for request in requests]
        return answer_of(await self._shared.turns.run(predictions_text(runs)))

    async def _answer_with_reference(
        self, model: Model, requests: list[PredictRequest], scope: Scope
    ) -> tuple[Headers, bytes]:
        """Served predictions, and those of the reference in float64, with difference and margin."""
        rows, most = sum(request.rows for request in requests), self._shared.settings.max_samples
        if rows > most:
            raise BadRequestError(f"the reference is asked for {rows} rows; expected at most {most}, as for a proof")
        if requests[0].form == "npy":
            raise NotAcceptableError("with the reference's answer there is no .npy; accept application/json")
        runs = [await compute(model, request.inputs, request.rows, scope) for request in requests]
        served = [(request.inputs, run) for request, run in zip(requests, runs, strict=True)]
        job = partial(reference_answers, model.signature.batched, served, self._shared.settings.max_batch_size)
        answers = await self._proofs.submit(model, job, scope)

        def written(outputs: list[Arrays]) -> Any:
            if len(outputs) == 1:
                return predictions(model, requests[0].form, requests[0].rows, outputs[0])
            return [named(each) for each in outputs]

        return write_both(written(runs), written([each.outputs for each in answers]), answers)

    def write(self, model: Model, request: PredictRequest, outputs: Arrays) -> tuple[Headers, bytes]:
        if request.form == "npy":
            body = write_npy(next(iter(outputs.values())))
            return [NPY, (b"content-length", b"%d" % len(body))], body
        return answer_of(render_json(predictions(model, request.form, request.rows, outputs)))

    def takes_long(self, request: PredictRequest, outputs: Arrays) -> bool:
        if request.form != "rows":
            return False
        return sum([array.size for array in outputs.values()]) > VALUES

    def write_in_pieces(self, model: Model, request: PredictRequest, outputs: Arrays) -> Steps[tuple[Headers, bytes]]:
        if len(outputs) == 1:
            return answer_of((yield from array_text(next(iter(outputs.values())))))
        by_row = ({name: array[row] for name, array in outputs.items()} for row in range(request.rows))
        return answer_of((yield from predictions_text(by_row)))


def _of_npy(signature: Signature, body: Body) -> Arrays:
    if len(signature.inputs) != 1:
        names = ", ".join(repr(name) for name in signature.inputs)
        raise BadRequestError(f"a .npy is one array, but there are {names}; send them as JSON, or by infer")
    name = next(iter(signature.inputs))
    return {name: read_npy(name, body)}
