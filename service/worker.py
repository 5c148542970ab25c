"""Threads that compute for the event loop, each one thing at a time.

A job goes over by a queue and its outcome comes back as a callback on the loop: cheaper than an executor, whose futures
cost more than a small model takes to run. Threads are daemons, so a run that hangs cannot keep the process alive.
"""

import asyncio
from collections.abc import Callable
from queue import SimpleQueue
from threading import Thread
from typing import Any, Protocol, TypeVar

T = TypeVar("T")

Job = Callable[[], T]
Done = Callable[[T | Exception], None]


class Works(Protocol):
    """What a batcher asks of its worker; a test may put one here that runs when told."""

    def submit(self, job: Job[T], done: Done[T]) -> None: ...

    def stop(self) -> None: ...


class Worker:
    def __init__(self, name: str, threads: int = 1) -> None:
        self._jobs: SimpleQueue[tuple[Job[Any], Done[Any], asyncio.AbstractEventLoop] | None] = SimpleQueue()
        self._threads = [Thread(target=self._work, name=name, daemon=True) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def submit(self, job: Job[T], done: Done[T]) -> None:
        """Run `job` on the next free thread after those before it, then `done` on the calling loop with the outcome."""
        self._jobs.put((job, done, asyncio.get_running_loop()))

    def stop(self) -> None:
        """Let the threads end once the jobs submitted so far are done."""
        for _ in self._threads:
            self._jobs.put(None)

    def _work(self) -> None:
        while (item := self._jobs.get()) is not None:
            job, done, loop = item
            try:
                outcome = job()
            except Exception as error:
                outcome = error
            try:
                loop.call_soon_threadsafe(done, outcome)
            except RuntimeError:  # the loop closed meanwhile: nobody is left to tell
                return
            del item, job, done, outcome  # the next job may be long in coming, and a batch is large


async def on_thread(name: str, job: Job[T]) -> T:
    """The outcome of one job on a thread of its own. Whoever is cancelled leaves the job to end unheard."""
    result: asyncio.Future[T] = asyncio.get_running_loop().create_future()

    def done(outcome: T | Exception) -> None:
        if result.done():
            return
        if isinstance(outcome, Exception):
            result.set_exception(outcome)
        else:
            result.set_result(outcome)

    worker = Worker(name)
    worker.submit(job, done)
    worker.stop()
    return await result
