"""Requests become one batch, and its outputs become answers again: arithmetic on arrays that knows no queue."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np

from service.signature import Arrays

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
    """Seconds between merging and the run, for the batch before."""


def compute(
    run: Run,
    requests: Sequence[Arrays],
    rows: Sequence[int],
    clock: Clock,
    own_clock: Clock,
    turn: AbstractContextManager[object],
) -> Computed:
    """Run the requests together; if that fails, one by one, so that only the guilty one fails. Runs wait for their
    `turn`, merging does not."""
    own = own_clock()
    begun = merged = running = clock()
    outcomes: list[Outcome]
    try:
        batch = requests[0] if len(requests) == 1 else merge(requests)
        merged = clock()
        with turn:
            running = clock()
            outputs = run(batch)
        ran = clock()
        outcomes = [outputs] if len(requests) == 1 else list(split(outputs, rows))
        ended = clock()
    except Exception as error:
        if len(requests) == 1:
            outcomes = [error]
        else:
            with turn:
                outcomes = [_attempt(run, request) for request in requests]
        ran = ended = clock()
    failed = any(isinstance(outcome, Exception) for outcome in outcomes)
    return Computed(outcomes, merged - begun, ran - running, ended - ran, failed, own_clock() - own, running - merged)


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


def _attempt(run: Run, request: Arrays) -> Outcome:
    try:
        return run(request)
    except Exception as error:
        return error
