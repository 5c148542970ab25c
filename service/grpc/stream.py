"""ModelStreamInfer: requests of one stream are computed as they arrive, and answered in their order, as in Triton.

An error is the answer to its request, with the request's id, and does not end the stream.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from service.errors import BadRequestError, NotReadyError, ServiceError
from service.grpc.messages import ModelInferRequest, ModelInferResponse, ModelStreamInferResponse, parse
from service.grpc.status import INTERNAL

MAX_PENDING = 256
"""Requests of one stream that may be unanswered; more are read when answers have been sent."""

FINAL = "triton_final_response"
"""Parameter of each answer of a stream that is the last to its request, as Triton says it: here every one is."""

Answers = asyncio.Queue[asyncio.Task[bytes] | None]
"""In the order of the requests; None behind the last."""

log = logging.getLogger("bnfold")


class Streams:
    def __init__(self, infer: Callable[[bytes, Any], Awaitable[Any]]) -> None:
        self._infer = infer
        self._closing = False
        self._readers: set[asyncio.Task[None]] = set()

    def close(self) -> None:
        """Read no more. Requests that were read are answered, then clients are told to go elsewhere."""
        self._closing = True
        for reader in self._readers:
            reader.cancel()

    async def answers(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        answers: Answers = asyncio.Queue()
        room = asyncio.Semaphore(MAX_PENDING)
        reader = asyncio.create_task(self._read(requests, context, answers, room))
        reader.add_done_callback(lambda done: answers.put_nowait(None))
        self._readers.add(reader)
        try:
            while (answer := await answers.get()) is not None:
                yield await answer
                room.release()
            if self._closing:
                raise NotReadyError("the service is stopping; open the stream elsewhere")
        finally:
            self._readers.discard(reader)
            reader.cancel()
            while not answers.empty():
                if (unwanted := answers.get_nowait()) is not None:
                    unwanted.cancel()

    async def _read(
        self, requests: AsyncIterator[bytes], context: Any, answers: Answers, room: asyncio.Semaphore
    ) -> None:
        async for content in requests:
            answers.put_nowait(asyncio.create_task(self._answer(content, context)))
            await room.acquire()  # after the task is made, so that no request is read and not begun

    async def _answer(self, content: bytes, context: Any) -> bytes:
        try:
            answer = ModelStreamInferResponse(infer_response=await self._infer(content, context))
            answer.infer_response.parameters[FINAL].bool_param = True
        except Exception as error:
            if not isinstance(error, ServiceError):
                log.exception("a request of a stream failed")
            text = str(error) if isinstance(error, ServiceError) else INTERNAL
            failed = ModelInferResponse(id=_id_of(content))
            answer = ModelStreamInferResponse(error_message=text, infer_response=failed)
        return bytes(answer.SerializeToString())


def _id_of(content: bytes) -> str:
    try:
        return str(parse(ModelInferRequest, content).id)
    except BadRequestError:
        return ""
