"""What GRPCInferenceService answers, from the same sources as HTTP: repository, queue, statistics, control.

Each method takes the bytes of its message and gives those of its answer, so that a message which cannot be read is
refused in our words. What it raises, `service.rpc.handlers` tells the client.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any

from google.protobuf.json_format import ParseDict

from service.access import Access
from service.control import authorize, refuse_files
from service.entries import Model
from service.errors import ClientGoneError, DeadlineError, NotFoundError, ServiceError
from service.infer import GONE, WITHDRAW, compute
from service.metadata import EXTENSIONS, model_metadata, package_version
from service.metrics import Metrics
from service.model_config import model_config
from service.parameters import Parameters, flag
from service.repository import Repository
from service.rpc.codec import decode, encode
from service.rpc.messages import (
    ModelInferRequest,
    ModelInferResponse,
    ModelStreamInferResponse,
    message_class,
    parameters,
    parse,
)
from service.settings import Settings

Headers = list[tuple[bytes, bytes]]
Method = Callable[[bytes, Any], Awaitable[bytes]]

AHEAD = 256
"""Requests of one stream that may be under way; more are read when answers have left."""


class Calls:
    def __init__(
        self,
        settings: Settings,
        repository: Repository,
        metrics: Metrics,
        access: Access,
        takes_requests: Callable[[], bool],
    ) -> None:
        self._settings = settings
        self._repository = repository
        self._metrics = metrics
        self._access = access
        self._takes_requests = takes_requests
        self._closing = False
        self._readers: set[asyncio.Task[None]] = set()

    def unary(self) -> dict[str, Method]:
        """All methods but the stream, by name."""
        plain: dict[str, Callable[[Any], dict[str, Any]]] = {
            "ServerLive": lambda request: {"live": True},
            "ServerReady": lambda request: {"ready": self._takes_requests()},
            "ServerMetadata": lambda request: {
                "name": "bnfold",
                "version": package_version(),
                "extensions": EXTENSIONS,
            },
            "ModelReady": self._model_ready,
            "ModelMetadata": lambda request: model_metadata(self._find(request), self._repository),
            "ModelConfig": lambda request: {"config": model_config(self._find(request), self._settings)},
            "ModelStatistics": self._statistics,
            "RepositoryIndex": lambda request: {"models": self._repository.index(ready=request.ready)},
        }
        methods = {name: _describing(name, answer) for name, answer in plain.items()}
        control = {"RepositoryModelLoad": self._load, "RepositoryModelUnload": self._unload}
        return {**methods, **control, "ModelInfer": self.infer}

    def close_streams(self) -> None:
        """Answer what their clients sent so far, then end them."""
        self._closing = True
        for reader in self._readers:
            reader.cancel()

    # Inference

    async def infer(self, content: bytes, context: Any) -> bytes:
        with self._metrics.counting("grpc") as counted:
            request = parse(ModelInferRequest, content)
            counted.model = model = self._repository.find(request.model_name, request.model_version or None)
            with model:
                answer = await self._infer(model, request, context.time_remaining())
                return bytes(answer.SerializeToString())

    async def stream(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        """Answers in the order of the requests, which are computed as they come."""
        answers: asyncio.Queue[asyncio.Task[bytes] | None] = asyncio.Queue()
        room = asyncio.Semaphore(AHEAD)
        reader = asyncio.create_task(self._read(requests, context, answers, room))
        self._readers.add(reader)
        try:
            if self._closing:
                reader.cancel()
            while (answer := await answers.get()) is not None:
                yield await answer
                room.release()
        finally:
            reader.cancel()
            self._readers.discard(reader)
            while not answers.empty():
                if (left := answers.get_nowait()) is not None:
                    left.cancel()

    async def _read(
        self,
        requests: AsyncIterator[bytes],
        context: Any,
        answers: "asyncio.Queue[asyncio.Task[bytes] | None]",
        room: asyncio.Semaphore,
    ) -> None:
        try:
            async for content in requests:
                await room.acquire()
                answers.put_nowait(asyncio.create_task(self._streamed(content, context)))
        finally:
            answers.put_nowait(None)

    async def _streamed(self, content: bytes, context: Any) -> bytes:
        """The answer to one request of a stream: an error belongs to it, and not to the stream."""
        try:
            answer = ModelInferResponse.FromString(await self.infer(content, context))
            return bytes(ModelStreamInferResponse(infer_response=answer).SerializeToString())
        except ServiceError as error:
            return b""

    async def _infer(self, model: Model, request: Any, seconds_left: float | None) -> Any:
        """`seconds_left` to the client's own deadline, None where it has none."""
        signature = model.session.signature
        asked = decode(request, signature)
        rows = signature.check(asked.inputs, self._settings.max_request_rows)
        if seconds_left is not None:
            if seconds_left <= 0:
                raise DeadlineError(f"model {model}: the request came after its deadline")
            asked.timeout = min(asked.timeout or seconds_left, seconds_left)
        state: dict[str, Any] = {}
        try:
            outputs = await compute(model, asked.inputs, rows, {"state": state}, asked.priority, asked.timeout)
        except asyncio.CancelledError:  # the client cancelled, left, or waits no longer
            if WITHDRAW in state:
                state[WITHDRAW]()
            self._metrics.failed("grpc", model, ClientGoneError(GONE))
            raise
        labels = model.manifest.labels
        return encode(model.name, model.version, asked, outputs, batched=signature.batched, labels=labels)
