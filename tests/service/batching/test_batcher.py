"""What the batcher promises, one promise a test; test_batcher_machine.py mixes them."""

import asyncio
import gc
import threading
import time
import weakref
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.batching.batcher import MAX_RETRY_SECONDS, Batcher
from service.batching.merging import BatchStats, RequestBatch, split
from service.batching.pace import OVERRUN_SECONDS, REST, SOLE_OVERRUN_SECONDS, SOLE_REST, TRUSTED
from service.batching.policy import BatchPolicy
from service.batching.ticket import Ticket
from service.batching.worker import Worker
from service.errors import BadRequestError, BusyError, ClientGoneError, DeadlineError, NotReadyError
from service.settings import Settings
from support.service.batching import MAX_ROWS, POISON, Clock, Model, Rig, filled, submit, turns
from support.service.serving import PATIENCE


def policy(max_batch_size: int, **options: Any) -> BatchPolicy:
    return BatchPolicy(max_batch_size=max_batch_size, queue_rows=64, timeout=60.0, **options)


def values(ticket: Ticket) -> list[float]:
    """The first column of an answer."""
    return [float(row[0]) for row in ticket.result.result()["y"]]


def test_a_lone_request_runs_at_once_and_the_rest_is_the_next_batch() -> None:
    rig = Rig()

    async def play() -> None:
        stats: list[BatchStats] = []
        rig.queue.on_batch = stats.append
        tickets = [rig.submit(filled(i), 1) for i in range(9)]
        assert [ticket.queued for ticket in tickets] == [False] + [True] * 8
        rig.worker.run_all()
        assert rig.model.batches == [1, 6, 2]
        assert [(s.rows, len(s.queued)) for s in stats] == [(1, 1), (6, 6), (2, 2)]
        assert [values(ticket) for ticket in tickets] == [[i + 1] for i in range(9)]

    rig.play(play())


def test_two_batches_may_be_in_flight() -> None:
    """While the first is computed the second's rows are copied; the rest waits for either to end."""
    rig = Rig(in_flight=2, queue_rows=32)

    async def play() -> None:
        tickets = [rig.submit(filled(i), 1) for i in range(5)]
        assert [ticket.queued for ticket in tickets] == [False, False, True, True, True]
        assert (rig.queue.running_rows, rig.queue.queued_rows) == (2, 3)
        rig.worker.jobs.rotate()  # the second is done first
        rig.worker.step()
        assert (rig.queue.running_rows, rig.queue.queued_rows) == (4, 0)
        rig.worker.run_all()
        assert rig.model.batches == [1, 1, 3]
        assert [values(ticket) for ticket in tickets] == [[i + 1] for i in range(5)]
        parts = rig.submit(filled(9, 4 * MAX_ROWS), 4 * MAX_ROWS)
        assert rig.queue.running_rows == 2 * MAX_ROWS
        rig.worker.run_all()
        assert values(parts) == [10] * 4 * MAX_ROWS

    rig.play(play())


def test_a_worker_has_as_many_threads_as_batches_may_be_in_flight() -> None:
    both = threading.Barrier(2, timeout=PATIENCE)

    async def play() -> None:
        worker, ended = Worker("m", 2), [asyncio.get_running_loop().create_future() for _ in range(2)]
        for result in ended:
            worker.submit(both.wait, result.set_result)
        assert sorted(await asyncio.wait_for(asyncio.gather(*ended), 30)) == [0, 1]
        worker.stop()
        for thread in worker._threads:
            thread.join(30)
            assert not thread.is_alive()

    asyncio.run(play())


def test_rows_are_counted_not_requests() -> None:
    rig = Rig(queue_rows=32)

    async def play() -> None:
        for count in (1, 4, 2, 3, 3, 6):
            rig.submit(filled(count, count), count)
        rig.worker.run_all()
        assert rig.model.batches == [1, 6, 6, 6]

    rig.play(play())


