"""Threads that compute for the event loop, each one thing at a time.

A job goes over by a queue and its outcome comes back as a callback on the loop: cheaper than an executor, whose futures
cost more than a small model takes to run. Threads are daemons, so a run that hangs cannot keep the process alive.

What a job needs to be made ready may be done ahead, on a thread for that, while others compute. A thread that is done
then takes the next job in the same breath: the event loop, which has answers to write now and holds the interpreter for
milliseconds, is not between them.
"""

import asyncio
from collections.abc import Callable
from queue import SimpleQueue
from threading import Thread
from typing import Any, Protocol, TypeVar

T = TypeVar("T")

Job = Callable[[], T]
Done = Callable[[T | Exception], None]
Ahead = Callable[[], None]
"""Makes a job ready; does not raise."""

Item = tuple[Job[Any], Done[Any], asyncio.AbstractEventLoop]


class Works(Protocol):
    """What a batcher asks of its worker; a test may put one here that runs when told."""

    def submit(self, job: Job[T], done: Done[T], *, ahead: Ahead | None = None) -> None: ...

    def stop(self) -> None: ...


class Worker:
    def __init__(self, name: str, threads: int = 1, *, ahead: bool = False) -> None:
        """With `ahead` there is one thread more, which makes jobs ready."""
        self._jobs: SimpleQueue[Item | None] = SimpleQueue()
        self._early: SimpleQueue[tuple[Ahead, Item] | None] | None = SimpleQueue() if ahead else None
        work = [self._work] * threads + [self._make_ready] * ahead
        self._threads = [Thread(target=target, name=name, daemon=True) for target in work]
        for thread in self._threads:
            thread.start()

    def submit(self, job: Job[T], done: Done[T], *, ahead: Ahead | None = None) -> None:
        """Run `job` on the next free thread after those before it, then `done` on the calling loop with the outcome.

        Where `ahead` is given it runs first, on the thread for that; the job follows those that were ready before.
        """
        item = (job, done, asyncio.get_running_loop())
        if ahead is None or self._early is None:
            self._jobs.put(item)
        else:
            self._early.put((ahead, item))

    def stop(self) -> None:
        """Let the threads end once the jobs submitted so far are done."""
        if self._early is None:
            self._end()
        else:
            self._early.put(None)

    def _end(self) -> None:
        for _ in self._threads:
            self._jobs.put(None)

    def _make_ready(self) -> None:
        assert self._early is not None
        while (early := self._early.get()) is not None:
            ahead, item = early
            ahead()
            self._jobs.put(item)
            del early, ahead, item  # as below
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
