"""The batcher alone, with a worker that computes when told: every interleaving is a choice, not an accident."""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.batcher import Batcher, BatchStats, Ticket, split
from service.errors import BusyError, ClientGoneError, DeadlineError, NotReadyError

MAX_ROWS, QUEUE_ROWS = 6, 16
POISON = -1.0


class StepWorker:
    """A worker that runs its one job when told."""

    def __init__(self) -> None:
        self.jobs: deque[tuple[Callable[[], Any], Callable[[Any], None]]] = deque()

    def submit(self, job: Callable[[], Any], done: Callable[[Any], None]) -> None:
        assert not self.jobs, "a model runs one batch at a time"
        self.jobs.append((job, done))

    def step(self) -> bool:
        if not self.jobs:
            return False
        job, done = self.jobs.popleft()
        done(job())
        return True

    def stop(self) -> None:
        assert not self.jobs


class Model:
    """Adds one to every row, refuses poisoned batches, and remembers how many rows it got."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        x = inputs["x"]
        self.batches.append(len(x))
        if (x == POISON).any():
            raise RuntimeError("poisoned")
        return {"y": x + 1}


def rows(value: float, count: int = 1, width: int = 1) -> dict[str, np.ndarray]:
    return {"x": np.full((count, width), value, np.float32)}


def batcher(model: Model, worker: Any = None, **options: Any) -> Batcher:
    chosen = {"max_batch_size": MAX_ROWS, "queue_rows": QUEUE_ROWS, "timeout": 60.0, "batched": True, **options}
    return Batcher(model.run, name="m/1", worker=worker or StepWorker(), **chosen)


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), st.integers(0, MAX_ROWS), st.integers(1, 2), st.booleans()),
        st.tuples(st.just("step")),
        st.tuples(st.just("withdraw"), st.integers(0, 30)),
        st.tuples(st.just("cancel"), st.integers(0, 30)),
        st.tuples(st.just("turn")),
    ),
    max_size=60,
)


class Play:
    """One sequence of actions, and what the batcher must have made of it."""

    def __init__(self, *, batched: bool) -> None:
        self.model, self.worker = Model(), StepWorker()
        self.queue = batcher(self.model, self.worker, batched=batched)
        self.tickets: list[tuple[Ticket, float]] = []
        self.withdrawn: set[Ticket] = set()

    async def act(self, number: int, action: Any) -> None:
        match action:
            case ("submit", count, width, poisoned):
                self.submit(POISON if poisoned and count else float(number), count, width)
            case ("step",):
                self.worker.step()
            case ("withdraw", which) if which < len(self.tickets):
                ticket = self.tickets[which][0]
                if self.queue.withdraw(ticket, ClientGoneError("gone")):
                    self.withdrawn.add(ticket)
            case ("cancel", which) if which < len(self.tickets):
                self.tickets[which][0].result.cancel()
            case ("turn",):
                await asyncio.sleep(0)
        assert 0 <= self.queue.queued_rows <= QUEUE_ROWS
        assert self.queue.queued_rows == sum(ticket.weight for ticket, _ in self.tickets if ticket.queued)

    def submit(self, value: float, count: int, width: int) -> None:
        before = self.queue.queued_rows
        try:
            ticket = self.queue.submit(rows(value, count, width), count, (width,))
        except BusyError:
            assert before + max(count, 1) > QUEUE_ROWS
        else:
            self.tickets.append((ticket, value))

    async def end(self) -> None:
        drained = asyncio.ensure_future(self.queue.drain())
        await asyncio.sleep(0)
        while self.worker.step():
            pass
        await drained
        assert self.queue.queued_rows == 0
        assert all(size <= MAX_ROWS for size in self.model.batches)
        for ticket, value in self.tickets:
            assert ticket.result.done()
            if not ticket.result.cancelled():
                self.check(ticket, value, ticket.result.exception())

    def check(self, ticket: Ticket, value: float, error: BaseException | None) -> None:
        if ticket in self.withdrawn:
            assert isinstance(error, ClientGoneError)
        elif value == POISON:
            assert str(error) == "poisoned"
        else:
            assert error is None
            np.testing.assert_array_equal(ticket.result.result()["y"], ticket.inputs["x"] + 1, strict=True)


@given(ACTIONS, st.booleans())
@settings(max_examples=300, deadline=None)
def test_nothing_is_lost_nothing_mixed_up(actions: list[Any], batched: bool) -> None:
    """Whatever the order of requests, batches and departures: everyone gets their own rows or their own error."""

    async def play() -> None:
        game = Play(batched=batched)
        for number, action in enumerate(actions):
            await game.act(number, action)
        await game.end()

    asyncio.run(play())


def test_a_lone_request_runs_at_once_and_the_rest_is_the_next_batch() -> None:
    async def play() -> None:
        model, worker = Model(), StepWorker()
        queue = batcher(model, worker)
        stats: list[BatchStats] = []
        queue.on_batch = stats.append
        tickets = [queue.submit(rows(i), 1) for i in range(9)]
        assert [ticket.queued for ticket in tickets] == [False] + [True] * 8
        while worker.step():
            pass
        assert model.batches == [1, 6, 2]
        assert [(s.rows, len(s.queued)) for s in stats] == [(1, 1), (6, 6), (2, 2)]
        assert [float((await ticket.result)["y"][0, 0]) for ticket in tickets] == [i + 1 for i in range(9)]

    asyncio.run(play())


def test_rows_are_counted_not_requests() -> None:
    async def play() -> None:
        model, worker = Model(), StepWorker()
        queue = batcher(model, worker, queue_rows=32)
        for count in (1, 4, 2, 3, 3, 6):
            queue.submit(rows(count, count), count)
        while worker.step():
            pass
        assert model.batches == [1, 6, 6, 6]

    asyncio.run(play())


def test_lanes_take_turns() -> None:
    """A stream of one shape does not keep another one waiting."""

    async def play() -> None:
        model, worker = Model(), StepWorker()
        queue = batcher(model, worker)
        queue.submit(rows(0), 1, (1,))
        wide = [queue.submit(rows(1, 6, 2), 6, (2,)) for _ in range(2)]
        narrow = queue.submit(rows(2), 1, (1,))
        worker.step()
        worker.step()
        worker.step()
        assert [wide[0].result.done(), narrow.result.done(), wide[1].result.done()] == [True, True, False]
        worker.step()
        assert wide[1].result.done()

    asyncio.run(play())


def test_only_the_guilty_one_fails() -> None:
    async def play() -> None:
        model, worker = Model(), StepWorker()
        queue = batcher(model, worker)
        queue.submit(rows(0), 1)
        good, bad, other = (queue.submit(rows(value), 1) for value in (5, POISON, 7))
        while worker.step():
            pass
        assert (await good.result)["y"] == 6
        assert (await other.result)["y"] == 8
        with pytest.raises(RuntimeError, match="poisoned"):
            await bad.result

    asyncio.run(play())


def test_a_full_queue_refuses_and_the_accepted_are_served() -> None:
    async def play() -> None:
        worker = StepWorker()
        queue = batcher(Model(), worker, queue_rows=2)
        accepted = [queue.submit(rows(i), 1) for i in range(3)]
        with pytest.raises(BusyError, match="1 rows came, 2 are queued already and at most 2 may be") as refused:
            queue.submit(rows(9), 1)
        assert (refused.value.status, refused.value.headers()) == (429, [(b"retry-after", b"1")])
        while worker.step():
            pass
        assert [float((await ticket.result)["y"][0, 0]) for ticket in accepted] == [1, 2, 3]

    asyncio.run(play())


def test_what_waits_too_long_is_told_and_not_computed() -> None:
    async def play() -> None:
        model, worker = Model(), StepWorker()
        queue = batcher(model, worker, timeout=0.02)
        running, late = queue.submit(rows(1), 1), queue.submit(rows(2), 1)
        with pytest.raises(DeadlineError, match=r"not begun within 0\.02 seconds"):
            await late.result
        while worker.step():
            pass
        assert (await running.result)["y"] == 2
        assert model.batches == [1]
        assert queue.queued_rows == 0

    asyncio.run(play())


def test_draining_answers_what_was_accepted_and_refuses_the_rest() -> None:
    """With the real worker, as the service stops."""

    async def play() -> None:
        model = Model()
        queue = Batcher(model.run, name="m/1", max_batch_size=2, queue_rows=64, timeout=60)
        tickets = [queue.submit(rows(i), 1) for i in range(8)]
        drained = asyncio.ensure_future(queue.drain())
        await asyncio.sleep(0)
        with pytest.raises(NotReadyError, match="shutting down"):
            queue.submit(rows(9), 1)
        await drained
        assert [float(ticket.result.result()["y"][0, 0]) for ticket in tickets] == [i + 1 for i in range(8)]
        assert sum(model.batches) == 8

    asyncio.run(play())


def test_an_output_without_the_rows_is_an_error_not_a_mixture() -> None:
    with pytest.raises(ValueError, match=r"output 'y' has shape \[3, 1\], but the batch has 4 rows"):
        split({"y": np.zeros((3, 1))}, [2, 2])
