"""Dynamic batching: an idle worker runs a request at once, and what arrives while it computes is the next batch.

Nothing waits for company unless `max_queue_delay` is set, so a lone request is never delayed. The state belongs to the
event loop and the worker only computes: no locks, no polling, and at most one timer for all deadlines.

Runs that are known to be short happen in the event loop itself, once per turn of it: all requests that came in with
this turn are one batch, and one that nobody can join runs at once. A hop to the thread and back takes 10 µs where
nobody else runs Python and far more where the loop is busy, for both want the interpreter. Every batch is judged by
what its like took before; whatever is unknown or long runs on the thread.

Where a GPU computes, two batches may be in flight: while one is computed the other one's rows are copied. Where the
CPU does, a lone request runs on all cores. Where there are as many requests as cores, a run gets one core and there are
as many runs: threads of one run wait for each other at every operator, and whenever something else, such as the event
loop, takes one of their cores. The next batch is merged ahead, and begins the moment one ends, though the event loop
then has answers to write.

Each model has a queue and threads of its own, and the system shares the cores among the threads. No gate stands before
them: it could only make a short run wait for a long one, where the system interrupts the long one.
"""

import asyncio
import time
from collections.abc import Callable
from functools import partial
from math import ceil, inf
from typing import overload

from fold.arrays import Arrays
from service.batching.concurrency import Concurrency
from service.batching.lane import Lane
from service.batching.merging import Batch, BatchStats, Clock, Computed, Outcome, Run, attempt
from service.batching.pace import Pace
from service.batching.queue import Queue
from service.batching.ticket import Awaited, Result, Ticket, cut_up, joined
from service.batching.worker import Worker, Works
from service.errors import BadRequestError, BusyError, DeadlineError, NotReadyError, ServiceError

