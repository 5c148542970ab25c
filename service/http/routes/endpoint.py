"""An endpoint that computes: a body in, a run of the model, a body out; by ASGI, or on the fast path.

It stands before the framework, whose routing and dependency injection would cost more than parsing and batching
together. Subclasses say how a body is read (`read`) and how outputs are written (`write`).
"""

import asyncio
import contextlib
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Generic, Protocol, TypeVar

from starlette.types import Receive, Scope, Send

from fold.arrays import Arrays
from service.batching import Outcome
from service.budget import Body, Buffer
from service.errors import ClientGoneError, MethodError, ServiceError, UnauthorizedError
from service.headers import LENGTH_HEADER, Headers
from service.http.answers import failure, respond
from service.http.body import read_body, request_headers
from service.http.exchange import OK, Exchange, header_lines
from service.http.head_cache import ModelPath, RequestHead, Route, media_type
from service.operations import Shared, compute, enqueue, outputs_of
from service.protocol import Steps
from service.repository import Model

InSteps = Callable[[], Awaitable[tuple[Headers, bytes]]]
"""Gives headers and body of an answer that takes several iterations of the event loop."""


@dataclass(frozen=True, slots=True)
class Later:
    """How to answer a request that needs more than one run, or work that would hold up the event loop."""

    answer: Callable[[Scope], Awaitable[tuple[Headers, bytes]]]
    """Gives headers and body."""


class Request(Protocol):
    """What a run needs of a request that was read."""

    inputs: Arrays
    rows: int
    priority: int
    timeout: float | None


R = TypeVar("R", bound=Request)


