"""Requests become one batch, and its outputs become answers again: arithmetic on arrays that knows no queue."""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from fold.arrays import Arrays

Run = Callable[[Arrays], Arrays]
Clock = Callable[[], float]
"""Seconds since some moment; never goes back."""
Outcome = Arrays | Exception


@dataclass(slots=True)
class Computed:
    """What a batch came to, an outcome for each request, and the seconds that each step took."""

    outcomes: list[Outcome]
    merging: float = 0.0
    inference: float = 0.0
    splitting: float = 0.0
    failed: bool = False
    """Whether some outcome is an exception."""
    own: float = 0.0
    """Seconds of the thread's own work; waiting for others, such as for the interpreter, is not in it."""
    waited: float = 0.0
    """Seconds between merging and the run, for the batches before."""


class Batch:
    """Requests that are computed together. Their merging may come ahead, on another thread than the run."""

    __slots__ = ("_clock", "_merged", "_merged_at", "_merging", "_own", "_own_clock", "_run", "requests", "rows")

    def __init__(
        self, run: Run, requests: Sequence[Arrays], rows: Sequence[int], clock: Clock, own_clock: Clock
    ) -> None:
        self.requests = requests
        self.rows = rows
        self._run = run
        self._clock = clock
        self._own_clock = own_clock
        self._merged: Arrays | None = None
        self._merging = self._merged_at = self._own = 0.0

    def merge_ahead(self) -> None:
        """A failure is left to `compute`, which merges what is not merged."""
        own = self._own_clock()
        with contextlib.suppress(Exception):
            self._merge()
        self._own = self._own_clock() - own

    def compute(self) -> Computed:
        """Run the requests together; if that fails, one by one, so that only the guilty one fails."""
        own = self._own_clock() - self._own
        requests = self.requests
        running = self._clock()
        outcomes: list[Outcome]
        failed = False
        try:
            merged = self._merge() if self._merged is None else self._merged
            running = self._clock()
            outputs = self._run(merged)
            ran = self._clock()
            outcomes = [outputs] if len(requests) == 1 else list(split(outputs, self.rows))
            ended = self._clock()
        except Exception as error:
            outcomes = [error] if len(requests) == 1 else [attempt(self._run, request) for request in requests]
            ran = ended = self._clock()
            failed = any(isinstance(outcome, Exception) for outcome in outcomes)
        self._merged = None
        waited = running - self._merged_at if self._merged_at else 0.0
        own = self._own_clock() - own
        return Computed(outcomes, self._merging, ran - running, ended - ran, failed, own, waited)

    def _merge(self) -> Arrays:
        begun = self._clock()
        merged = self.requests[0] if len(self.requests) == 1 else merge(self.requests)
        self._merged = merged
        self._merged_at = self._clock()
        self._merging = self._merged_at - begun
        return merged


def merge(requests: Sequence[Arrays]) -> Arrays:
    """One batch of all rows, in the order of the requests."""
    return {name: np.concatenate([request[name] for request in requests]) for name in requests[0]}


def split(outputs: Arrays, rows: Sequence[int]) -> list[Arrays]:
    """Each request's rows of the batch's outputs, as views. Raises `ValueError` if the outputs have not these rows."""
    _check(outputs, sum(rows))
    parts: list[Arrays] = []
    start = 0
    for count in rows:
        parts.append({name: array[start : start + count] for name, array in outputs.items()})
        start += count
    return parts


def cut(inputs: Arrays, rows: int, at_most: int) -> list[Arrays]:
    """The inputs of one large request as views of at most so many rows, in order."""
    starts = range(0, rows, at_most)
    return [{name: array[start : start + at_most] for name, array in inputs.items()} for start in starts]


def join(parts: Sequence[Arrays], rows: Sequence[int]) -> Arrays:
    """The outputs of a request that was cut. Raises `ValueError` if those of a part have not its rows."""
    for outputs, count in zip(parts, rows, strict=True):
        _check(outputs, count)
    return merge(parts)


def _check(outputs: Arrays, rows: int) -> None:
    for name, array in outputs.items():
        if array.ndim == 0 or len(array) != rows:
            raise ValueError(f"output {name!r} has shape {list(array.shape)}, but the batch has {rows} rows")


def attempt(run: Run, request: Arrays) -> Outcome:
    """What a run of one request comes to."""
    try:
        return run(request)
    except Exception as error:
        return error


@dataclass(slots=True)
class BatchStats:
    """What a finished batch tells the metrics. Seconds."""

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