DEFAULT_PRIORITY = 8
"""What priority 0 stands for: clients may go before those that say nothing, or let them pass."""
INLINE_SECONDS = 0.0002
"""What a row may take of the event loop; more is worth the way to the thread."""
MAX_RETRY_SECONDS = 60
"""Retry-After is never more: by then the rate is another."""


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
        max_queue_delay: float = 0.0,
        inline_seconds: float = INLINE_SECONDS,
        in_flight: int = 1,
        ahead_rows: int = 0,
        narrow_run: Run | None = None,
        narrow_runs: int = 0,
        worker: Works | None = None,
        clock: Clock = time.perf_counter,
        thread_clock: Clock = time.thread_time,
    ) -> None:
        """All times in seconds. `inline_seconds` is for one row, and 0 keeps all runs on the thread. Up to `in_flight`
        batches run at a time, each on a thread of its own. With `ahead_rows` one more is merged meanwhile, once it has
        so many rows. From `narrow_runs` requests on, if that is not 0, so many run at a time by `narrow_run`, on one
        core each, no fewer than `in_flight`; then how many rows are worth it depends on how many there are."""
        self.name = name
        self.on_batch: Callable[[BatchStats], None] = lambda stats: None
        self.largest_request = max(max_batch_size, queue_rows) if batched else 1
        """Rows of one request that can be taken when nothing else is queued."""
        self._run = run
        self._max_rows = max_batch_size if batched else -1
        self._batch_rows = max_batch_size if batched else 1
        self._queue_rows = queue_rows
        self._timeout = timeout
        self._delay = max_queue_delay
        self._worker: Works = worker or Worker(
            f"batcher {name}", max(in_flight, narrow_runs), ahead=bool(ahead_rows or narrow_runs)
        )
        self._clock = clock
        self._thread_clock = thread_clock
        self._queue = Queue()
        self._pace = Pace(self._batch_rows, inline_seconds)
        self._in_flight = in_flight
        self._running = Concurrency(self._queue, self._batch_rows, in_flight, ahead_rows, narrow_runs)
        self._narrow_run = narrow_run
        self._free_at = 0.0
        """When the batch that began last is expected to end; in the past while that is unknown."""
        self._short = False
        """Whether runs were short of late, so that the next may be one for the event loop."""
        self._wake_up: asyncio.Handle | None = None
        """Of an idle worker: when it looks into the queue."""
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = inf
        self._closing = False
        self._idle: asyncio.Event | None = None

    @property
    def queued_rows(self) -> int:
        """At most `queue_rows`, and what begins with the next turn of the event loop."""
        return self._queue.rows

    @property
    def running_rows(self) -> int:
        return self._running.rows

    @overload
    def submit(
        self,
        inputs: Arrays,
        rows: int,
        lane: Lane = (),
        *,
        priority: int = 0,
        timeout: float | None = None,
        alone: bool = False,
    ) -> Awaited: ...

    @overload
    def submit(
        self,
        inputs: Arrays,
        rows: int,
        lane: Lane = (),
        *,
        priority: int = 0,
        timeout: float | None,
        result: Result,
        alone: bool = False,
    ) -> Ticket: ...

    def submit(
        self,
        inputs: Arrays,
        rows: int,
        lane: Lane = (),
        *,
        priority: int = 0,
        timeout: float | None = None,
        result: Result | None = None,
        alone: bool = False,
    ) -> Ticket:
        """Run the request now, or queue it. Its outcome goes to `result`, else to a future of the ticket's own.

        `alone` says that nobody else can come with this turn of the event loop: then the outcome may be there already
        when this returns.

        Priority 1 goes first, 0 is `DEFAULT_PRIORITY`; within a priority the lanes take turns. Who is passed by others
        until the deadline is answered by `DeadlineError` then. `timeout`, in seconds, can only shorten the batcher's;
        None and 0 leave it. Raises `BusyError` when the queue is full, `DeadlineError` when the deadline cannot be met.
        """
        if self._closing:
            raise NotReadyError(f"model {self.name} is shutting down; send the request elsewhere")
        now = self._clock()
        allowed = timeout if timeout and timeout < self._timeout else self._timeout
        level = priority or DEFAULT_PRIORITY
        queue = self._queue
        if self._running.batches >= self._in_flight or queue.rows + rows >= self._batch_rows:
            self._refuse(rows, level, allowed, now)
        if result is None:
            result = asyncio.get_running_loop().create_future()
            ticket: Ticket = Awaited(inputs, rows, lane, level, now, now + allowed, result)
        else:
            ticket = Ticket(inputs, rows, lane, level, now, now + allowed, result)
        if alone and self._may_run_here(lane, rows, now):
            self._run_alone(ticket, now)
            return ticket
        if 0 < self._max_rows < rows:
            for part in cut_up(ticket, self._max_rows):
                queue.push(part)
        else:
            queue.push(ticket)
        if (self._wake_up is None or self._delay) and self._running.may_grow:
            self._wake()
        if ticket.deadline < self._timer_at and ticket.queued:
            self._set_timer(ticket.deadline, allowed)
        return ticket

    def withdraw(self, ticket: Ticket, error: ServiceError) -> bool:
        """Give a request that still waits, or a part of it, `error` instead; false if all of it runs or ran already."""
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
        """Refuse what is new, answer what was accepted, then let the worker and the model go. May be called again."""
        self._closing = True
        if self._idle is None:
            self._idle = asyncio.Event()
        if self._queue and self._running.may_grow:
            self._wake()
        self._tell_idle()
        await self._idle.wait()
        for handle in (self._timer, self._wake_up):
            if handle is not None:
                handle.cancel()
        self._timer = self._wake_up = None
        self._worker.stop()
        self._run = self._narrow_run = _gone

    def _refuse(self, rows: int, level: int, allowed: float, now: float) -> None:
        """Raises for what finds no room, and for what clearly cannot begin in time."""
        if rows > self.largest_request:
            raise BadRequestError(
                f"{rows} rows came, at most {self.largest_request} are taken; send them in several requests"
            )
        waiting = self._queue.rows
        most = self._running.most
        busy = self._running.full
        about_to_begin = 0 if busy else self._batch_rows
        if waiting + (rows or 1) > self._queue_rows + about_to_begin:
            seconds = max(self._free_at - now, 0.0) + waiting * self._pace.row / most
            retry = min(max(ceil(seconds), 1), MAX_RETRY_SECONDS)
            raise BusyError(
                f"model {self.name}: {rows or 1} rows came, {waiting} are queued already and at most "
                f"{self._queue_rows} may be; try again in {retry} s, or more slowly",
                retry,
            )
        seconds = max(self._free_at - now, 0.0) if busy else 0.0
        if waiting >= self._batch_rows:
            seconds += self._queue.ahead(level) // self._batch_rows * self._pace.full / most
        if seconds > allowed:
            raise DeadlineError(
                f"model {self.name}: cannot begin within {allowed:g} seconds, {seconds:.3g} seconds of work are ahead; "
                "allow more time, or try again later"
            )

    def _may_run_here(self, lane: Lane, rows: int, now: float) -> bool:
        """Whether a request that nobody can join may be computed while its client waits for nothing else."""
        idle = not self._running.batches and not self._queue and not self._delay
        return idle and rows <= self._batch_rows and self._pace.fits_inline(lane, rows, now, alone=True)

    def _wake(self) -> None:
        """The worker is idle and something waits: see to it that it runs."""
        if self._delay:
            self._wait_for_company()
        elif not self._short:
            self._go()
        elif self._wake_up is None:
            self._wake_up = asyncio.get_running_loop().call_soon(self._go, True)

    def _wait_for_company(self) -> None:
        """Until a batch is full, or who waits longest has waited for `max_queue_delay` or half of the time it has."""
        if self._wake_up is not None:
            self._wake_up.cancel()
        now = self._clock()
        longest, first_due = self._queue.oldest(), self._queue.next_deadline()
        left = min(longest + self._delay - now, (first_due - now) / 2)
        if left <= 0 or self._closing or self._queue.has(self._batch_rows):
            left = 0.0
        if left or self._short:
            self._wake_up = asyncio.get_running_loop().call_later(left, self._go, True)
        else:
            self._go()

    def _go(self, inline: bool = False) -> None:
        """Begin the next batch. `inline` where nobody who could join it waits for this call to return, so that it may
        run here."""
        self._wake_up = None
        while self._queue and self._running.may_grow:
            now = self._clock()
            narrow, ahead = self._running.crowded, self._running.full
            batch, late = self._queue.take(self._running.share if narrow else self._max_rows, now)
            for ticket in late:
                self._miss(ticket)
            if batch and self._start(batch, now, inline, narrow, ahead):
                return  # the event loop has others to attend to
        self._tell_idle()

    def _start(self, tickets: list[Ticket], now: float, inline: bool, narrow: bool, ahead: bool) -> bool:
        """Whether it ran here and is done."""
        rows, lane = [ticket.rows for ticket in tickets], tickets[0].lane
        total = sum(rows)
        if inline and not narrow and not ahead and self._pace.fits_inline(lane, total, now):
            self._run_here(tickets, rows, now)
            return True
        batch = self._begin(tickets, rows, self._narrow_run if narrow and self._narrow_run else self._run)
        begins = max(self._free_at if ahead else now, now)
        self._free_at = begins + self._pace.seconds(lane, total, narrow=narrow)
        done = partial(self._finish, tickets, rows, now, narrow)
        self._worker.submit(batch.compute, done, ahead=batch.merge_ahead if ahead else None)
        return False

    def _run_alone(self, ticket: Ticket, now: float) -> None:
        """In the event loop, without a batch: nothing is merged or split, and nobody looks meanwhile at what runs."""
        own = self._thread_clock()
        outcome = attempt(self._run, ticket.inputs)
        own = self._thread_clock() - own
        ended = self._clock()
        self._pace.ran_inline(own, ended, alone=True)
        failed = self._answer(ticket, outcome)
        self._learn(ticket.lane, ticket.rows, ended - now, own)
        self.on_batch(BatchStats(ticket.rows, [0.0], 0.0, ended - now, 0.0, int(failed)))

    def _run_here(self, tickets: list[Ticket], rows: list[int], now: float) -> None:
        """In the event loop."""
        computed = self._begin(tickets, rows, self._run).compute()
        self._pace.ran_inline(computed.own, self._clock())
        self._finish(tickets, rows, now, False, computed)

    def _begin(self, tickets: list[Ticket], rows: list[int], run: Run) -> Batch:
        self._running.begin(rows)
        return Batch(run, [ticket.inputs for ticket in tickets], rows, self._clock, self._thread_clock)

    def _finish(
        self, tickets: list[Ticket], rows: list[int], started: float, narrow: bool, computed: Computed | Exception
    ) -> None:
        self._running.end(rows)
        if isinstance(computed, Exception):
            computed = Computed([computed] * len(tickets), failed=True)
        lane, total, seconds = tickets[0].lane, sum(rows), self._clock() - started - computed.waited
        others = bool(self._queue)
        if others and not computed.failed:  # the worker first: it need not wait for the answers to be written
            self._learn(lane, total, seconds, computed.own, narrow=narrow)
            self._wake()
        failures = 0
        for ticket, outcome in zip(tickets, computed.outcomes, strict=True):
            failures += self._answer(ticket, outcome)
        if not others or computed.failed:
            self._learn(lane, total, seconds, computed.own, narrow=narrow)
            if self._queue:  # less what was left of a request that failed
                self._wake()
        started += computed.waited
        queued = [started - ticket.arrived for ticket in tickets if ticket.begins]
        self.on_batch(BatchStats(total, queued, computed.merging, computed.inference, computed.splitting, failures))
        self._tell_idle()

    def _learn(self, lane: Lane, rows: int, seconds: float, own: float, *, narrow: bool = False) -> None:
        """From a batch that took so many seconds, of which its thread worked for `own`."""
        self._pace.add(lane, rows, seconds, own, narrow=narrow)
        self._short = self._pace.fits_inline(lane, rows, self._clock())

    def _answer(self, ticket: Ticket, outcome: Outcome) -> bool:
        """True if the request failed just now."""
        if ticket.result.done():
            return False
        if ticket.whole is not None and not isinstance(outcome, Exception):
            ticket.outputs = outcome
            answer = joined(ticket.whole)
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
        """Of a request that failed: nobody needs the rest."""
        if ticket.whole is not None:
            for part in ticket.whole.parts:
                if part.waiting:
                    self._queue.remove(part)

    def _miss(self, ticket: Ticket) -> None:
        if not ticket.result.done():
            allowed = ticket.deadline - ticket.arrived
            ticket.result.set_exception(DeadlineError(f"model {self.name}: not begun within {allowed:g} seconds"))

    def _set_timer(self, deadline: float, delay: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = deadline
        self._timer = asyncio.get_running_loop().call_later(max(delay, 0.001), self._expire)

    def _expire(self) -> None:
        """Answer those whose time is up, and come back when the next one's is. Runs only while something waits."""
        self._timer = None
        self._timer_at = inf
        now = self._clock()
        for ticket in [ticket for ticket in self._queue if ticket.deadline <= now]:
            self._queue.remove(ticket)
            self._miss(ticket)
        following = self._queue.next_deadline()
        if following < inf:
            self._set_timer(following, following - now)
        self._tell_idle()

    def _tell_idle(self) -> None:
        if self._idle is not None and not self._running.batches and not self._queue:
            self._idle.set()


def _gone(inputs: Arrays) -> Arrays:
    raise NotReadyError("the model has been let go")
