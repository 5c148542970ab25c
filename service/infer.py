"""`POST /v2/models/{name}[/versions/{version}]/infer`: bytes to numpy, to the queue, to the run, to bytes.

A plain ASGI endpoint in front of the framework: routing and dependency injection would cost more than parsing and
batching together. What it shares with the other endpoints that compute is `compute`, the way through the queue.
"""

import logging
from functools import partial

from starlette.types import Receive, Scope, Send

from fold.errors import first_line
from service.body import read_body, request_headers
from service.errors import ClientGoneError, ComputeError, Headers, MethodError, ServiceError, error_body
from service.metrics import Metrics
from service.protocol import JSON, LENGTH_HEADER, decode, encode
from service.repository import Model, Repository
from service.settings import Settings
from service.signature import Arrays

WITHDRAW = "bnfold.withdraw"
"""Under this key of `scope["state"]` a queued request leaves what to call when its client goes; the server calls it."""

log = logging.getLogger("bnfold")


def infer_target(path: str) -> tuple[str, str | None] | None:
    """Model and version that an infer path names; None for every other path."""
    if not path.endswith("/infer"):
        return None
    match path.split("/"):
        case ["", "v2", "models", name, "infer"]:
            return name, None
        case ["", "v2", "models", name, "versions", version, "infer"]:
            return name, version
    return None


class Infer:
    def __init__(self, settings: Settings, repository: Repository, metrics: Metrics) -> None:
        self._settings = settings
        self._repository = repository
        self._metrics = metrics

    async def __call__(self, target: tuple[str, str | None], scope: Scope, receive: Receive, send: Send) -> None:
        model: Model | None = None
        status = 200
        try:
            if scope["method"] != "POST":
                raise MethodError(scope["method"], scope["path"], "POST")
            model = self._repository.find(*target)
            headers, body = await self._answer(model, scope, receive)
        except ServiceError as error:
            self._metrics.failed("infer", model, error)
            if isinstance(error, ClientGoneError):
                return
            status, (headers, body) = error.status, error_answer(error)
        except Exception:
            log.exception("infer failed")
            failure = ServiceError("internal error; the service's log has the details")
            self._metrics.failed("infer", model, failure)
            status, (headers, body) = 500, error_answer(failure)
        else:
            self._metrics.answered("infer", model)
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _answer(self, model: Model, scope: Scope, receive: Receive) -> tuple[Headers, bytes]:
        sent = request_headers(scope)
        body = await read_body(sent, receive, self._settings.max_body_bytes)
        signature = model.session.signature
        request = decode(body, sent.get(LENGTH_HEADER), signature, self._settings.max_json_depth)
        rows = signature.check(request.inputs, self._settings.max_batch_size)
        outputs = await compute(model, request.inputs, rows, scope)
        return encode(model.name, model.version, request, outputs)


async def compute(model: Model, inputs: Arrays, rows: int, scope: Scope) -> Arrays:
    """Outputs of a checked request, through the model's queue. Leaves the queue when the client goes."""
    ticket = model.batcher.submit(inputs, rows, model.session.signature.lane(inputs))
    if ticket.queued and "state" in scope:
        gone = ClientGoneError("the client left while its request was queued")
        scope["state"][WITHDRAW] = partial(model.batcher.withdraw, ticket, gone)
    try:
        outputs = await ticket.result
    except ServiceError:
        raise
    except Exception as error:  # ONNX Runtime's exceptions share no base class but Exception
        raise ComputeError(f"model {model}: the run failed: {first_line(error)}") from error
    if model.watched is not None:
        model.watched.offer(inputs, outputs, rows)
    return outputs


def error_answer(error: ServiceError) -> tuple[Headers, bytes]:
    body = error_body(str(error))
    return [JSON, (b"content-length", b"%d" % len(body)), *error.headers()], body
