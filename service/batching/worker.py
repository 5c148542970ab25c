"""Threads that compute for the event loop, each one job at a time.

A job goes over by a queue and its outcome comes back as a callback on the loop: cheaper than an executor, whose futures
cost more than a small model takes to run. Threads are daemons, so a run that hangs cannot keep the process alive.

A job may have a prefetch, which prepares it on a thread for that while other jobs run. A thread that is free then takes
the next prepared job at once. It does not wait for the event loop, which has answers to write at that moment and holds
the interpreter for milliseconds.
"""

import asyncio
from collections.abc import Callable
from queue import SimpleQueue
from threading import Thread
from typing import Any, Protocol, TypeVar

T = TypeVar("T")

Job = Callable[[], T]
Done = Callable[[T | Exception], None]
Prefetch = Callable[[], None]
"""Prepares a job; does not raise."""

_Item = tuple[Job[Any], Done[Any], asyncio.AbstractEventLoop]


class JobRunner(Protocol):
    """What a batcher needs of its worker; a test may bring one that runs when told."""

    def submit(self, job: Job[T], done: Done[T], *, prefetch: Prefetch | None = None) -> None: ...

    def stop(self) -> None: ...


class Worker:
    def __init__(self, name: str, threads: int = 1, *, prefetches: bool = False) -> None:
        """With `prefetches` there is one thread more, which prepares jobs."""
        self._jobs: SimpleQueue[_Item | None] = SimpleQueue()
        self._unprepared: SimpleQueue[tuple[Prefetch, _Item] | None] | None = SimpleQueue() if prefetches else None
        work = [self._work] * threads + [self._prepare] * prefetches
        self._threads = [Thread(target=target, name=name, daemon=True) for target in work]
        for thread in self._threads:
            thread.start()

    def submit(self, job: Job[T], done: Done[T], *, prefetch: Prefetch | None = None) -> None:
        """Run `job` on the next free thread after those before it, then `done` on the calling loop with the outcome.

        `prefetch` runs first, on the thread for that; the job follows those that were prepared before.
        """
        item = (job, done, asyncio.get_running_loop())
        if prefetch is None or self._unprepared is None:
            self._jobs.put(item)
        else:
            self._unprepared.put((prefetch, item))

    def stop(self) -> None:
        """Let the threads end once the jobs submitted so far are done."""
        if self._unprepared is None:
            self._end()
        else:
            self._unprepared.put(None)

    def _end(self) -> None:
        for _ in self._threads:
            self._jobs.put(None)

    def _prepare(self) -> None:
        assert self._unprepared is not None
        while (entry := self._unprepared.get()) is not None:
            prefetch, item = entry
            prefetch()
            self._jobs.put(item)
            del entry, prefetch, item  # as below
        self._end()

    def _work(self) -> None:
        while (item := self._jobs.get()) is not None:
            job, done, loop = item
            try:
                outcome = job()
            except Exception as error:
                outcome = error
            try:
                loop.call_soon_threadsafe(done, outcome)
            except RuntimeError:  # the loop is closed: nobody is left to tell
                return
            del item, job, done, outcome  # the next job may be long in coming, and a batch is large


async def on_thread(name: str, job: Job[T]) -> T:
    """The outcome of one job on a thread of its own. If the caller is cancelled, the job still ends; its outcome is
    dropped."""
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
