"""A request on its way through the batcher, and the parts of one that has more rows than a batch."""

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import Protocol
from weakref import WeakSet

from fold.arrays import Arrays, cut_rows
from service.batching.lane import Lane
from service.batching.merging import Outcome, join_checked


class ResultSink(Protocol):
    """Where an outcome goes. A future is one; a caller that is no coroutine can do with less."""

    def done(self) -> bool:
        """Whether nobody waits for an outcome any more."""

    def set_result(self, outputs: Arrays, /) -> None: ...

    def set_exception(self, error: Exception, /) -> None: ...


@dataclass(slots=True, eq=False, weakref_slot=True)
class Ticket:
    """One accepted request: `result` is set exactly once, by its batch or when it is withdrawn.

    A request of more rows than a batch has is cut into parts: tickets that wait one by one and share its result.
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
    turn: int = 0
    """Its place in the queue's line."""
    whole: "Ticket | None" = None
    number: int = 0
    """Of a part, in the order of the rows: the request begins with 0."""
    part_rows: Sequence[int] = ()
    """Of a request that was cut."""
    parts: AbstractSet["Ticket"] = frozenset()
    """Of a request that was cut, those that wait or run. Weak references: in a cycle, tensors would stay until Python's
    collector comes."""
    outputs: dict[int, Arrays] | None = None
    """Of a request that was cut, by the number of the part, until all are there."""

    @property
    def queued(self) -> bool:
        """Whether it waits, or a part of it."""
        return self.waiting or any(part.waiting for part in self.parts)

    @property
    def weight(self) -> int:
        """What it takes of the queue; a request without rows is not free."""
        return self.rows or 1

    def cut_up(self, max_rows: int) -> Sequence["Ticket"]:
        """Parts of at most `max_rows` rows, in order."""
        self.part_rows = [min(max_rows, self.rows - start) for start in range(0, self.rows, max_rows)]
        views = cut_rows(self.inputs, self.rows, max_rows)
        parts = [
            replace(self, inputs=inputs, rows=rows, whole=self, number=number)
            for number, (inputs, rows) in enumerate(zip(views, self.part_rows, strict=True))
        ]
        self.parts, self.outputs = WeakSet(parts), {}
        return parts

    def join(self, number: int, outputs: Arrays) -> Outcome | None:
        """Of a request that was cut: its answer, or why there is none, with the last part's outputs; None before."""
        assert self.outputs is not None
        self.outputs[number] = outputs
        if len(self.outputs) < len(self.part_rows):
            return None
        try:
            return join_checked([self.outputs[part] for part in range(len(self.part_rows))], self.part_rows)
        except Exception as error:
            return error
