"""One timer of the event loop for all deadlines: it is set to the first of them."""

import asyncio
from collections.abc import Callable
from math import inf

SHORTEST_SECONDS = 0.001
"""A deadline that is due already is answered after so long, so that the loop serves others in between."""


class DeadlineTimer:
    def __init__(self) -> None:
        self.due = inf
        """The deadline that it is set to, in seconds of the batcher's clock; infinite while it is not set."""
        self._handle: asyncio.TimerHandle | None = None

    def set(self, due: float, seconds: float, expire: Callable[[], None]) -> None:
        """Call `expire` once, in so many seconds, which is when `due` comes. What was set before is forgotten."""
        self.stop()
        self.due = due
        self._handle = asyncio.get_running_loop().call_later(max(seconds, SHORTEST_SECONDS), expire)

    def stop(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
        self._handle = None
        self.due = inf
