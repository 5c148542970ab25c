"""A state machine over the batcher: whatever clients, time, worker and model do, in any order, its promises hold.

Nothing is lost and nothing answered twice, nobody gets another's rows, the order of a client's requests is kept except
where one was cut, and what was withdrawn or has expired is not computed.
"""

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from service.batching.batcher import MAX_RETRY_SECONDS, Batcher
from service.batching.merging import BatchStats
from service.batching.policy import BatchPolicy
from service.batching.ticket import Ticket
from service.errors import BadRequestError, BusyError, ClientGoneError, DeadlineError, NotReadyError
from support.service.batching import MAX_ROWS, QUEUE_ROWS, Clock, Loop, StepWorker, submit, turns

TIMEOUT = 20.0
QUICK, SLOW = 0.01, 1.0
"""Seconds of a run: one that may happen in the event loop, and one that may not."""

APART = 32
"""Between the first rows of two requests."""

Arrays = dict[str, np.ndarray]


def number_of(row: float) -> int:
    """Of the request that a row belongs to, which may not have been handed in yet."""
    return int(row) // APART


class Asked:
    """One accepted request, and what became of it."""

    def __init__(self, ticket: Ticket, stream: tuple[Any, ...], number: int, poisoned: bool) -> None:
        self.ticket, self.stream, self.number, self.poisoned = ticket, stream, number, poisoned
        self.withdrawn = self.cancelled = False


class CheckedWorker(StepWorker):
    """Shows each batch to `check` when it begins."""

    check: Callable[[list[Arrays]], None]
    stepping = False

    def submit(self, job: Any, done: Callable[[Any], None], *, prefetch: Callable[[], None] | None = None) -> None:
        self.check(job.__self__.requests)
        super().submit(job, done, prefetch=prefetch)

    def step(self) -> bool:
        self.stepping = True
        if not self.jobs:
            self.stepping = False
            return False
        job, done = self.jobs.popleft()
        computed = job()
        self.stepping = False
        done(computed)
        return True


