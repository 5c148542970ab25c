"""What runs of a model, and whether more may.

A lone request's run has all cores. From as many requests as there are cores, runs have one core each and there are as
many: `narrow_runs`, 0 where there is no session for that. Up to `in_flight` others run at a time, two on a GPU. One
batch more is merged ahead once it is worth it: with `ahead_rows` rows, 0 for never, or with its share of a crowd.
"""

from collections.abc import Sequence
from math import ceil

from service.batching.queue import Queue


class Concurrency:
    def __init__(self, queue: Queue, batch_rows: int, in_flight: int, ahead_rows: int, narrow_runs: int) -> None:
        self.batches = 0
        """Those that were begun, with one that is merged ahead."""
        self.rows = 0
        self._requests = 0
        self._queue = queue
        self._batch_rows = batch_rows
        self._in_flight = in_flight
        self._ahead_rows = ahead_rows
        self._narrow_runs = narrow_runs

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
        return 0 < self._narrow_runs <= self._requests + self._queue.tickets

    @property
    def most(self) -> int:
        """Batches that may run at a time, by what there is now."""
        return self._narrow_runs if self.crowded else self._in_flight

    @property
    def full(self) -> bool:
        """Whether what is begun now must wait for another batch's end."""
        return self.batches >= self.most

    @property
    def share(self) -> int:
        """Rows of a run on one core: of all that there is one share more than there are cores, to be merged ahead."""
        return min(self._batch_rows, ceil((self.rows + self._queue.rows) / (self._narrow_runs + 1)))

    @property
    def may_grow(self) -> bool:
        """Whether a batch of what waits may be begun."""
        most = self.most
        if self.batches != most:
            return self.batches < most
        worth_it = self.share if self.crowded else self._ahead_rows
        return worth_it > 0 and self._queue.has(worth_it)
