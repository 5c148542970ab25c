"""Dynamic batching: an idle worker runs a request at once, and the requests that arrive meanwhile are the next batch.

Nothing waits for other requests unless `max_queue_delay` is set, so a single request is never delayed. The state
belongs to the event loop and the worker only computes: no locks, no polling, and one timer for all deadlines.

Runs that are known to be fast happen in the event loop itself, once per iteration of it: all requests that came in
with this iteration are one batch, and one that no other can join runs at once. A hop to the thread and back is 10 µs
where no other thread runs Python and far more where the loop is busy, since both need the interpreter. A batch is
judged by the times of similar batches; whatever is unknown or slow runs on the thread.

Where a GPU computes, two batches may be in flight: while one is computed the other one's rows are copied. Where the CPU
computes, a single request runs on all cores. Where there are as many requests as cores, a run gets one core and there
are as many runs: threads of one run wait for each other at every operator, and whenever something else, such as the
event loop, takes one of their cores. The next batch is prefetched, that is merged while others run, and begins the
moment one ends, though the event loop then has answers to write.

Each model has a queue and threads of its own, and the system shares the cores among the threads. There is no lock among
models: it could only make a fast run wait for a slow one, where the system interrupts the slow one.
"""

import asyncio
import time
from collections.abc import Callable
from functools import partial
from math import ceil

from fold.arrays import Arrays, Run
from service.batching.concurrency import Concurrency
from service.batching.deadlines import DeadlineTimer
from service.batching.lane import Lane
from service.batching.merging import BatchStats, Clock, ComputedBatch, Outcome, RequestBatch, attempt
from service.batching.pace import Pace
from service.batching.policy import BatchPolicy
from service.batching.queue import Queue
from service.batching.ticket import ResultSink, Ticket
from service.batching.worker import JobRunner, Worker
from service.errors import BadRequestError, BusyError, DeadlineError, NotReadyError, ServiceError

DEFAULT_PRIORITY = 8
"""What priority 0 stands for: clients may go before those that say nothing, or let them pass."""
MAX_RETRY_SECONDS = 60
"""Retry-After is never more: the rate may be another by then."""