class Machine(RuleBasedStateMachine):
    @initialize(
        batched=st.booleans(),
        inline=st.booleans(),
        delay=st.sampled_from([0.0, 0.0, 0.5]),
        in_flight=st.sampled_from([1, 1, 2, 3]),
        prefetch_rows=st.sampled_from([0, 0, 1, MAX_ROWS // 2]),
        single_core_runs=st.sampled_from([0, 0, 2, 3]),
    )
    def begin(
        self, batched: bool, inline: bool, delay: float, in_flight: int, prefetch_rows: int, single_core_runs: int
    ) -> None:
        single_core_runs = max(single_core_runs, in_flight) if batched and single_core_runs else 0
        self.clock = Clock()
        policy = BatchPolicy(
            max_batch_size=MAX_ROWS,
            queue_rows=QUEUE_ROWS,
            timeout=TIMEOUT,
            batched=batched,
            max_queue_delay=delay,
            inline_seconds=0.05 if inline else 0.0,
            in_flight=in_flight,
            prefetch_rows=prefetch_rows,
            single_core_runs=single_core_runs,
        )
        self.worker = CheckedWorker(policy.threads + policy.prefetches)
        self.in_flight = in_flight
        self.overtaken = False
        self.worker.check = self.check_begun
        self.loop = Loop(self.clock)
        self.batched = batched
        self.seconds = QUICK
        self.failing_runs = 0
        self.asked: list[Asked] = []
        self.rows: dict[float, Asked] = {}
        self.faults: list[str] = []
        self.poison: set[float] = set()
        self.ran_alone: set[int] = set()
        """Requests, by number, that shared no run with another when it failed: they are not tried again."""
        self.answered: list[Asked] = []
        self.stats: list[BatchStats] = []
        self.retries: list[int] = []
        self.drained: asyncio.Task[None] | None = None
        self.queue = Batcher(
            self.run_batch,
            policy,
            name="m/1",
            single_core_run=self.run_batch,
            worker=self.worker,
            clock=self.clock,
            cpu_clock=self.clock,
        )
        self.queue.on_batch = self.stats.append

    def run_batch(self, inputs: Arrays) -> Arrays:
        """The model: what comes out says which row went in."""
        x = inputs["x"]
        self.must(not self.batched or len(x) <= MAX_ROWS, "a batch is too large")
        if not self.worker.stepping:
            self.check_begun([inputs], merged=True)
        self.clock.now += self.seconds
        if self.failing_runs:
            self.failing_runs -= 1
            owners = {number_of(row) for row in x[:, 0].tolist()}
            if len(owners) <= 1:
                self.ran_alone |= owners
            raise RuntimeError("the run failed")
        if self.poison.intersection(x[:, 0].tolist()):
            raise RuntimeError("poisoned")
        return {"y": x * 2}

    def check_begun(self, requests: list[Arrays], merged: bool = False) -> None:
        """Nothing begins that nobody waits for; nothing is merged that has no batch axis."""
        self.must(self.batched or len(requests) == 1, "merged without a batch axis")
        for inputs in requests:
            for row in inputs["x"][:, 0].tolist():
                if row not in self.rows:  # begun by the very call that hands it in
                    continue
                ticket = self.rows[row].ticket
                self.must(not ticket.result.done(), "computed for nobody")
                self.must(merged or self.clock.now < ticket.deadline, "computed too late")

    def must(self, holds: bool, fault: str) -> None:
        """The batcher takes whatever a run raises for a failing run, so faults are kept until somebody looks."""
        if not holds:
            self.faults.append(fault)

    @invariant()
    def no_run_was_wrong(self) -> None:
        assert not self.faults

    @rule(
        client=st.integers(0, 2),
        rows=st.one_of(st.integers(0, MAX_ROWS), st.integers(0, QUEUE_ROWS + 1)),
        width=st.integers(1, 2),
        priority=st.integers(0, 9),
        timeout=st.sampled_from([None, None, None, 0.0, 0.005, 0.5, 5.0, 100.0]),
        poisoned=st.sampled_from([False, False, False, True]),
        sole_connection=st.sampled_from([False, False, True]),
    )
    def submit(
        self,
        client: int,
        rows: int,
        width: int,
        priority: int,
        timeout: float | None,
        poisoned: bool,
        sole_connection: bool,
    ) -> None:
        rows = rows if self.batched else 1
        number = len(self.asked)
        # a number for each row, exact in float32, and in the second column what no row of another request holds
        ids = [float(number * APART + row) for row in range(rows)]
        inputs = {"x": np.array([[row] * width for row in ids], np.float32).reshape(rows, width)}

        async def send() -> Ticket:
            return submit(
                self.queue, inputs, rows, (width,), priority=priority, timeout=timeout, sole_connection=sole_connection
            )

        before, free = self.queue.queued_rows, len(self.worker.jobs) < self.in_flight
        if poisoned and ids:  # before it is handed in, for it may be computed at once
            self.poison.add(ids[-1])
        accepted = False
        try:
            ticket = self.loop.run_until_complete(send())
        except BusyError as error:
            assert before + max(rows, 1) > QUEUE_ROWS + free * (MAX_ROWS if self.batched else 1)
            self.retries.append(error.retry_after)
        except BadRequestError:
            assert rows > QUEUE_ROWS
        except DeadlineError:
            assert before or not free, "an idle worker can always begin"
        except NotReadyError:
            assert self.drained is not None
        else:
            accepted = True
            assert self.drained is None
            expected = min(timeout or TIMEOUT, TIMEOUT)
            assert ticket.deadline == ticket.arrived + expected
            asked = Asked(ticket, (client, width, priority), number, poisoned and rows > 0)
            self.asked.append(asked)
            self.rows |= dict.fromkeys(ids, asked)
            ticket.result.add_done_callback(lambda _: self.answered.append(asked))
        if not accepted:  # the next one gets its number
            self.poison.difference_update(ids)

    @rule()
    def step(self) -> None:
        self.in_loop(self.worker.step)

    @precondition(lambda self: len(self.worker.jobs) > 1)
    @rule()
    def the_newest_batch_is_done_first(self) -> None:
        self.worker.jobs.rotate()
        self.overtaken = True
        self.step()

    @rule()
    def turn(self) -> None:
        self.loop.run_until_complete(turns())

    @rule(seconds=st.sampled_from([0.001, 0.1, 1.0, 10.0, 100_000.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule(seconds=st.sampled_from([QUICK, QUICK, SLOW]))
    def runs_take(self, seconds: float) -> None:
        self.seconds = seconds

    @rule()
    def the_next_run_fails(self) -> None:
        self.failing_runs = 1

    @precondition(lambda self: self.asked)
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        asked = data.draw(st.sampled_from(self.asked))

        def leave() -> bool:
            done, queued = asked.ticket.result.done(), asked.ticket.queued
            assert self.queue.withdraw(asked.ticket, ClientGoneError("gone")) == queued
            assert not asked.ticket.queued
            return queued and not done

        asked.withdrawn |= self.in_loop(leave)

    @precondition(lambda self: self.asked)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        asked = data.draw(st.sampled_from(self.asked))
        asked.cancelled |= asked.ticket.result.cancel()

    @precondition(lambda self: self.drained is None)
    @rule(rarely=st.integers(0, 5))
    def drain(self, rarely: int) -> None:
        if rarely == 0:
            self.drained = self.loop.create_task(self.queue.drain())

    @invariant()
    def rows_are_counted(self) -> None:
        waiting = [part for asked in self.asked for part in asked.ticket.parts or [asked.ticket] if part.waiting]
        assert self.queue.queued_rows == sum(part.rows or 1 for part in waiting)
        assert self.queue.queued_rows <= QUEUE_ROWS + MAX_ROWS

    @invariant()
    def answers_are_right_and_in_order(self) -> None:
        last: dict[Any, int] = {}
        for asked in self.answered:
            self.check_answer(asked)
            if not asked.ticket.result.cancelled() and not isinstance(asked.ticket.result.exception(), DeadlineError):
                if asked.withdrawn:
                    continue
                if asked.ticket.part_rows:  # it was cut, and others may pass
                    continue
                assert self.overtaken or last.get(asked.stream, -1) < asked.number, "the order within a client"
                last[asked.stream] = asked.number

    def check_answer(self, asked: Asked) -> None:
        """Its own rows or its own error."""
        result = asked.ticket.result
        assert result.cancelled() == asked.cancelled
        if asked.cancelled:
            return
        error = result.exception()
        assert isinstance(error, ClientGoneError) == asked.withdrawn
        if asked.withdrawn:
            return
        if isinstance(error, DeadlineError):
            assert self.clock.now >= asked.ticket.deadline
        elif error is not None:
            innocent = asked.ticket.rows > 0 and not asked.poisoned
            assert str(error) in ("poisoned", "the run failed")
            alone = innocent and number_of(asked.ticket.inputs["x"][0, 0]) in self.ran_alone
            assert not innocent or (alone and str(error) == "the run failed")
        else:
            assert not asked.poisoned
            np.testing.assert_array_equal(result.result()["y"], asked.ticket.inputs["x"] * 2, strict=True)

    def in_loop(self, call: Callable[[], Any]) -> Any:
        async def inside() -> Any:
            return call()

        return self.loop.run_until_complete(inside())

    def teardown(self) -> None:
        """What was accepted is answered, and then the worker is let go."""
        if hasattr(self, "loop"):
            try:
                self.end()
            finally:
                self.loop.close()

    def end(self) -> None:
        if self.drained is None:
            self.drained = self.loop.create_task(self.queue.drain())
        self.turn()
        while self.in_loop(self.worker.step):
            self.turn()
        self.turn()
        assert self.drained.done()
        assert self.worker.stopped
        assert (self.queue.queued_rows, self.queue.running_rows) == (0, 0)
        assert sorted(asked.number for asked in self.answered) == list(range(len(self.asked))), "each once"
        self.answers_are_right_and_in_order()
        self.no_run_was_wrong()
        assert all(1 <= seconds <= MAX_RETRY_SECONDS for seconds in self.retries)
        begun = sum(len(stats.queued) for stats in self.stats)
        assert begun <= len(self.asked)
        assert all(wait >= 0 for stats in self.stats for wait in stats.queued)


TestBatcher = Machine.TestCase
TestBatcher.settings = settings(max_examples=150, stateful_step_count=50, deadline=None, derandomize=True)
