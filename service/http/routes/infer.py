"""`POST /v2/models/{name}[/versions/{version}]/infer`: the Open Inference Protocol's tensors, in JSON or binary."""

import asyncio
from functools import partial

from starlette.types import Scope

from fold.arrays import Arrays
from service.budget import Body
from service.headers import Headers
from service.http.exchange import OK, header_lines
from service.http.head_cache import RequestHead
from service.http.routes.endpoint import Endpoint, Later
from service.protocol import (
    PIECE,
    InferRequest,
    Steps,
    cached_answer,
    decode,
    decode_in_pieces,
    encode,
    encode_in_pieces,
    is_long,
    json_bytes,
    much_to_encode,
)
from service.repository import Model


class Infer(Endpoint[InferRequest]):
    route = "infer"

    def read(self, model: Model, body: Body, head: RequestHead) -> InferRequest | Later:
        """Later are much JSON, and many strings."""
        signature, settings = model.signature, self._shared.settings
        if len(body) > PIECE and (signature.has_texts or is_long(body, json_bytes(body, head.json_bytes))):
            return Later(partial(self._answer_long, model, body, head))
        request = decode(body, head.json_bytes, signature, settings.max_json_depth, self._shared.budget)
        if request.rows < 0:
            request.rows = signature.check(request.inputs, settings.max_request_rows)
            if request.header is not None:
                request.header.rows = request.rows
        return request

    async def _answer_long(self, model: Model, body: Body, head: RequestHead, scope: Scope) -> tuple[Headers, bytes]:
        signature, settings, length = model.signature, self._shared.settings, head.json_bytes
        depth, most, budget = settings.max_json_depth, settings.max_request_rows, self._shared.budget
        if is_long(body, json_bytes(body, length)):
            steps = decode_in_pieces(body, length, signature, depth, most, budget)
            request, _ = await self._shared.turns.run(steps)
        else:  # strings are read in Python, which lets other threads run
            request = await asyncio.to_thread(decode, body, length, signature, depth, budget)
        request.rows = signature.check(request.inputs, most)
        return await self.answered(model, request, scope)

    def takes_long(self, request: InferRequest, outputs: Arrays) -> bool:
        header = request.header
        return (header is None or not header.plain) and much_to_encode(request, outputs)

    def write_in_pieces(self, model: Model, request: InferRequest, outputs: Arrays) -> Steps[tuple[Headers, bytes]]:
        batched, labels = model.signature.batched, model.manifest.labels
        return encode_in_pieces(model.name, model.version, request, outputs, batched=batched, labels=labels)

    def write(self, model: Model, request: InferRequest, outputs: Arrays) -> tuple[Headers, bytes]:
        batched, labels = model.signature.batched, model.manifest.labels
        return encode(model.name, model.version, request, outputs, batched=batched, labels=labels)

    def write_raw(self, model: Model, request: InferRequest, outputs: Arrays) -> tuple[bytes, bytes]:
        cached = cached_answer(request, outputs)
        if cached is None:
            return super().write_raw(model, request, outputs)
        answer, body = cached
        answer.start = answer.start or OK + header_lines(answer.headers)
        return answer.start, body
