"""`POST /v2/models/{name}[/versions/{version}]/infer`: bytes to numpy, to the queue, to the run, to bytes.

A plain ASGI endpoint in front of the framework: routing and dependency injection would cost more than parsing and
batching together. Where even ASGI would, an exchange takes a shorter way. What all endpoints that compute share is the
way through the queue.
"""

from functools import partial

from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from fold.arrays import Arrays
from service.access import Access
from service.batching import Outcome
from service.errors import ClientGoneError, MethodError
from service.headers import LENGTH_HEADER
from service.http.answers import Answer, failure, lose, respond
from service.http.body import read_body, request_headers
from service.http.exchange import Exchange
from service.http.head_cache import ModelPath, RequestHead
from service.http.headers import header_lines
from service.operations import compute, hand_in, outputs_of
from service.protocol import InferRequest, decode, encode, known_answer
from service.repository import Model, Repository
from service.settings import Settings
from service.telemetry import Metrics

INFER = "/infer"
"""Stands for all paths that infer where it is asked who may."""


class Infer:
    """Both ways to infer: as an ASGI endpoint, and for exchanges that come in their usual form."""

    def __init__(self, settings: Settings, repository: Repository, metrics: Metrics, access: Access) -> None:
        self._settings = settings
        self._repository = repository
        self._metrics = metrics
        self._access = access

    async def __call__(self, target: ModelPath, scope: Scope, receive: Receive, send: Send) -> None:
        """The common way. Whether the client may ask at all was checked before."""
        model: Model | None = None
        try:
            if scope["method"] != "POST":
                raise MethodError(scope["method"], scope["path"], "POST")
            model = self._repository.find(*target)
            with model:
                sent = request_headers(scope)
                body = await read_body(sent, receive, self._settings.max_body_bytes)
                request, rows = self._read(model, body, sent.get(LENGTH_HEADER))
                outputs = await compute(model, request.inputs, rows, scope, request.priority, request.timeout)
                answer = self._success(model, request, outputs)
        except Exception as error:
            answer = failure(self._metrics, "infer", model, error, scope["headers"])
            if isinstance(error, ClientGoneError):
                return
        await respond(send, *answer)

    def begin(self, head: RequestHead, body: bytes, exchange: Exchange) -> None:
        """The short way: everything up to the queue at once, and the rest when the batch is done."""
        model, route = None, "access"
        try:
            self._access.check(INFER, head.headers)
            route = "infer"
            model = self._repository.find(*head.target)
            request, rows = self._read(model, body, head.json_bytes)
            finish = partial(self.finish, model, request, rows, exchange)
            hand_in(model, request.inputs, rows, exchange, finish, request.priority, request.timeout)
        except Exception as error:
            exchange.answer(*failure(self._metrics, route, model, error, head.headers))

    def lose(self, target: ModelPath) -> None:
        lose("infer", target, self._repository, self._metrics)

    def finish(self, model: Model, request: InferRequest, rows: int, exchange: Exchange, outcome: Outcome) -> None:
        """Answer a request that was begun."""
        try:
            outputs = outputs_of(model, request.inputs, rows, outcome)
            known = known_answer(request, outputs)
            if known is None:
                answer = self._success(model, request, outputs)
        except Exception as error:
            known, answer = None, failure(self._metrics, "infer", model, error, exchange.head.headers)
        if known is None:
            exchange.answer(*answer)
        else:
            form, body = known
            form.start = form.start or STATUS_LINE[200] + header_lines(form.headers)
            exchange.send(form.start, body)
            self._metrics.answered("infer", model)

    def _read(self, model: Model, body: bytes, length_header: bytes | None) -> tuple[InferRequest, int]:
        signature = model.session.signature
        request = decode(body, length_header, signature, self._settings.max_json_depth)
        plan = request.plan
        if plan is not None and plan.rows >= 0:
            return request, plan.rows
        rows = signature.check(request.inputs, self._settings.max_request_rows)
        if plan is not None:
            plan.rows = rows
        return request, rows

    def _success(self, model: Model, request: InferRequest, outputs: Arrays) -> Answer:
        batched, labels = model.session.signature.batched, model.manifest.labels
        headers, body = encode(model.name, model.version, request, outputs, batched=batched, labels=labels)
        self._metrics.answered("infer", model)
        return 200, headers, body
