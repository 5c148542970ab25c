"""`POST /v2/models/{name}[/versions/{version}]/infer`: the Open Inference Protocol's tensors, in JSON or binary."""

from fold.arrays import Arrays
from service.headers import Headers
from service.http.exchange import OK, header_lines
from service.http.head_cache import RequestHead
from service.http.routes.endpoint import Endpoint
from service.protocol import InferRequest, decode, encode, known_answer
from service.repository import Model


class Infer(Endpoint[InferRequest]):
    route = "infer"

    def read(self, model: Model, body: bytes, head: RequestHead) -> InferRequest:
        signature = model.session.signature
        request = decode(body, head.json_bytes, signature, self._settings.max_json_depth)
        if request.rows < 0:
            request.rows = signature.check(request.inputs, self._settings.max_request_rows)
            if request.plan is not None:
                request.plan.rows = request.rows
        return request

    def write(self, model: Model, request: InferRequest, outputs: Arrays) -> tuple[Headers, bytes]:
        batched, labels = model.session.signature.batched, model.manifest.labels
        return encode(model.name, model.version, request, outputs, batched=batched, labels=labels)

    def write_raw(self, model: Model, request: InferRequest, outputs: Arrays) -> tuple[bytes, bytes]:
        known = known_answer(request, outputs)
        if known is None:
            return super().write_raw(model, request, outputs)
        form, body = known
        form.start = form.start or OK + header_lines(form.headers)
        return form.start, body