class Endpoint(ABC, Generic[R]):
    route: Route
    """The label under which requests are counted."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared

    @abstractmethod
    def read(self, model: Model, body: Body, head: RequestHead) -> R | Later:
        """The request, checked against the model's signature, or how to answer it in several steps. Raises
        `ServiceError` if it is refused."""

    @abstractmethod
    def write(self, model: Model, request: R, outputs: Arrays) -> tuple[Headers, bytes]:
        """Headers and body of the answer."""

    @abstractmethod
    def takes_long(self, request: R, outputs: Arrays) -> bool:
        """Whether writing the answer would hold up the event loop."""

    @abstractmethod
    def write_in_pieces(self, model: Model, request: R, outputs: Arrays) -> Steps[tuple[Headers, bytes]]:
        """As `write`, where that takes long."""

    def write_raw(self, model: Model, request: R, outputs: Arrays) -> tuple[bytes, bytes]:
        """Status line with headers, and body, as bytes: the answer on the fast path."""
        headers, body = self.write(model, request, outputs)
        return OK + header_lines(headers), body

    async def __call__(self, target: ModelPath, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer by ASGI. The application has checked the token."""
        model: Model | None = None
        try:
            if scope["method"] != "POST":
                raise MethodError(scope["method"], scope["path"], "POST")
            model = self._shared.repository.find(*target)
            with model:
                headers = request_headers(scope)
                body = await read_body(headers, receive, self._shared.settings.max_body_bytes, self._shared.budget)
                head = self._head(target, headers, scope)
                answer = 200, *await self.answered(model, self.read(model, body, head), scope)
            self._shared.metrics.answered(self.route, model)
        except Exception as error:
            answer = failure(self._shared.metrics, self.route, model, error, scope["headers"])
            if isinstance(error, ClientGoneError):
                return
        await respond(send, *answer)

    def admit(self, head: RequestHead, exchange: Exchange) -> Buffer | None:
        """Where the bytes of a large body go; None if the request was refused, which it is before its body is read."""
        try:
            self._shared.access.check_token(head.headers)
            return Buffer(self._shared.budget, head.body_bytes)
        except ServiceError as error:
            self.refuse(head, exchange, error)
            return None

    def refuse(self, head: RequestHead, exchange: Exchange, error: Exception) -> None:
        route = "access" if isinstance(error, UnauthorizedError) else self.route
        exchange.answer(*failure(self._shared.metrics, route, self._model(head.target), error, head.headers))

    def begin(self, head: RequestHead, body: Body, exchange: Exchange) -> None:
        """Answer on the fast path: everything up to the queue at once, and the rest when the run is done."""
        model, route = None, "access"
        try:
            self._shared.access.check_token(head.headers)
            route = self.route
            model = self._shared.repository.find(*head.target)
            request = self.read(model, body, head)
            if isinstance(request, Later):
                self._begin_steps(model, exchange, partial(request.answer, {}))
                return
            finish = partial(self.finish, model, request, exchange)
            enqueue(model, request.inputs, request.rows, exchange, finish, request.priority, request.timeout)
        except Exception as error:
            exchange.answer(*failure(self._shared.metrics, route, model, error, head.headers))

    def finish(self, model: Model, request: R, exchange: Exchange, outcome: Outcome) -> None:
        """Answer a request that was begun."""
        try:
            outputs = outputs_of(model, request.inputs, request.rows, outcome)
            if self.takes_long(request, outputs):
                self._begin_steps(model, exchange, partial(self.written, model, request, outputs))
                return
            start, body = self.write_raw(model, request, outputs)
        except Exception as error:
            exchange.answer(*failure(self._shared.metrics, self.route, model, error, exchange.head.headers))
        else:
            exchange.send(start, body)
            self._shared.metrics.answered(self.route, model)

    def lose(self, target: ModelPath) -> None:
        """Count a request whose client left before its body was complete."""
        self._shared.metrics.failed(self.route, self._model(target), ClientGoneError())

    def _model(self, target: ModelPath) -> Model | None:
        with contextlib.suppress(ServiceError):
            return self._shared.repository.find(*target)
        return None

    async def answered(self, model: Model, request: R | Later, scope: Scope) -> tuple[Headers, bytes]:
        """Headers and body of the answer to what `read` gives."""
        if isinstance(request, Later):
            return await request.answer(scope)
        outputs = await compute(model, request.inputs, request.rows, scope, request.priority, request.timeout)
        return await self.written(model, request, outputs)

    async def written(self, model: Model, request: R, outputs: Arrays) -> tuple[Headers, bytes]:
        """Headers and body of the answer, written in pieces where that takes long."""
        if self.takes_long(request, outputs):
            return await self._shared.turns.run(self.write_in_pieces(model, request, outputs))
        return self.write(model, request, outputs)

    def _head(self, target: ModelPath, headers: dict[bytes, bytes], scope: Scope) -> RequestHead:
        content_type, accept = headers.get(b"content-type", b""), headers.get(b"accept", b"").decode("latin-1")
        length, kind = headers.get(LENGTH_HEADER), media_type(content_type)
        asks = b"reference=true" in scope.get("query_string", b"").split(b"&")
        return RequestHead(target, scope["headers"], -1, length, self.route, kind, accept, asks)

    def _begin_steps(self, model: Model, exchange: Exchange, steps: InSteps) -> None:
        holding = ExitStack()
        holding.enter_context(model)  # here, as a task that is cancelled early never begins
        task = asyncio.get_running_loop().create_task(self._take_steps(model, exchange, steps))
        task.add_done_callback(partial(self._end_steps, model, holding))
        exchange.withdraw = task.cancel

    async def _take_steps(self, model: Model, exchange: Exchange, steps: InSteps) -> None:
        try:
            answer = 200, *await steps()
            self._shared.metrics.answered(self.route, model)
        except Exception as error:
            answer = failure(self._shared.metrics, self.route, model, error, exchange.head.headers)
        exchange.answer(*answer)

    def _end_steps(self, model: Model, holding: ExitStack, task: asyncio.Task[None]) -> None:
        holding.close()
        if task.cancelled():
            self._shared.metrics.failed(self.route, model, ClientGoneError())
