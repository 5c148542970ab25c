"""Dynamic batching: an idle worker runs a request at once, and what arrives while it computes is the next batch.

Nothing waits for company, so a lone request is never delayed. The state belongs to the event loop and the worker only
computes: no locks, no polling, and at most one timer. Rows are counted, not requests. Requests whose dimensions differ
beside the batch wait in lanes of their own, and the lanes take turns.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from service.errors import BusyError, DeadlineError, NotReadyError, ServiceError
from service.signature import Arrays, Lane
from service.worker import Worker, Works

Run = Callable[[Arrays], Arrays]
Outcome = Arrays | Exception


@dataclass(slots=True, eq=False)
class Ticket:
    """One accepted request: `result` is set exactly once, by its batch or by whoever withdraws it."""

    inputs: Arrays
    rows: int
    lane: Lane
    arrived: float
    result: asyncio.Future[Arrays]
    queued: bool = False

    @property
    def weight(self) -> int:
        """What it takes of the queue; a request without rows is not free."""
        return self.rows or 1


@dataclass(frozen=True, slots=True)
class BatchStats:
    """What a finished batch tells the metrics. Seconds."""

    rows: int
    queued: list[float]
    compute: float


class Batcher:
    """The queue in front of one model."""

    def __init__(
        self,
        run: Run,
        *,
        name: str,
        max_batch_size: int,
        queue_rows: int,
        timeout: float,
        batched: bool = True,
        worker: Works | None = None,
    ) -> None:
        self.name = name
        self.queued_rows = 0
        self.running_rows = 0
        self.on_batch: Callable[[BatchStats], None] = lambda stats: None
        self._run = run
        self._max_rows = max_batch_size if batched else 0
        self._queue_rows = queue_rows
        self._timeout = timeout
        self._worker: Works = Worker(f"batcher {name}") if worker is None else worker
        self._lanes: dict[Lane, deque[Ticket]] = {}
        self._busy = False
        self._closing = False
        self._idle: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def submit(self, inputs: Arrays, rows: int, lane: Lane = ()) -> Ticket:
        """Run the request now, or queue it. Raises `BusyError` when the queue is full."""
        if self._closing:
            raise NotReadyError(f"model {self.name} is shutting down; send the request elsewhere")
        ticket = Ticket(inputs, rows, lane, time.perf_counter(), asyncio.get_running_loop().create_future())
        if not self._busy:
            self._start([ticket])
            return ticket
        if self.queued_rows + ticket.weight > self._queue_rows:
            raise BusyError(
                f"model {self.name}: {ticket.weight} rows came, {self.queued_rows} are queued already and at most "
                f"{self._queue_rows} may be; try again later, or more slowly"
            )
        ticket.queued = True
        self.queued_rows += ticket.weight
        self._lanes.setdefault(lane, deque()).append(ticket)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._timeout, self._expire)
        return ticket

    def withdraw(self, ticket: Ticket, error: ServiceError) -> bool:
        """Take a request that still waits out of the queue and give it `error`; false if it runs or ran already."""
        if not ticket.queued:
            return False
        waiting = self._lanes[ticket.lane]
        waiting.remove(ticket)
        if not waiting:
            del self._lanes[ticket.lane]
        self._leave_queue(ticket)
        if not ticket.result.done():
            ticket.result.set_exception(error)
        return True

    async def drain(self) -> None:
        """Refuse what is new, answer what was accepted, then let the worker go."""
        self._closing = True
        if self._busy:
            self._idle = asyncio.get_running_loop().create_future()
            await self._idle
        if self._timer is not None:
            self._timer.cancel()
        self._worker.stop()

    def _take(self) -> list[Ticket]:
        """The next batch: the oldest of the lane whose turn it is, and as many behind it as fit."""
        lane = next(iter(self._lanes))
        waiting = self._lanes.pop(lane)
        batch = [waiting.popleft()]
        rows = batch[0].rows
        while waiting and rows + waiting[0].rows <= self._max_rows:
            rows += waiting[0].rows
            batch.append(waiting.popleft())
        if waiting:
            self._lanes[lane] = waiting  # behind the other lanes
        for ticket in batch:
            self._leave_queue(ticket)
        return [ticket for ticket in batch if not ticket.result.done()]  # a cancelled task leaves its ticket behind

    def _leave_queue(self, ticket: Ticket) -> None:
        ticket.queued = False
        self.queued_rows -= ticket.weight

    def _start(self, batch: list[Ticket]) -> None:
        self._busy = True
        rows = [ticket.rows for ticket in batch]
        self.running_rows = sum(rows)
        started = time.perf_counter()
        job = partial(compute, self._run, [ticket.inputs for ticket in batch], rows)
        self._worker.submit(job, partial(self._finish, batch, started))

    def _finish(self, batch: list[Ticket], started: float, computed: "Computed | Exception") -> None:
        self._busy = False
        rows, self.running_rows = self.running_rows, 0
        while self._lanes and not self._busy:  # the worker first: it need not wait for the answers to be written
            if following := self._take():
                self._start(following)
        if isinstance(computed, Exception):
            computed = Computed([computed] * len(batch), 0.0)
        for ticket, outcome in zip(batch, computed.outcomes, strict=True):
            if ticket.result.done():
                continue
            if isinstance(outcome, Exception):
                ticket.result.set_exception(outcome)
            else:
                ticket.result.set_result(outcome)
        queued = [started - ticket.arrived for ticket in batch]
        self.on_batch(BatchStats(rows, queued, computed.seconds))
        if self._idle is not None and not self._busy:
            self._idle.set_result(None)

    def _expire(self) -> None:
        """Answer those whose time is up, and come back when the next one's is. Runs only while something waits."""
        self._timer = None
        now = time.perf_counter()
        waiting = [ticket for lane in self._lanes.values() for ticket in lane]
        for ticket in waiting:
            if now - ticket.arrived >= self._timeout:
                self.withdraw(ticket, DeadlineError(f"model {self.name}: not begun within {self._timeout:g} seconds"))
        left = [ticket.arrived for ticket in waiting if ticket.queued]
        if left:
            delay = min(left) + self._timeout - now
            self._timer = asyncio.get_running_loop().call_later(max(delay, 0.001), self._expire)


@dataclass(frozen=True, slots=True)
class Computed:
    outcomes: list[Outcome]
    seconds: float


def compute(run: Run, requests: Sequence[Arrays], rows: Sequence[int]) -> Computed:
    """Run the requests together; if that fails, one by one, so that only the guilty one fails."""
    begun = time.perf_counter()
    if len(requests) == 1:
        outcomes = [_attempt(run, requests[0])]
    else:
        try:
            outcomes = list(split(run(merge(requests)), rows))
        except Exception:
            outcomes = [_attempt(run, request) for request in requests]
    return Computed(outcomes, time.perf_counter() - begun)


def merge(requests: Sequence[Arrays]) -> Arrays:
    """One batch of all rows, in the order of the requests."""
    return {name: np.concatenate([request[name] for request in requests]) for name in requests[0]}


def split(outputs: Arrays, rows: Sequence[int]) -> list[Arrays]:
    """Each request's rows of the batch's outputs, as views."""
    total = sum(rows)
    for name, array in outputs.items():
        if array.ndim == 0 or len(array) != total:
            raise ValueError(f"output {name!r} has shape {list(array.shape)}, but the batch has {total} rows")
    parts: list[Arrays] = []
    start = 0
    for count in rows:
        parts.append({name: array[start : start + count] for name, array in outputs.items()})
        start += count
    return parts


def _attempt(run: Run, request: Arrays) -> Outcome:
    try:
        return run(request)
    except Exception as error:
        return error