def test_the_event_loop_computes_for_a_cpu_and_never_waits_for_a_gpu() -> None:
    """And the next batch is prefetched where the CPU computes; a GPU has two batches in flight for that."""
    settings = Settings(repository=Path("r"), max_batch_size=MAX_ROWS, queue_rows=32)
    cpu = BatchPolicy.for_cpu(settings, batched=True, in_flight=1, single_core_runs=0)
    gpu = BatchPolicy.for_gpu(settings, batched=True, in_flight=2)
    for policy, inline in ((cpu, True), (gpu, False)):
        fast, slow = Rig(seconds=0.0001, **asdict(policy)), Rig(seconds=1.0, **asdict(policy))

        async def play_fast(rig: Rig = fast, inline: bool = inline) -> None:
            await rig.learn()
            ticket = rig.submit(filled(1), 1)
            await turns()
            assert ticket.result.done() is inline
            rig.worker.run_all()

        async def play_slow(rig: Rig = slow) -> None:
            tickets = [rig.submit(filled(1, MAX_ROWS), MAX_ROWS) for _ in range(4)]
            assert sum(not ticket.queued for ticket in tickets) == 2, "one runs, and one is prefetched or in flight"
            rig.worker.run_all()

        fast.play(play_fast())
        slow.play(play_slow())


def test_without_a_batch_axis_nothing_is_merged_and_nothing_is_cut() -> None:
    rig = Rig(batched=False)

    async def play() -> None:
        tickets = [rig.submit(filled(i, 9), 1) for i in range(3)]
        rig.worker.run_all()
        assert rig.model.batches == [9, 9, 9]
        assert [values(ticket) for ticket in tickets] == [[i + 1] * 9 for i in range(3)]

    rig.play(play())


def test_on_a_cpu_the_next_batch_is_prefetched_once_it_is_worth_it() -> None:
    rig = Rig(prefetch_rows=3, queue_rows=32)

    async def play() -> None:
        tickets = [rig.submit(filled(i), 1) for i in range(3)]
        assert [ticket.queued for ticket in tickets] == [False, True, True], "two rows are not worth it"
        tickets += [rig.submit(filled(i), 1) for i in range(3, 8)]
        assert (rig.queue.running_rows, rig.queue.queued_rows) == (4, 4), "one batch is prefetched, not two"
        rig.worker.step()
        assert (rig.queue.running_rows, rig.queue.queued_rows) == (7, 0)
        rig.worker.run_all()
        assert rig.model.batches == [1, 3, 4]
        assert [values(ticket) for ticket in tickets] == [[i + 1] for i in range(8)]

    rig.play(play())


def test_where_there_are_requests_for_every_core_each_run_has_one() -> None:
    """A lone request has all of them; a crowd is shared evenly among runs on one core, and one that is prefetched."""
    rig = Rig(single_core_runs=2, queue_rows=64)

    async def play() -> None:
        for _ in range(2):
            rig.submit(filled(0), 1)
            rig.worker.run_all()
        assert (rig.model.batches, rig.model.single_core) == ([1, 1], [])
        tickets = [rig.submit(filled(i), 1) for i in range(12)]
        assert len(rig.worker.jobs) == 3, "the first on all cores, the second beside it, and one prefetched"
        rig.worker.run_all()
        assert rig.model.batches[2] == 1
        assert rig.model.batches[3:] == rig.model.single_core == [1, 1, 4, 4, 1]
        assert [values(ticket) for ticket in tickets] == [[i + 1] for i in range(12)]
        rig.submit(filled(0), 1)
        rig.worker.run_all()
        assert len(rig.model.single_core) == 5, "one request has all cores again"

    rig.play(play())


def test_a_single_large_request_has_all_cores() -> None:
    rig = Rig(single_core_runs=2, queue_rows=64)

    async def play() -> None:
        rig.submit(filled(0, MAX_ROWS), MAX_ROWS)
        rig.worker.run_all()
        assert (rig.model.batches, rig.model.single_core) == ([MAX_ROWS], [])
        cut = rig.submit(filled(7, 3 * MAX_ROWS), 3 * MAX_ROWS)
        rig.worker.run_all()
        assert sum(rig.model.single_core) == 3 * MAX_ROWS, "its parts are requests like others"
        assert values(cut) == [8] * 3 * MAX_ROWS

    rig.play(play())


def test_fewer_requests_than_cores_wait_until_a_run_may_have_all() -> None:
    rig = Rig(single_core_runs=4, queue_rows=64)

    async def play() -> None:
        tickets = [rig.submit(filled(i), 1) for i in range(3)]
        assert len(rig.worker.jobs) == 1
        rig.worker.run_all()
        assert (rig.model.batches, rig.model.single_core) == ([1, 2], [])
        assert [values(ticket) for ticket in tickets] == [[1], [2], [3]]

    rig.play(play())


