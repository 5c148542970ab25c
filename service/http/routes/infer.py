"""`POST /v2/models/{name}[/versions/{version}]/infer`: bytes to numpy, to the queue, to the run, to bytes.

A plain ASGI endpoint in front of the framework: routing and dependency injection would cost more than parsing and
batching together. Where even ASGI would, an exchange takes a shorter way. What all endpoints that compute share is the
way through the queue.
"""

import contextlib
import logging
from collections.abc import Callable
from functools import partial

from starlette.types import Receive, Scope, Send

from fold.errors import first_line
from service.access import Access
from service.batching.merging import Outcome
from service.batching.ticket import Ticket
from service.errors import ClientGoneError, ComputeError, MethodError, ServiceError, error_body
from service.headers import JSON, LENGTH_HEADER, Headers
from service.http.body import read_body, request_headers
from service.http.exchange import Exchange
from service.http.head_cache import Head, Target
from service.protocol.infer_body import InferRequest, decode, encode, known_answer
from service.protocol.signature import Arrays
from service.repository.repository import Model, Repository
from service.settings import Settings
from service.telemetry.logs import identity
from service.telemetry.metrics import Metrics

INFER = "/infer"
"""Stands for all paths that infer where it is asked who may."""
GONE = "the client left while its request was queued"
Answer = tuple[int, Headers, bytes]
Finish = Callable[[Outcome], None]

WITHDRAW = "bnfold.withdraw"
"""Under this key of `scope["state"]` a queued request leaves what to call when its client goes; the server calls it."""

log = logging.getLogger("bnfold")


class Infer:
    """Both ways to infer: as an ASGI endpoint, and for exchanges that come in their usual form."""

    def __init__(self, settings: Settings, repository: Repository, metrics: Metrics, access: Access) -> None:
        self._settings = settings
        self._repository = repository
        self._metrics = metrics
        self._access = access

    async def __call__(self, target: Target, scope: Scope, receive: Receive, send: Send) -> None:
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

    def begin(self, head: Head, body: bytes, exchange: Exchange) -> None:
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

    def lose(self, target: Target) -> None:
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
            exchange.send(known[0].start, known[1])
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


class Reply:
    """The result of an exchange's request: `finish` sends what comes here."""

    __slots__ = ("_done", "_finish", "_model", "ticket")

    def __init__(self, model: Model, finish: Finish) -> None:
        self.ticket: Ticket | None = None
        """While it waits."""
        self._done = False
        self._model = model
        self._finish = finish

    def done(self) -> bool:
        return self._done

    def set_result(self, outputs: Outcome) -> None:
        self._done, self.ticket = True, None
        try:
            self._finish(outputs)
        except Exception as error:  # a batch has others to answer
            log.error("an answer could not be sent", exc_info=error)

    set_exception = set_result

    def withdraw(self) -> None:
        if self.ticket is not None:
            self._model.batcher.withdraw(self.ticket, ClientGoneError(GONE))


def hand_in(
    model: Model,
    inputs: Arrays,
    rows: int,
    exchange: Exchange,
    finish: Finish,
    priority: int = 0,
    timeout: float | None = None,
) -> None:
    """Give a checked request of an exchange to the model's queue; `finish` gets its outcome, perhaps at once."""
    reply = Reply(model, finish)
    lane = model.session.signature.lane(inputs)
    ticket = model.batcher.submit(
        inputs, rows, lane, priority=priority, timeout=timeout, result=reply, alone=exchange.alone
    )
    if not reply.done():
        reply.ticket = ticket
        exchange.withdraw = reply.withdraw


def outputs_of(model: Model, inputs: Arrays, rows: int, outcome: Outcome) -> Arrays:
    """The outputs, of which watching may take a look. Raises `ServiceError` where the run failed."""
    if isinstance(outcome, Exception):
        raise _failed_run(model, outcome)
    if model.watched is not None:
        model.watched.offer(inputs, outcome, rows)
    return outcome


def lose(route: str, target: Target, repository: Repository, metrics: Metrics) -> None:
    """Count a request whose client left before its body was complete."""
    model = None
    with contextlib.suppress(ServiceError):
        model = repository.find(*target)
    metrics.failed(route, model, ClientGoneError())


def failure(metrics: Metrics, route: str, model: Model | None, error: Exception, sent: Headers) -> Answer:
    """What the client is told of an error, which is counted, and logged if it is a fault of ours. `sent` are the
    headers of the request."""
    if not isinstance(error, ServiceError):
        log.error("%s failed", route, exc_info=error, extra={"identity": identity(sent)})
        error = ServiceError("internal error; the service's log has the details")
    metrics.failed(route, model, error)
    return error.status, *error_answer(error)


async def respond(send: Send, status: int, headers: Headers, body: bytes) -> None:
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def compute(
    model: Model, inputs: Arrays, rows: int, scope: Scope, priority: int = 0, timeout: float | None = None
) -> Arrays:
    """Outputs of a checked request, through the model's queue. Leaves the queue when the client goes.

    Of priorities 1 comes first and 0 is the default; `timeout` (seconds) may only shorten the configured wait.
    """
    lane = model.session.signature.lane(inputs)
    ticket = model.batcher.submit(inputs, rows, lane, priority=priority, timeout=timeout)
    if ticket.queued and "state" in scope:
        scope["state"][WITHDRAW] = partial(model.batcher.withdraw, ticket, ClientGoneError(GONE))
    outcome: Outcome
    try:
        outcome = await ticket.result
    except Exception as error:
        outcome = error
    return outputs_of(model, inputs, rows, outcome)


def _failed_run(model: Model, error: Exception) -> ServiceError:
    """What a client is told; ONNX Runtime's exceptions share no base class but Exception."""
    if isinstance(error, ServiceError):
        return error
    return ComputeError(f"model {model}: the run failed: {first_line(error)}")


def error_answer(error: ServiceError) -> tuple[Headers, bytes]:
    body = error_body(str(error))
    return [JSON, (b"content-length", b"%d" % len(body)), *error.headers()], body
