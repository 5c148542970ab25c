"""A request on its way through the batcher, and the parts of one that has more rows than a batch."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from fold.arrays import Arrays, cut_rows
from service.batching.lane import Lane
from service.batching.merging import Outcome, join_checked


class ResultSink(Protocol):
    """Where an outcome goes. A future is one; a caller that is no coroutine can do with less."""

    def done(self) -> bool:
        """Whether nobody waits for an outcome any more."""

    def set_result(self, outputs: Arrays, /) -> None: ...

    def set_exception(self, error: Exception, /) -> None: ...


@dataclass(slots=True, eq=False)
class Ticket:
    """One accepted request: `result` is set exactly once, by its batch or when it is withdrawn.

    A request of more rows than a batch has is cut into `parts`: tickets that wait one by one and share its result.
    """

    inputs: Arrays
    rows: int
    lane: Lane
    level: int
    """Of priority; 1 goes first."""
    arrived: float
    deadline: float
    """When it must have begun. Seconds of the batcher's clock, as `arrived` is."""
    result: ResultSink
    waiting: bool = False
    whole: "Ticket | None" = None
    begins: bool = True
    """Whether the request begins with this ticket: it is whole, or the first part."""
    parts: Sequence["Ticket"] = ()
    turn: int = 0
    """How many batches later than its arrival it counts as arrived; in the queue, counted from that of its line."""
    outputs: Arrays | None = None
    """Of a part, until the others have theirs."""

    @property
    def queued(self) -> bool:
        """Whether it waits, or a part of it."""
        return self.waiting or any(part.waiting for part in self.parts)

    @property
    def weight(self) -> int:
        """What it takes of the queue; a request without rows is not free."""
        return self.rows or 1


def cut_up(whole: Ticket, max_rows: int) -> Sequence[Ticket]:
    """Cut a large request into parts of at most `max_rows` rows, in order, and return them."""
    whole.parts = [
        replace(
            whole,
            inputs=inputs,
            rows=min(max_rows, whole.rows - max_rows * number),
            whole=whole,
            begins=number == 0,
            turn=number,
        )
        for number, inputs in enumerate(cut_rows(whole.inputs, whole.rows, max_rows))
    ]
    return whole.parts


def joined(whole: Ticket) -> Outcome | None:
    """The answer of a request that was cut, or why there is none; None while parts are missing."""
    parts = [part.outputs for part in whole.parts if part.outputs is not None]
    if len(parts) < len(whole.parts):
        return None
    try:
        return join_checked(parts, [part.rows for part in whole.parts])
    except Exception as error:
        return error