def test_what_is_prefetched_runs_when_the_batch_before_has_ended() -> None:
    """With real threads: runs never overlap, and who was asked first is answered first."""
    under_way, answered = threading.Lock(), list[int]()

    def run(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        assert under_way.acquire(blocking=False), "two runs at a time"
        time.sleep(0.01)
        under_way.release()
        return {"y": inputs["x"] + 1}

    async def play() -> None:
        queue = Batcher(run, policy(4, inline_seconds=0.0, prefetch_rows=2), name="m/1")
        tickets = [submit(queue, filled(i, 2), 2) for i in range(20)]
        for i, ticket in enumerate(tickets):
            ticket.result.add_done_callback(lambda _, i=i: answered.append(i))  # type: ignore[misc]
        await queue.drain()
        await turns()
        assert [values(ticket) for ticket in tickets] == [[i + 1] * 2 for i in range(20)]
        assert answered == list(range(20))

    asyncio.run(play())


def test_the_next_job_begins_before_the_event_loop_hears_of_the_last() -> None:
    """What is prefetched waits only for the thread."""

    async def play() -> None:
        worker, said, both = Worker("m", prefetches=True), list[str](), threading.Event()
        ended = asyncio.Event()

        def first() -> None:
            assert both.wait(30), "made ready while this computes"
            said.append("first")

        def second() -> None:
            said.append("second")

        worker.submit(first, lambda _: said.append("told"))
        worker.submit(second, lambda _: ended.set(), prefetch=both.set)
        while len(said) < 2:  # the loop is busy
            time.sleep(0.001)
        assert said == ["first", "second"]
        await asyncio.wait_for(ended.wait(), 30)
        assert said == ["first", "second", "told"]
        worker.submit(first, lambda _: None, prefetch=both.set)
        worker.stop()
        for thread in worker._threads:
            thread.join(30)
            assert not thread.is_alive()
        assert said[3:] == ["first"], "what was submitted before the stop is done"

    asyncio.run(play())


def test_waiting_between_merging_and_the_run_is_the_queues_time_and_not_the_runs() -> None:
    clock = Clock()
    batch = RequestBatch(Model(clock, 0.25).run, [filled(1), filled(2)], [1, 1], clock, clock)
    batch.prefetch()
    clock.now += 5
    computed = batch.compute()
    assert (computed.waited, computed.inference) == (5, 0.25)
    assert [outcome["y"][0, 0] for outcome in computed.outcomes if isinstance(outcome, dict)] == [2, 3]


def test_a_batch_that_cannot_be_prefetched_is_computed_one_by_one() -> None:
    clock, model = Clock(), Model()
    batch = RequestBatch(model.run, [filled(1, width=1), filled(2, width=2)], [1, 1], clock, clock)
    batch.prefetch()
    assert [outcome["y"][0, 0] for outcome in batch.compute().outcomes if isinstance(outcome, dict)] == [2, 3]
    assert model.batches == [1, 1]


def test_lanes_take_turns() -> None:
    """A stream of one shape does not keep another one waiting."""
    rig = Rig()

    async def play() -> None:
        rig.submit(filled(0), 1, (1,))
        wide = [rig.submit(filled(1, 6, 2), 6, (2,)) for _ in range(2)]
        narrow = rig.submit(filled(2), 1, (1,))
        for _ in range(3):
            rig.worker.step()
        assert [wide[0].result.done(), narrow.result.done(), wide[1].result.done()] == [True, True, False]
        rig.worker.step()
        assert wide[1].result.done()

    rig.play(play())


def test_priorities_go_first_and_what_is_left_of_a_batch_goes_to_the_lower_ones() -> None:
    rig = Rig()
    answered: list[str] = []

    def ask(name: str, rows: int, **options: int) -> None:
        ticket = rig.submit(filled(0, rows), rows, **options)
        ticket.result.add_done_callback(lambda _: answered.append(name))

    async def play() -> None:
        ask("running", 1)
        ask("low", 4, priority=9)
        ask("default", 3)
        ask("default too", 3, priority=0)
        ask("high", 2, priority=1)
        rig.worker.step()
        rig.worker.step()
        await turns()
        assert answered == ["running", "high", "default"]
        rig.worker.step()
        await turns()
        assert answered[3:] == ["default too"], "four rows more do not fit"
        rig.worker.run_all()
        await turns()
        assert answered[4:] == ["low"]
        assert rig.model.batches == [1, 5, 3, 4]

    rig.play(play())


def test_who_is_passed_by_others_is_told_at_the_deadline() -> None:
    rig = Rig(timeout=5.0)

    async def play() -> None:
        rig.submit(filled(0), 1)
        low = rig.submit(filled(1), 1, (9,), priority=9)
        for _ in range(6):
            rig.submit(filled(2), 1, priority=1)
            rig.clock.now += 1
            rig.worker.step()
            await turns()
        assert isinstance(low.result.exception(), DeadlineError)

    rig.play(play())


def test_only_the_request_at_fault_fails() -> None:
    rig = Rig()

    async def play() -> None:
        stats: list[BatchStats] = []
        rig.queue.on_batch = stats.append
        rig.submit(filled(0), 1)
        good, bad, other = (rig.submit(filled(value), 1) for value in (5, POISON, 7))
        rig.worker.run_all()
        assert (values(good), values(other)) == ([6], [8])
        with pytest.raises(RuntimeError, match="poisoned"):
            await bad.result
        assert rig.model.batches == [1, 3, 1, 1, 1], "once together, once each"
        assert [s.failures for s in stats] == [0, 1]

    rig.play(play())


def test_a_large_request_is_cut_and_joined_and_others_fill_its_last_batch() -> None:
    rig = Rig(queue_rows=32)

    async def play() -> None:
        stats: list[BatchStats] = []
        rig.queue.on_batch = stats.append
        x = {"x": np.arange(28, dtype=np.float32).reshape(14, 2)}
        large, small = rig.submit(x, 14), rig.submit(filled(50, 3, 2), 3)
        assert rig.queue.queued_rows == 8 + 3
        rig.worker.run_all()
        assert rig.model.batches == [6, 6, 5]
        np.testing.assert_array_equal(large.result.result()["y"], x["x"] + 1, strict=True)
        assert values(small) == [51] * 3
        assert [len(s.queued) for s in stats] == [1, 0, 1], "a request begins once"

    rig.play(play())


def test_small_requests_pass_the_parts_of_large_ones_which_pass_what_comes_later() -> None:
    rig = Rig(queue_rows=48)

    async def play() -> None:
        large = [rig.submit(filled(0, 24), 24), rig.submit(filled(0, 12), 12)]  # four parts and two
        small = rig.submit(filled(5, 5), 5)
        rig.worker.step()
        later = rig.submit(filled(5, 4), 4)
        rig.worker.run_all()
        assert rig.model.batches == [6, 6, 6, 5, 6, 6, 4, 6], "one part of each large request before a small one"
        assert [len(values(ticket)) for ticket in [*large, small, later]] == [24, 12, 5, 4]

    rig.play(play())


def test_a_part_that_fails_fails_the_whole_once_and_the_rest_is_not_computed() -> None:
    rig = Rig(queue_rows=32)

    async def play() -> None:
        stats: list[BatchStats] = []
        rig.queue.on_batch = stats.append
        x = filled(1, 20)
        x["x"][8] = POISON
        large = rig.submit(x, 20)
        rig.worker.run_all()
        with pytest.raises(RuntimeError, match="poisoned"):
            await large.result
        assert rig.model.batches == [6, 6]
        assert sum(s.failures for s in stats) == 1
        assert rig.queue.queued_rows == 0

    rig.play(play())


@pytest.mark.parametrize("end", ["answered", "failed", "late", "withdrawn", "cancelled"])
def test_a_large_request_is_freed_with_its_answer(end: str) -> None:
    """And not when Python's collector of cycles comes: it may hold gigabytes until then."""
    rig = Rig()

    async def play() -> None:
        running = rig.submit(filled(0), 1)
        inputs = filled(POISON if end == "failed" else 1, 14)
        memory, large = weakref.ref(inputs["x"]), rig.submit(inputs, 14)
        del inputs
        if end == "late":
            rig.clock.now += 61
            await turns()
        elif end == "withdrawn":
            rig.queue.withdraw(large, ClientGoneError("gone"))
        elif end == "cancelled":
            large.result.cancel()  # type: ignore[attr-defined]  # it is a future
        rig.worker.run_all()
        assert large.result.done()
        assert values(running) == [1]
        if end in ("failed", "late", "withdrawn"):
            large.result.exception()  # type: ignore[attr-defined]
        del large
        await turns()
        assert memory() is None

    gc.collect()
    gc.disable()
    try:
        rig.play(play())
    finally:
        gc.enable()


def test_parts_without_their_rows_are_an_error_not_a_mixture() -> None:
    rig = Rig()
    rig.model.run = lambda inputs: {"y": inputs["x"][:1]}  # type: ignore[method-assign]
    rig.queue._run = rig.model.run

    async def play() -> None:
        large = rig.submit(filled(1, 8), 8)
        rig.worker.run_all()
        with pytest.raises(ValueError, match=r"output 'y' has shape \[1, 1\], but the batch has 6 rows"):
            await large.result

    rig.play(play())


def test_withdrawing_takes_the_parts_along_that_wait() -> None:
    rig = Rig()

    async def play() -> None:
        large, after = rig.submit(filled(1, 16), 16), rig.submit(filled(2), 1)
        assert large.queued
        assert rig.queue.withdraw(large, ClientGoneError("gone"))
        assert not rig.queue.withdraw(large, ClientGoneError("gone"))
        rig.worker.run_all()
        assert rig.model.batches == [6, 1], "the part that ran already, and the next request"
        assert values(after) == [3]
        with pytest.raises(ClientGoneError):
            await large.result

    rig.play(play())


def test_a_request_that_no_queue_can_hold_is_refused_for_good() -> None:
    rig = Rig(queue_rows=16)

    async def play() -> None:
        with pytest.raises(BadRequestError, match="17 rows came, at most 16 are taken"):
            rig.submit(filled(1, 17), 17)

    rig.play(play())


def test_a_full_queue_refuses_and_the_accepted_are_served() -> None:
    rig = Rig(queue_rows=2)

    async def play() -> None:
        accepted = [rig.submit(filled(i), 1) for i in range(3)]
        with pytest.raises(BusyError, match="1 rows came, 2 are queued already and at most 2 may be") as refused:
            rig.submit(filled(9), 1)
        assert (refused.value.status, refused.value.headers()) == (429, [(b"retry-after", b"1")])
        rig.worker.run_all()
        assert [values(ticket) for ticket in accepted] == [[1], [2], [3]]

    rig.play(play())


@pytest.mark.parametrize(("seconds", "expected"), [(0.01, 1), (3.0, 9), (1000.0, MAX_RETRY_SECONDS)])
def test_retry_after_is_what_the_queue_takes_at_the_measured_rate(seconds: float, expected: int) -> None:
    """Runs of full batches take so long; one runs and two wait."""
    rig = Rig(seconds, queue_rows=12, timeout=1e6)

    async def play() -> None:
        await rig.learn(rows=MAX_ROWS)
        for _ in range(3):
            rig.submit(filled(1, MAX_ROWS), MAX_ROWS)
        with pytest.raises(BusyError) as refused:
            rig.submit(filled(1), 1)
        assert refused.value.retry_after == expected
        rig.worker.run_all()

    rig.play(play())


def test_what_waits_too_long_is_told_and_not_computed() -> None:
    rig = Rig(timeout=30.0)

    async def play() -> None:
        running, late = rig.submit(filled(1), 1), rig.submit(filled(2), 1)
        sooner = rig.submit(filled(3), 1, timeout=2.0)
        longer = rig.submit(filled(4), 1, timeout=1000.0)
        rig.clock.now += 3
        await turns()
        with pytest.raises(DeadlineError, match=r"not begun within 2 seconds"):
            await sooner.result
        assert not late.result.done()
        rig.clock.now += 28
        await turns()
        for ticket in (late, longer):
            with pytest.raises(DeadlineError, match=r"not begun within 30 seconds"):
                await ticket.result
        rig.worker.run_all()
        assert values(running) == [2]
        assert rig.model.batches == [1]
        assert rig.queue.queued_rows == 0

    rig.play(play())


def test_what_has_expired_when_its_turn_comes_is_not_computed() -> None:
    """Also where the event loop had no time for timers yet."""
    rig = Rig()

    async def play() -> None:
        rig.submit(filled(1), 1)
        late, good = rig.submit(filled(2), 1, timeout=2.0), rig.submit(filled(3), 1)
        rig.clock.now += 3
        rig.worker.run_all()
        assert isinstance(late.result.exception(), DeadlineError)
        assert values(good) == [4]
        assert rig.model.batches == [1, 1]

    rig.play(play())


def test_what_cannot_begin_in_time_is_refused_at_once_but_only_when_that_is_known() -> None:
    rig = Rig(seconds=10.0)

    async def play() -> None:
        rig.submit(filled(0, MAX_ROWS), MAX_ROWS)
        assert rig.submit(filled(0), 1, timeout=2.0).queued, "nobody knows yet how long a run takes"
        rig.worker.run_all()
        await rig.learn(rows=MAX_ROWS)
        rig.submit(filled(0, MAX_ROWS), MAX_ROWS)
        with pytest.raises(DeadlineError, match="cannot begin within 2 seconds, 10 seconds of work are ahead"):
            rig.submit(filled(1), 1, timeout=2.0)
        rig.clock.now += 9
        assert rig.submit(filled(1), 1, timeout=2.0).queued, "it begins in a second"
        rig.submit(filled(1, MAX_ROWS), MAX_ROWS)
        with pytest.raises(DeadlineError, match="11 seconds of work are ahead"):
            rig.submit(filled(1), 1, timeout=10.0)
        assert rig.submit(filled(1), 1, timeout=10.0, priority=1).queued, "it need not wait for the others"
        rig.worker.run_all()

    rig.play(play())


def test_an_idle_worker_waits_for_more_requests_only_with_a_queue_delay() -> None:
    rig = Rig(max_queue_delay=0.5)

    async def play() -> None:
        rig.submit(filled(1), 1)
        rig.clock.now += 0.3
        rig.submit(filled(1), 1)
        await turns()
        assert not rig.worker.jobs
        rig.clock.now += 0.21
        await turns()
        rig.worker.run_all()
        assert rig.model.batches == [2], "the delay counts from the first"
        for _ in range(MAX_ROWS):
            rig.submit(filled(1), 1)
        rig.worker.run_all()
        assert rig.model.batches == [2, MAX_ROWS], "a full batch waits no longer"
        hurried = rig.submit(filled(1), 1, timeout=0.4)
        rig.clock.now += 0.21
        await turns()
        rig.worker.run_all()
        assert values(hurried) == [2], "nor does one whose deadline comes before the delay is over"

    rig.play(play())


def test_fast_runs_happen_in_the_event_loop_and_all_that_came_meanwhile_is_one_batch() -> None:
    rig = Rig(seconds=0.0001, inline_seconds=0.001)

    async def play() -> None:
        for rows in (1, 3, 6):
            await rig.learn(rows)
        tickets = [rig.submit(filled(i), 1) for i in range(9)]
        assert not rig.worker.jobs
        assert [ticket.queued for ticket in tickets] == [True] * 9
        await turns()
        assert rig.model.batches == [6, 3]
        assert [values(ticket) for ticket in tickets] == [[i + 1] for i in range(9)]
        lone = rig.submit(filled(5), 1)
        await asyncio.sleep(0)
        assert values(lone) == [6], "a lone one in the next turn of the loop"

    rig.play(play())


def test_batches_that_are_long_or_unknown_do_not_run_in_the_event_loop() -> None:
    rig = Rig(seconds=0.0001, inline_seconds=0.001)

    async def play() -> None:
        await rig.learn(1, TRUSTED - 1)
        rig.submit(filled(0), 1)
        assert rig.worker.jobs, "seen too seldom"
        rig.worker.run_all()
        rig.submit(filled(0, 6), 6)
        await turns()
        assert rig.worker.jobs, "one row is fast, but no run of this size was seen"
        rig.worker.run_all()
        rig.submit(filled(0, 1, 2), 1, (2,))
        await turns()
        assert rig.worker.jobs, "nor of this shape"
        rig.worker.run_all()

    rig.play(play())


def test_one_that_nobody_can_join_runs_before_submit_returns() -> None:
    """Also where the run is too long to keep others waiting, but no longer than some milliseconds."""
    rig = Rig(seconds=0.003, inline_seconds=0.001)

    async def play() -> None:
        assert not rig.submit(filled(1), 1, sole_connection=True).result.done(), "nobody knows yet how long it takes"
        rig.worker.run_all()
        await rig.learn()
        assert values(rig.submit(filled(1), 1, sole_connection=True)) == [2]
        rig.submit(filled(1), 1)
        assert rig.worker.jobs, "beside others it is too long"
        rig.worker.run_all()
        rig.model.seconds = OVERRUN_SECONDS
        assert values(rig.submit(filled(1), 1, sole_connection=True)) == [2], "the system interrupts a run now and then"
        rig.model.seconds = long = 2 * SOLE_OVERRUN_SECONDS
        assert values(rig.submit(filled(1), 1, sole_connection=True)) == [2], "nobody could know"
        rig.model.seconds = 0.003
        rig.submit(filled(1), 1, sole_connection=True)
        assert rig.worker.jobs, "it could happen again"
        rig.worker.run_all()
        rig.clock.now += SOLE_REST * long
        assert values(rig.submit(filled(1), 1, sole_connection=True)) == [2]

    rig.play(play())


def test_with_no_time_in_the_event_loop_nothing_runs_there() -> None:
    rig = Rig(seconds=0.0001, inline_seconds=0.0)

    async def play() -> None:
        await rig.learn()
        rig.submit(filled(1), 1, sole_connection=True)
        assert rig.worker.jobs
        rig.worker.run_all()

    rig.play(play())


def test_a_fast_run_does_not_overtake_the_answers_of_a_slow_one() -> None:
    rig = Rig(seconds=0.0001, inline_seconds=0.001)
    answered: list[str] = []

    async def play() -> None:
        await rig.learn()
        rig.model.seconds = 1.0
        for name, rows in (("slow", MAX_ROWS), ("fast", 1)):
            ticket = rig.submit(filled(0, rows), rows)
            ticket.result.add_done_callback(lambda _, name=name: answered.append(name))  # type: ignore[misc]
            await turns()
        rig.model.seconds = 0.0001
        rig.worker.step()
        rig.worker.run_all()
        await turns()
        assert answered == ["slow", "fast"]

    rig.play(play())


def test_a_batch_may_take_the_event_loop_longer_than_a_row_but_not_for_ever() -> None:
    rig = Rig(seconds=0.003, inline_seconds=0.001)

    async def play() -> None:
        for rows, inline in ((1, False), (6, True)):
            await rig.learn(rows, 5)
            rig.submit(filled(0, rows), rows)
            assert bool(rig.worker.jobs) is not inline
            rig.worker.run_all()
            await turns()
        rig.model.seconds = 0.0045
        for _ in range(100):
            rig.submit(filled(0, 4), 4)
            await turns()
            rig.worker.run_all()
        rig.submit(filled(0, 4), 4)
        await turns()
        assert rig.worker.jobs, "grown slower than a row may be"
        rig.worker.run_all()

    rig.play(play())


def test_a_run_that_turns_out_slow_keeps_runs_out_of_the_event_loop_for_long() -> None:
    rig = Rig(seconds=0.0001, inline_seconds=0.001)

    async def play() -> None:
        await rig.learn()
        rig.model.seconds = long = 10 * OVERRUN_SECONDS
        rig.submit(filled(0), 1)
        await turns()
        rig.model.seconds = 0.0001
        for _ in range(100):
            rig.submit(filled(0), 1)
            await turns()
            assert rig.worker.jobs
            rig.worker.run_all()
        rig.clock.now += REST * long
        rig.submit(filled(0), 1)
        rig.worker.run_all()
        rig.submit(filled(0), 1)
        assert not rig.worker.jobs, "fast again, and the rest is over"
        await turns()

    rig.play(play())


def test_the_statistics_of_a_batch() -> None:
    rig = Rig(seconds=2.0)

    async def play() -> None:
        stats: list[BatchStats] = []
        rig.queue.on_batch = stats.append
        for _ in range(3):
            rig.submit(filled(0, 2), 2)
        rig.clock.now += 1
        rig.worker.run_all()
        assert [s.compute for s in stats] == [2.0, 2.0]
        assert stats == [
            BatchStats(2, [0.0], merging=0.0, inference=2.0, splitting=0.0, failures=0),
            BatchStats(4, [3.0, 3.0], merging=0.0, inference=2.0, splitting=0.0, failures=0),
        ]

    rig.play(play())


def test_a_flooded_model_keeps_no_other_model_waiting() -> None:
    """One hangs in a run with a queue behind it, each on its own thread; the other answers meanwhile."""
    hold = threading.Event()

    def hang(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        hold.wait(60)
        return {"y": inputs["x"]}

    async def play() -> None:
        flooded = Batcher(hang, policy(4), name="flooded/1")
        other = Batcher(Model().run, policy(4), name="other/1")
        crowd = [submit(flooded, filled(0, 4), 4) for _ in range(16)]
        try:
            assert (await asyncio.wait_for(submit(other, filled(1), 1).result, 30))["y"] == 2
            assert not any(ticket.result.done() for ticket in crowd)
        finally:
            hold.set()
        await asyncio.gather(*(ticket.result for ticket in crowd))
        await flooded.drain()
        await other.drain()

    asyncio.run(play())


def test_in_the_event_loop_models_take_turns_batch_by_batch() -> None:
    crowded, other = (Rig(seconds=0.0001, inline_seconds=0.001, queue_rows=64) for _ in range(2))

    async def play() -> None:
        for rig in (crowded, other):
            await rig.learn(rows=MAX_ROWS)
        crowd = [crowded.submit(filled(0, MAX_ROWS), MAX_ROWS) for _ in range(8)]
        lone = other.submit(filled(0, MAX_ROWS), MAX_ROWS)
        while not lone.result.done():
            await asyncio.sleep(0)
        assert sum(ticket.result.done() for ticket in crowd) <= 2
        await turns(10)

    crowded.play(play())


def test_draining_answers_what_was_accepted_and_refuses_the_rest() -> None:
    """With the real worker, as the service stops."""

    async def play() -> None:
        model = Model()
        queue = Batcher(model.run, policy(2), name="m/1")
        tickets = [submit(queue, filled(i), 1) for i in range(8)]
        drained = asyncio.ensure_future(queue.drain())
        await asyncio.sleep(0)
        with pytest.raises(NotReadyError, match="shutting down"):
            submit(queue, filled(9), 1)
        await drained
        assert [values(ticket) for ticket in tickets] == [[i + 1] for i in range(8)]
        assert sum(model.batches) == 8
        await queue.drain()  # a stopping service drains all models, also one that was replaced a moment ago

    asyncio.run(play())


def test_draining_waits_for_no_delay_and_goes_on_when_the_caller_is_cancelled() -> None:
    rig = Rig(max_queue_delay=100.0)

    async def play() -> None:
        ticket = rig.submit(filled(1), 1)
        impatient = asyncio.ensure_future(rig.queue.drain())
        await turns()
        impatient.cancel()
        drained = asyncio.ensure_future(rig.queue.drain())
        await turns()
        rig.worker.run_all()
        await drained
        assert values(ticket) == [2]

    rig.play(play())


@pytest.mark.parametrize("inline_seconds", [0.0, 10.0])
def test_a_model_that_was_replaced_leaves_with_its_last_batch(inline_seconds: float) -> None:
    """The new one takes what comes, the old one answers what it took, and then nothing holds its session."""

    async def play() -> None:
        old, new = Model(), Model()
        session = weakref.ref(old)
        before = Batcher(old.run, policy(2, inline_seconds=inline_seconds), name="m/1")
        after = Batcher(new.run, policy(2, inline_seconds=inline_seconds), name="m/2")
        for _ in range(TRUSTED + 1):
            await submit(before, filled(1, 2), 2).result
        tickets = [submit(before, filled(i, 5), 5) for i in range(5)]
        del old
        drained = asyncio.ensure_future(before.drain())
        tickets.append(submit(after, filled(5, 5), 5))
        await drained
        await tickets[-1].result
        assert [values(ticket) for ticket in tickets] == [[i + 1] * 5 for i in range(6)]
        before._worker._threads[0].join(30)  # type: ignore[attr-defined]
        assert session() is None, "although the batcher itself is still there"
        await after.drain()

    gc.disable()  # the service freezes what it started with: a cycle would stay for ever
    try:
        asyncio.run(play())
    finally:
        gc.enable()


def test_an_output_without_the_rows_is_an_error_not_a_mixture() -> None:
    with pytest.raises(ValueError, match=r"output 'y' has shape \[3, 1\], but the batch has 4 rows"):
        split({"y": np.zeros((3, 1))}, [2, 2])
