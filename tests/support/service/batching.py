"""A batcher whose time, worker and model do what the test says: every interleaving is a choice, not an accident."""

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

import numpy as np

from service.batching import Batcher, BatchPolicy, Lane, Ticket

MAX_ROWS, QUEUE_ROWS = 6, 16
POISON = -1.0

Arrays = dict[str, np.ndarray]


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Loop(asyncio.SelectorEventLoop):
    """Its timers go by that clock."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.time = clock  # type: ignore[method-assign]


class StepWorker:
    """A worker that runs its jobs, of which it has as many as it has threads at most, when told."""

    def __init__(self, threads: int = 1) -> None:
        self.threads = threads
        self.jobs: deque[tuple[Callable[[], Any], Callable[[Any], None]]] = deque()
        self.stopped = False

    def submit(
        self, job: Callable[[], Any], done: Callable[[Any], None], *, prefetch: Callable[[], None] | None = None
    ) -> None:
        assert len(self.jobs) < self.threads, "more batches at a time than there are threads"
        assert not self.stopped
        if prefetch is not None:
            prefetch()
        self.jobs.append((job, done))

    def step(self) -> bool:
        if not self.jobs:
            return False
        job, done = self.jobs.popleft()
        done(job())
        return True

    def run_all(self) -> None:
        while self.step():
            pass

    def stop(self) -> None:
        assert not self.jobs
        self.stopped = True


class Model:
    """Adds one to every row, refuses poisoned batches, and remembers how many rows it got. A run takes `seconds`."""

    def __init__(self, clock: Clock | None = None, seconds: float = 0.0) -> None:
        self.clock, self.seconds = clock or Clock(), seconds
        self.batches: list[int] = []
        self.single_core: list[int] = []
        """Those of them that ran on one core."""

    def run_on_one_core(self, inputs: Arrays) -> Arrays:
        self.single_core.append(len(inputs["x"]))
        return self.run(inputs)

    def run(self, inputs: Arrays) -> Arrays:
        x = inputs["x"]
        self.batches.append(len(x))
        self.clock.now += self.seconds
        if (x == POISON).any():
            raise RuntimeError("poisoned")
        return {"y": x + 1}


class Rig:
    """All of them together; the batcher runs nothing in the event loop unless `inline_seconds` says so."""

    def __init__(self, seconds: float = 0.0, **options: Any) -> None:
        chosen = {"max_batch_size": MAX_ROWS, "queue_rows": QUEUE_ROWS, "timeout": 60.0, "inline_seconds": 0.0}
        policy = BatchPolicy(**{**chosen, **options})
        self.clock, self.worker = Clock(), StepWorker(policy.threads + policy.prefetches)
        self.model = Model(self.clock, seconds)
        self.queue = Batcher(
            self.model.run,
            policy,
            name="m/1",
            single_core_run=self.model.run_on_one_core,
            worker=self.worker,
            clock=self.clock,
            cpu_clock=self.clock,
        )

    def submit(self, inputs: Arrays, rows: int, lane: Lane = (), **options: Any) -> Ticket:
        return submit(self.queue, inputs, rows, lane, **options)

    async def learn(self, rows: int = 1, times: int = 4) -> None:
        """So many runs, by which the batcher knows how long they take."""
        for _ in range(times):
            self.submit(filled(0, rows), rows)
            self.worker.run_all()
            await turns()
        self.model.batches.clear()

    def play(self, coroutine: Coroutine[Any, Any, None]) -> None:
        with asyncio.Runner(loop_factory=lambda: Loop(self.clock)) as runner:
            runner.run(coroutine)


def submit(queue: Batcher, inputs: Arrays, rows: int, lane: Lane = (), **options: Any) -> Ticket:
    """A request whose result is a future."""
    return queue.submit(inputs, rows, lane, result=asyncio.get_running_loop().create_future(), **options)


def filled(value: float, count: int = 1, width: int = 1) -> Arrays:
    return {"x": np.full((count, width), value, np.float32)}


async def turns(count: int = 3) -> None:
    """Let the event loop do what is due."""
    for _ in range(count):
        await asyncio.sleep(0)
