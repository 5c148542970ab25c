"""gRPC handlers around the methods: tokens, errors, the access log, and the number of calls that are not answered."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from typing import Any, NoReturn

import grpc
from grpc import StatusCode, aio

from service.access import Access
from service.errors import SHORT, NotReadyError, OutOfMemoryError, ServiceError
from service.grpc.calls import Calls, Method, headers_of
from service.grpc.messages import SERVICE
from service.grpc.status import INTERNAL, abort, code_of
from service.grpc.stream import Streams
from service.telemetry import Identity, Metrics, access_log, identity

OPEN = frozenset(
    {
        f"/{SERVICE}/ServerLive",
        f"/{SERVICE}/ServerReady",
        "/grpc.health.v1.Health/Check",
        "/grpc.health.v1.Health/Watch",
    }
)
"""Load balancers call these methods, and have no token."""

TICK_SECONDS = 0.01
QUIET_SECONDS = 0.1
"""More than a round trip: by then, every client that called has been refused once."""

log = logging.getLogger("bnfold")


class Handlers:
    def __init__(self, calls: Calls, *, access_log: bool) -> None:
        self._streams = Streams(calls.infer)
        self._calls = calls
        self._access_log = access_log
        self._under_way = 0
        self._closing = False
        self._called = False
        """Whether a client has called since `quiet` looked last."""

    def close(self) -> None:
        """Refuse new calls. Calls that were accepted are answered, and so are requests that were read from a stream."""
        self._closing = True
        self._streams.close()

    async def answered(self) -> None:
        """Wait until all accepted calls are answered."""
        while self._under_way:
            await asyncio.sleep(TICK_SECONDS)

    async def quiet(self) -> None:
        """Wait until no client has called for `QUIET_SECONDS`."""
        self._called = True
        while self._called:
            self._called = False
            await asyncio.sleep(QUIET_SECONDS)

    def generic(self) -> Any:
        methods = {
            name: grpc.unary_unary_rpc_method_handler(self._unary(name, method))
            for name, method in self._calls.unary().items()
        }
        methods["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(self._stream)
        return grpc.method_handlers_generic_handler(SERVICE, methods)

    def _unary(self, name: str, method: Method) -> Any:
        async def handler(content: bytes, context: Any) -> bytes:
            call = self._begin(context, name)
            try:
                self._check_open()
                answer = bytes((await method(content, context)).SerializeToString())
            except Exception as error:
                await call.refuse(error)
            call.status = StatusCode.OK
            return answer

        return handler

    async def _stream(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        call = self._begin(context, "ModelStreamInfer")
        try:
            self._check_open()
            async for answer in self._streams.answers(requests, context):
                yield answer
        except Exception as error:
            await call.refuse(error)
        call.status = StatusCode.OK

    def _begin(self, context: Any, name: str) -> "_Call":
        """Count a call until it has ended, unless it is refused because the service stops."""
        call, accepted = _Call(context, name), not self._closing
        self._called = True
        self._under_way += accepted

        def end(ended: Any) -> None:
            self._under_way -= accepted
            if self._access_log:
                call.log()

        context.add_done_callback(end)
        return call

    def _check_open(self) -> None:
        if self._closing:
            raise NotReadyError("the service is stopping; send the request elsewhere")


class _Call:
    """One call: its status, and its line in the access log."""

    def __init__(self, context: Any, name: str) -> None:
        self.status = StatusCode.CANCELLED  # stays if the client leaves before the answer
        self._context = context
        self._name = name
        self._began = time.perf_counter()
        self._client = context.peer()  # not available after the call

    async def refuse(self, error: Exception) -> NoReturn:
        """End the call with `error`. Always raises, as `abort` does."""
        if isinstance(error, MemoryError):
            error = OutOfMemoryError(SHORT)
        if not isinstance(error, ServiceError):
            log.error("%s failed", self._name, exc_info=error, extra={"identity": self._identity})
            error = ServiceError(INTERNAL)
        self.status = code_of(error)
        await abort(self._context, error)

    def log(self) -> None:
        milliseconds = round(1000 * (time.perf_counter() - self._began), 3)
        path, status = f"/{SERVICE}/{self._name}", self.status.name
        fields = {"client": self._client, "method": "gRPC", "path": path, "status": status}
        extra = {"fields": {**fields, "milliseconds": milliseconds}, "identity": self._identity}
        access_log.info("%s gRPC %s %s %g ms", self._client, path, status, milliseconds, extra=extra)

    @property
    def _identity(self) -> Identity:
        return identity(headers_of(self._context.invocation_metadata()))


class Guard(aio.ServerInterceptor):  # type: ignore[misc]  # grpc has no types
    """Refuses calls without a known token, before the request is read."""

    def __init__(self, access: Access, metrics: Metrics) -> None:
        self._access = access
        self._metrics = metrics

    async def intercept_service(self, continuation: Any, call: Any) -> Any:
        if call.method in OPEN:
            return await continuation(call)
        try:
            self._access.check(call.method, headers_of(call.invocation_metadata))
        except ServiceError as error:
            self._metrics.failed("access", None, error)
            return _refusing(error)
        return await continuation(call)


def _refusing(error: ServiceError) -> Any:
    async def handler(requests: Any, context: Any) -> None:
        await abort(context, error)

    return grpc.stream_stream_rpc_method_handler(handler)
