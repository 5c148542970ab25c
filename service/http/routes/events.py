"""Server-sent events: what a job on another thread tells while it runs, then its result or its error."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from service.errors import ServiceError
from service.protocol import render_verdict

MEDIA_TYPE = "text/event-stream"
SILENCE_SECONDS = 15.0
"""After so long without an event a comment is sent, because proxies close connections on which nothing comes."""


def wants_events(headers: dict[bytes, bytes]) -> bool:
    return MEDIA_TYPE in headers.get(b"accept", b"").decode("latin-1").lower()


class Events:
    """Made on the event loop; `tell` may be called by any thread."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[tuple[str, dict[str, Any]] | None] = asyncio.Queue()

    def tell(self, name: str, data: dict[str, Any]) -> None:
        self._loop.call_soon_threadsafe(self._queue.put_nowait, (name, data))

    async def stream(self, result: asyncio.Future[dict[str, Any]], last: str) -> AsyncIterator[bytes]:
        """What is told until the result is there, then the result as an event of the name `last`, or the error that it
        raises as an event `error`. Cancels the result if nobody reads any more."""
        result.add_done_callback(lambda _: self._queue.put_nowait(None))
        try:
            ended = False
            while not ended:
                try:
                    event = await asyncio.wait_for(self._queue.get(), SILENCE_SECONDS)
                except TimeoutError:
                    yield b":\n\n"
                    continue
                ended = event is None
                if event is not None:
                    yield _rendered(*event)
            yield _rendered(last, await result)
        except ServiceError as error:
            yield _rendered("error", {"error": str(error), "status": error.status})
        finally:
            result.cancel()


def _rendered(name: str, data: dict[str, Any]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), render_verdict(data))
