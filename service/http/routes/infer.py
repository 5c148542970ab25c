"""`POST /v2/models/{name}[/versions/{version}]/infer`: the Open Inference Protocol's tensors, in JSON or binary."""

from fold.arrays import Arrays
from service.budget import Body
from service.headers import Headers
from service.http.exchange import OK, header_lines
from service.http.head_cache import RequestHead
from service.http.routes.endpoint import Endpoint
from service.protocol import InferRequest, cached_answer, decode, encode
from service.repository import Model


class Infer(Endpoint[InferRequest]):
    route = "infer"

    def read(self, model: Model, body: Body, head: RequestHead) -> InferRequest:
        signature = model.session.signature
        request = decode(body, head.json_bytes, signature, self._settings.max_json_depth)
        if request.rows < 0:
            request.rows = signature.check(request.inputs, self._settings.max_request_rows)
            if request.header is not None:
                request.header.rows = request.rows
        return request

    def write(self, model: Model, request: InferRequest, outputs: Arrays) -> tuple[Headers, bytes]:
        batched, labels = model.session.signature.batched, model.manifest.labels
        return encode(model.name, model.version, request, outputs, batched=batched, labels=labels)

    def write_raw(self, model: Model, request: InferRequest, outputs: Arrays) -> tuple[bytes, bytes]:
        cached = cached_answer(request, outputs)
        if cached is None:
            return super().write_raw(model, request, outputs)
        answer, body = cached
        answer.start = answer.start or OK + header_lines(answer.headers)
        return answer.start, body
