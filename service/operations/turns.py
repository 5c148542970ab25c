"""Work in pieces on the event loop: one piece in each iteration, whoever waits, so that requests are answered between.

Tried in place of this: threads, which wait for the interpreter as long as orjson parses, and processes (see
docs/decisions.md).
"""

import asyncio
import time
from collections import deque
from collections.abc import Generator
from typing import TypeVar

from service.budget import Budget

SLICE_SECONDS = 0.002
"""How long pieces of one job are worked on in an iteration; the last piece may take longer."""

T = TypeVar("T")


class Turns:
    """Jobs take turns, first come first served."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._waiting = deque[asyncio.Future[None]]()
        self._next: asyncio.Handle | None = None

    async def run(self, steps: Generator[None, None, T]) -> T:
        """The result of `steps`. Raises what they raise, and `OutOfMemoryError` if the process is short of memory."""
        try:
            while True:
                await self._turn()
                end = time.perf_counter() + SLICE_SECONDS
                self._budget.check_room()
                while time.perf_counter() < end:
                    next(steps)
        except StopIteration as done:
            result: T = done.value
            return result
        finally:
            steps.close()

    async def _turn(self) -> None:
        loop = asyncio.get_running_loop()
        turn = loop.create_future()
        self._waiting.append(turn)
        if self._next is None:
            self._next = loop.call_soon(self._give)
        await turn

    def _give(self) -> None:
        self._next = None
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():  # it was cancelled
                turn.set_result(None)
                break
        if self._waiting:
            self._next = asyncio.get_running_loop().call_soon(self._give)
