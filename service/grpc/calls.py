"""The methods of GRPCInferenceService, which use the same repository, queue, statistics and control as HTTP.

A method takes the bytes of its request, so that bytes which cannot be parsed get an error of this service, and returns
a message. `service.grpc.handlers` turns what it raises into the error for the client.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from google.protobuf.json_format import ParseDict

from service.budget import COUNTED
from service.errors import ClientGoneError, DeadlineError
from service.grpc.codec import decode, encode
from service.grpc.messages import message_class, parameters, parse
from service.grpc.wire import read, read_small
from service.operations import (
    EXTENSIONS,
    GONE,
    WITHDRAW,
    Shared,
    authorize,
    compute,
    model_config,
    model_metadata,
    package_version,
    refuse_files,
)
from service.protocol import InferRequest, Signature, flag
from service.repository import Model

Method = Callable[[bytes, Any], Awaitable[Any]]
T = TypeVar("T")


class Calls:
    def __init__(self, shared: Shared, is_ready: Callable[[], bool]) -> None:
        self._shared = shared
        self._is_ready = is_ready

    def unary(self) -> dict[str, Method]:
        """All methods but ModelStreamInfer, by name."""
        return {
            "ServerLive": _describing("ServerLive", lambda request: {"live": self._shared.repository.lost() is None}),
            "ServerReady": _describing("ServerReady", lambda request: {"ready": self._is_ready()}),
            "ModelReady": _describing("ModelReady", self._model_ready),
            "ServerMetadata": _describing("ServerMetadata", self._server),
            "ModelMetadata": _describing("ModelMetadata", self._model),
            "ModelConfig": _describing("ModelConfig", self._config),
            "ModelStatistics": _describing("ModelStatistics", self._statistics),
            "RepositoryIndex": _describing("RepositoryIndex", self._index),
            "RepositoryModelLoad": self._load,
            "RepositoryModelUnload": self._unload,
            "ModelInfer": self.infer,
        }

    async def infer(self, content: bytes, context: Any) -> Any:
        taken = len(content) if len(content) > COUNTED else 0
        with self._shared.metrics.counting("grpc") as counted, self._shared.budget.held(taken):
            request, tensors = await self._work(taken, read if taken else read_small, content)
            counted.model = model = self._shared.repository.find(request.model_name, request.model_version or None)
            with model:
                signature = model.signature
                asked = await self._work(taken, decode, request, tensors, signature, self._shared.budget)
                return await self._infer(model, signature, asked, context.time_remaining())

    async def _work(self, size: int, function: Callable[..., T], *arguments: Any) -> T:
        """What `function` returns, which runs on a thread for a large request."""
        return await asyncio.to_thread(function, *arguments) if size else function(*arguments)

    async def _infer(self, model: Model, signature: Signature, asked: InferRequest, seconds_left: float | None) -> Any:
        """`seconds_left` until the client's deadline; None if it has none."""
        rows = signature.check(asked.inputs, self._shared.settings.max_request_rows)
        if seconds_left is not None:
            if seconds_left <= 0:
                raise DeadlineError(f"model {model}: the request came after its deadline")
            asked.timeout = min(asked.timeout or seconds_left, seconds_left)
        state: dict[str, Any] = {}
        try:
            outputs = await compute(model, asked.inputs, rows, {"state": state}, asked.priority, asked.timeout)
        except asyncio.CancelledError:  # the client cancelled or left, or its deadline passed
            if WITHDRAW in state:
                state[WITHDRAW]()
            self._shared.metrics.failed("grpc", model, ClientGoneError(GONE))
            raise
        labels = model.manifest.labels
        return encode(model.name, model.version, asked, outputs, batched=signature.batched, labels=labels)

    def _model_ready(self, request: Any) -> dict[str, Any]:
        """As in Triton, an unknown model is not ready, and no error: clients ask until it is ready."""
        name, version = request.name, request.version
        ready = self._shared.repository.ready()
        return {"ready": any(model.name == name and version in ("", model.version) for model in ready)}

    def _server(self, request: Any) -> dict[str, Any]:
        return {"name": "bnfold", "version": package_version(), "extensions": EXTENSIONS}

    def _model(self, request: Any) -> dict[str, Any]:
        return model_metadata(self._find(request), self._shared.repository)

    def _config(self, request: Any) -> dict[str, Any]:
        return {"config": model_config(self._find(request), self._shared.settings)}

    def _statistics(self, request: Any) -> dict[str, Any]:
        if not request.name:
            models = self._shared.repository.ready()
        elif request.version:
            models = [self._find(request)]
        else:
            self._find(request)
            versions = self._shared.repository.versions(request.name)
            models = [self._shared.repository.find(request.name, version) for version in versions]
        return {"model_stats": [self._shared.metrics.statistics(model) for model in models]}

    def _index(self, request: Any) -> dict[str, Any]:
        return {"models": self._shared.repository.index(ready=request.ready)}

    def _find(self, request: Any) -> Model:
        return self._shared.repository.find(request.name, request.version or None)

    async def _load(self, content: bytes, context: Any) -> Any:
        with self._shared.metrics.counting("load"):
            authorize(self._shared.settings, self._shared.access, headers_of(context.invocation_metadata()))
            request = parse(message_class("RepositoryModelLoadRequest"), content)
            refuse_files(parameters(request.parameters))
            await self._shared.repository.load_model(request.model_name)
            return message_class("RepositoryModelLoadResponse")()

    async def _unload(self, content: bytes, context: Any) -> Any:
        with self._shared.metrics.counting("unload"):
            authorize(self._shared.settings, self._shared.access, headers_of(context.invocation_metadata()))
            request = parse(message_class("RepositoryModelUnloadRequest"), content)
            flag(parameters(request.parameters), "unload_dependents", default=False)
            await self._shared.repository.unload_model(request.model_name)
            return message_class("RepositoryModelUnloadResponse")()


def headers_of(metadata: Any) -> list[tuple[bytes, bytes]]:
    """A call's metadata in the form of HTTP headers."""
    return [(key.encode(), value.encode() if isinstance(value, str) else value) for key, value in metadata or ()]


def _describing(name: str, answer: Callable[[Any], dict[str, Any]]) -> Method:
    """A method whose answer has the same content as HTTP's JSON."""
    request, response = message_class(f"{name}Request"), message_class(f"{name}Response")

    async def method(content: bytes, context: Any) -> Any:
        return ParseDict(answer(parse(request, content)), response(), ignore_unknown_fields=True)

    return method
