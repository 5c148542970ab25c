"""Which batches of a model run, and whether more may begin.

A single request's run has all cores. From as many requests as there are cores, runs have one core each and there are as
many: `single_core_runs` of the policy. Otherwise up to `in_flight` run at a time, two on a GPU. One batch more is
prefetched once it is worth it: with `prefetch_rows` rows, or, on single cores, with its share of all rows.
"""

from collections.abc import Sequence
from math import ceil

from service.batching.policy import BatchPolicy
from service.batching.queue import Queue


class Concurrency:
    def __init__(self, queue: Queue, policy: BatchPolicy) -> None:
        self.batches = 0
        """Those that were begun, the prefetched one included."""
        self.rows = 0
        self._requests = 0
        self._queue = queue
        self._batch_rows = policy.max_batch_size if policy.batched else 1
        self._in_flight = policy.in_flight
        self._prefetch_rows = policy.prefetch_rows
        self._single_core_runs = policy.single_core_runs

    def begin(self, rows: Sequence[int]) -> None:
        """A batch of requests of so many rows."""
        self.batches += 1
        self.rows += sum(rows)
        self._requests += len(rows)

    def end(self, rows: Sequence[int]) -> None:
        self.batches -= 1
        self.rows -= sum(rows)
        self._requests -= len(rows)

    @property
    def crowded(self) -> bool:
        """Whether there are requests for every core."""
        return 0 < self._single_core_runs <= self._requests + self._queue.tickets

    @property
    def limit(self) -> int:
        """Batches that may run at a time, given the requests of this moment."""
        return self._single_core_runs if self.crowded else self._in_flight

    @property
    def full(self) -> bool:
        """Whether a batch that is begun now must wait for another one's end."""
        return self.batches >= self.limit

    @property
    def share(self) -> int:
        """Rows of a run on one core: all rows over one more than there are cores, since one batch is prefetched."""
        return min(self._batch_rows, ceil((self.rows + self._queue.rows) / (self._single_core_runs + 1)))

    @property
    def may_grow(self) -> bool:
        """Whether a batch of what waits may be begun."""
        limit = self.limit
        if self.batches != limit:
            return self.batches < limit
        worth_it = self.share if self.crowded else self._prefetch_rows
        return worth_it > 0 and self._queue.has(worth_it)