class Batcher:
    """The queue in front of one model."""

    def __init__(
        self,
        run: Run,
        policy: BatchPolicy,
        *,
        name: str,
        single_core_run: Run | None = None,
        worker: JobRunner | None = None,
        clock: Clock = time.perf_counter,
        cpu_clock: Clock = time.thread_time,
    ) -> None:
        """`single_core_run` computes on one core; `single_core_runs` of the policy needs it."""
        self.name = name
        self.policy = policy
        self.on_batch: Callable[[BatchStats], None] = lambda stats: None
        self._run = run
        self._single_core_run = single_core_run or run
        self._max_rows = policy.max_batch_size if policy.batched else -1
        self._batch_rows = policy.max_batch_size if policy.batched else 1
        self._timeout = policy.timeout
        self._delay = policy.max_queue_delay
        self._worker = worker or Worker(f"batcher {name}", policy.threads, prefetches=policy.prefetches)
        self._clock = clock
        self._cpu_clock = cpu_clock
        self._queue = Queue()
        self._pace = Pace(self._batch_rows, policy.inline_seconds)
        self._in_flight = policy.in_flight
        self._concurrency = Concurrency(self._queue, policy)
        self._free_at = 0.0
        """When the batch that began last is expected to end; in the past while that is unknown."""
        self._fast = False
        """Whether the last run was fast, so that the next may be one for the event loop."""
        self._wake_up: asyncio.Handle | None = None
        """While the worker is idle and something waits: when the next batch is dispatched."""
        self._timer = DeadlineTimer()
        self._closing = False
        self._idle: asyncio.Event | None = None

    @property
    def queued_rows(self) -> int:
        """At most `queue_rows`, and what begins with the next iteration of the event loop."""
        return self._queue.rows

    @property
    def running_rows(self) -> int:
        return self._concurrency.rows

    def submit(
        self,
        inputs: Arrays,
        rows: int,
        lane: Lane = (),
        *,
        result: ResultSink,
        priority: int = 0,
        timeout: float | None = None,
        sole_connection: bool = False,
    ) -> Ticket:
        """Run the request now, or queue it. Its outcome goes to `result`.

        `sole_connection` says that no other request can arrive in this iteration of the event loop: then the outcome
        may be there already when this returns.

        Priority 1 goes first, 0 is `DEFAULT_PRIORITY`; within a priority the lanes take turns. A request that others
        pass until its deadline is answered by `DeadlineError` then. `timeout`, in seconds, can only shorten the
        policy's; None and 0 leave it. Raises `BusyError` when the queue is full, `DeadlineError` when the deadline
        cannot be met.
        """
        if self._closing:
            raise NotReadyError(f"model {self.name} is shutting down; send the request elsewhere")
        now = self._clock()
        allowed = timeout if timeout and timeout < self._timeout else self._timeout
        level = priority or DEFAULT_PRIORITY
        queue = self._queue
        if self._concurrency.batches >= self._in_flight or queue.rows + rows >= self._batch_rows:
            self._refuse(rows, level, allowed, now)
        ticket = Ticket(inputs, rows, lane, level, now, now + allowed, result)
        if sole_connection and self._may_run_at_once(lane, rows, now):
            self._run_at_once(ticket, now)
            return ticket
        if 0 < self._max_rows < rows:
            for part in ticket.cut_up(self._max_rows):
                queue.push(part)
        else:
            queue.push(ticket)
        if (self._wake_up is None or self._delay) and self._concurrency.may_grow:
            self._wake()
        if ticket.deadline < self._timer.due and ticket.queued:
            self._timer.set(ticket.deadline, allowed, self._expire)
        return ticket

    def withdraw(self, ticket: Ticket, error: ServiceError) -> bool:
        """Answer a request that still waits, or a part of it, with `error`; false if all of it runs or ran already."""
        waiting = [part for part in ticket.parts or (ticket,) if part.waiting]
        if not waiting:
            return False
        for part in waiting:
            self._queue.remove(part)
        if not ticket.result.done():
            ticket.result.set_exception(error)
        self._tell_idle()
        return True

    async def drain(self) -> None:
        """Refuse new requests, answer the accepted ones, then release the worker and the model. May be called again."""
        self._closing = True
        if self._idle is None:
            self._idle = asyncio.Event()
        if self._queue and self._concurrency.may_grow:
            self._wake()
        self._tell_idle()
        await self._idle.wait()
        self._timer.stop()
        if self._wake_up is not None:
            self._wake_up.cancel()
            self._wake_up = None
        self._worker.stop()
        self._run = self._single_core_run = _retired

    def _refuse(self, rows: int, level: int, allowed: float, now: float) -> None:
        """Raise if the queue has no room for the request, or if it clearly cannot begin in time."""
        if rows > self.policy.largest_request:
            raise BadRequestError(
                f"{rows} rows came, at most {self.policy.largest_request} are taken; send them in several requests"
            )
        waiting = self._queue.rows
        limit = self._concurrency.limit
        busy = self._concurrency.full
        about_to_begin = 0 if busy else self._batch_rows
        if waiting + (rows or 1) > self.policy.queue_rows + about_to_begin:
            seconds = max(self._free_at - now, 0.0) + waiting * self._pace.row / limit
            retry = min(max(ceil(seconds), 1), MAX_RETRY_SECONDS)
            raise BusyError(
                f"model {self.name}: {rows or 1} rows came, {waiting} are queued already and at most "
                f"{self.policy.queue_rows} may be; try again in {retry} s, or more slowly",
                retry,
            )
        seconds = max(self._free_at - now, 0.0) if busy else 0.0
        if waiting >= self._batch_rows:
            seconds += self._queue.weight_before(level) // self._batch_rows * self._pace.full / limit
        if seconds > allowed:
            raise DeadlineError(
                f"model {self.name}: cannot begin within {allowed:g} seconds, {seconds:.3g} seconds of work are ahead; "
                "allow more time, or try again later"
            )

    def _may_run_at_once(self, lane: Lane, rows: int, now: float) -> bool:
        """Whether the request of the sole connection may be computed within `submit`."""
        idle = not self._concurrency.batches and not self._queue and not self._delay
        return idle and rows <= self._batch_rows and self._pace.fits_inline(lane, rows, now, sole=True)

    def _wake(self) -> None:
        """The worker is idle and something waits: dispatch it now or soon."""
        if self._delay:
            self._dispatch_later()
        elif not self._fast:
            self._dispatch()
        elif self._wake_up is None:
            self._wake_up = asyncio.get_running_loop().call_soon(self._dispatch, True)

    def _dispatch_later(self) -> None:
        """Once a batch is full, or the oldest request has waited for `max_queue_delay`, or half of the time to the
        first deadline has passed."""
        if self._wake_up is not None:
            self._wake_up.cancel()
        now = self._clock()
        oldest, first_due = self._queue.oldest(), self._queue.next_deadline()
        left = min(oldest + self._delay - now, (first_due - now) / 2)
        if left <= 0 or self._closing or self._queue.has(self._batch_rows):
            left = 0.0
        if left or self._fast:
            self._wake_up = asyncio.get_running_loop().call_later(left, self._dispatch, True)
        else:
            self._dispatch()

    def _dispatch(self, inline: bool = False) -> None:
        """Begin the next batches. `inline` where all requests of this loop iteration have arrived, so that a batch may
        run here."""
        self._wake_up = None
        concurrency = self._concurrency
        while self._queue and concurrency.may_grow:
            now = self._clock()
            single_core, prefetch = concurrency.crowded, concurrency.full
            batch, late = self._queue.take(concurrency.share if single_core else self._max_rows, now)
            for ticket in late:
                self._answer_late(ticket)
            if batch and self._start(batch, now, inline, single_core, prefetch):
                return  # the event loop has other work
        self._tell_idle()

    def _start(self, tickets: list[Ticket], now: float, inline: bool, single_core: bool, prefetch: bool) -> bool:
        """Whether it ran here and is done."""
        rows, lane = [ticket.rows for ticket in tickets], tickets[0].lane
        total = sum(rows)
        if inline and not single_core and not prefetch and self._pace.fits_inline(lane, total, now):
            self._run_inline(tickets, rows, now)
            return True
        batch = self._begin(tickets, rows, self._single_core_run if single_core else self._run)
        begins = max(self._free_at if prefetch else now, now)
        self._free_at = begins + self._pace.seconds(lane, total, single_core=single_core)
        done = partial(self._finish, tickets, rows, now, single_core)
        self._worker.submit(batch.compute, done, prefetch=batch.prefetch if prefetch else None)
        return False

    def _run_at_once(self, ticket: Ticket, now: float) -> None:
        """In the event loop, without a batch: nothing is merged or split, and nothing asks meanwhile what runs."""
        cpu_began = self._cpu_clock()
        outcome = attempt(self._run, ticket.inputs)
        cpu_seconds = self._cpu_clock() - cpu_began
        ended = self._clock()
        self._pace.ran_inline(cpu_seconds, ended, sole=True)
        failed = self._answer(ticket, outcome)
        self._learn(ticket.lane, ticket.rows, ended - now, cpu_seconds)
        self.on_batch(BatchStats(ticket.rows, [0.0], 0.0, ended - now, 0.0, int(failed)))

    def _run_inline(self, tickets: list[Ticket], rows: list[int], now: float) -> None:
        """In the event loop."""
        computed = self._begin(tickets, rows, self._run).compute()
        self._pace.ran_inline(computed.cpu_seconds, self._clock())
        self._finish(tickets, rows, now, False, computed)

    def _begin(self, tickets: list[Ticket], rows: list[int], run: Run) -> RequestBatch:
        self._concurrency.begin(rows)
        return RequestBatch(run, [ticket.inputs for ticket in tickets], rows, self._clock, self._cpu_clock)

    def _finish(
        self,
        tickets: list[Ticket],
        rows: list[int],
        started: float,
        single_core: bool,
        computed: ComputedBatch | Exception,
    ) -> None:
        self._concurrency.end(rows)
        if isinstance(computed, Exception):
            computed = ComputedBatch([computed] * len(tickets), failed=True)
        lane, total, seconds = tickets[0].lane, sum(rows), self._clock() - started - computed.waited
        others = bool(self._queue)
        if others and not computed.failed:  # the worker first: it need not wait for the answers to be written
            self._learn(lane, total, seconds, computed.cpu_seconds, single_core=single_core)
            self._wake()
        failures = 0
        for ticket, outcome in zip(tickets, computed.outcomes, strict=True):
            failures += self._answer(ticket, outcome)
        if not others or computed.failed:
            self._learn(lane, total, seconds, computed.cpu_seconds, single_core=single_core)
            if self._queue:  # without the other parts of a request that failed
                self._wake()
        started += computed.waited
        queued = [started - ticket.arrived for ticket in tickets if not ticket.number]
        self.on_batch(BatchStats(total, queued, computed.merging, computed.inference, computed.splitting, failures))
        self._tell_idle()

    def _learn(self, lane: Lane, rows: int, seconds: float, cpu_seconds: float, *, single_core: bool = False) -> None:
        """From a batch that took `seconds`, of which its threads computed for `cpu_seconds`."""
        self._pace.add(lane, rows, seconds, cpu_seconds, single_core=single_core)
        self._fast = self._pace.fits_inline(lane, rows, self._clock())

    def _answer(self, ticket: Ticket, outcome: Outcome) -> bool:
        """True if the request failed just now."""
        if ticket.result.done():
            return False
        if ticket.whole is not None and not isinstance(outcome, Exception):
            answer = ticket.whole.join(ticket.number, outcome)
            if answer is None:
                return False
            outcome = answer
        if isinstance(outcome, Exception):
            ticket.result.set_exception(outcome)
            self._remove_parts(ticket)
            return True
        ticket.result.set_result(outcome)
        return False

    def _remove_parts(self, ticket: Ticket) -> None:
        """Of a request that failed: the rest is not needed."""
        if ticket.whole is not None:
            for part in ticket.whole.parts:
                if part.waiting:
                    self._queue.remove(part)

    def _answer_late(self, ticket: Ticket) -> None:
        if not ticket.result.done():
            allowed = ticket.deadline - ticket.arrived
            ticket.result.set_exception(DeadlineError(f"model {self.name}: not begun within {allowed:g} seconds"))

    def _expire(self) -> None:
        """Answer the requests whose deadline has passed, and set the timer to the next one of those that wait."""
        self._timer.stop()
        now = self._clock()
        for ticket in [ticket for ticket in self._queue if ticket.deadline <= now]:
            self._queue.remove(ticket)
            self._answer_late(ticket)
        if self._queue:
            following = self._queue.next_deadline()
            self._timer.set(following, following - now, self._expire)
        self._tell_idle()

    def _tell_idle(self) -> None:
        if self._idle is not None and not self._concurrency.batches and not self._queue:
            self._idle.set()


def _retired(inputs: Arrays) -> Arrays:
    raise NotReadyError("the model has been unloaded")
