"""Requests become one batch, and its outputs become answers again: arithmetic on arrays that knows no queue."""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fold.arrays import Arrays, Run, join_rows

Clock = Callable[[], float]
"""Seconds since some moment; never goes back."""
Outcome = Arrays | Exception
"""Of one request: its outputs, or why there are none."""


@dataclass(slots=True)
class ComputedBatch:
    """The outcome of each request of a batch, and the seconds that each step took."""

    outcomes: list[Outcome]
    merging: float = 0.0
    inference: float = 0.0
    splitting: float = 0.0
    failed: bool = False
    """Whether some outcome is an exception."""
    cpu_seconds: float = 0.0
    """Of the threads that merged and ran it; waiting, such as for the interpreter, is not in it."""
    waited: float = 0.0
    """Seconds between merging and the run, for the batches before."""


class RequestBatch:
    """Requests that are computed together. They may be merged in advance, on another thread than the run."""

    __slots__ = (
        "_clock",
        "_cpu_clock",
        "_merged",
        "_merged_at",
        "_merging",
        "_prefetch_cpu",
        "_run",
        "requests",
        "rows",
    )

    def __init__(
        self, run: Run, requests: Sequence[Arrays], rows: Sequence[int], clock: Clock, cpu_clock: Clock
    ) -> None:
        self.requests = requests
        self.rows = rows
        self._run = run
        self._clock = clock
        self._cpu_clock = cpu_clock
        self._merged: Arrays | None = None
        self._merging = self._merged_at = self._prefetch_cpu = 0.0

    def prefetch(self) -> None:
        """Merge in advance. A failure is left to `compute`, which merges what is not merged."""
        began = self._cpu_clock()
        with contextlib.suppress(Exception):
            self._merge()
        self._prefetch_cpu = self._cpu_clock() - began

    def compute(self) -> ComputedBatch:
        """Run the requests together; if that fails, one by one, so that only the one at fault fails."""
        cpu_began = self._cpu_clock() - self._prefetch_cpu
        requests = self.requests
        running = self._clock()
        outcomes: list[Outcome]
        try:
            merged = self._merge() if self._merged is None else self._merged
            running = self._clock()
            if len(requests) == 1:
                outcomes = [attempt(self._run, merged)]
                ran = self._clock()
            else:
                outputs = self._run(merged)
                ran = self._clock()
                outcomes = list(split(outputs, self.rows))
            ended = self._clock()
        except Exception:
            outcomes = [attempt(self._run, request) for request in requests]
            ran = ended = self._clock()
        failed = any(isinstance(outcome, Exception) for outcome in outcomes)
        self._merged = None
        waited = running - self._merged_at if self._merged_at else 0.0
        cpu_seconds = self._cpu_clock() - cpu_began
        return ComputedBatch(outcomes, self._merging, ran - running, ended - ran, failed, cpu_seconds, waited)

    def _merge(self) -> Arrays:
        began = self._clock()
        merged = join_rows(self.requests)
        self._merged = merged
        self._merged_at = self._clock()
        self._merging = self._merged_at - began
        return merged


def split(outputs: Arrays, rows: Sequence[int]) -> list[Arrays]:
    """Each request's rows of the batch's outputs, as views. Raises `ValueError` if the outputs have not these rows."""
    _check(outputs, sum(rows))
    parts: list[Arrays] = []
    start = 0
    for count in rows:
        parts.append({name: array[start : start + count] for name, array in outputs.items()})
        start += count
    return parts


def join_checked(parts: Sequence[Arrays], rows: Sequence[int]) -> Arrays:
    """The outputs of a request that was cut. Raises `ValueError` if those of a part have not its rows."""
    for outputs, count in zip(parts, rows, strict=True):
        _check(outputs, count)
    return join_rows(parts)


def _check(outputs: Arrays, rows: int) -> None:
    for name, array in outputs.items():
        if array.ndim == 0 or len(array) != rows:
            raise ValueError(f"output {name!r} has shape {list(array.shape)}, but the batch has {rows} rows")


def attempt(run: Run, request: Arrays) -> Outcome:
    """Run one request; an exception is its outcome. It comes without frames: in a cycle with it, they would hold the
    request's tensors until Python's collector comes."""
    try:
        return run(request)
    except Exception as error:
        link: BaseException | None = error
        while link is not None:
            link.__traceback__ = None
            link = link.__cause__ or link.__context__
        return error


@dataclass(slots=True)
class BatchStats:
    """What the metrics are told of a finished batch. Seconds."""

    rows: int
    queued: list[float]
    """The wait of each request that began with this batch; a request that was cut into parts begins once."""
    merging: float
    inference: float
    splitting: float
    failures: int
    """Requests that failed with this batch."""

    @property
    def compute(self) -> float:
        return self.merging + self.inference + self.splitting
