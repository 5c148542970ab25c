"""Requests that wait for a model, in the order in which they are taken: the highest priority first, its lanes in turn,
and in a lane the oldest first.

The parts of a large request let others pass: its n-th part counts as if it had arrived n batches later. So a small
request waits for about one part of each large one, and the large ones wait for no more than came before their parts.

A lane holds the requests that may share a batch: their dimensions beside the batch are the same. Rows are counted, not
requests.
"""

from collections import deque
from collections.abc import Iterator
from math import inf

from service.batching.lane import Lane
from service.batching.ticket import Ticket


class _Line(deque[Ticket]):
    """One lane of one priority, by turn."""

    rows = 0
    turn = 0
    """Batches that were taken while it waited."""

    def add(self, ticket: Ticket) -> None:
        """Behind all whose turn is not later."""
        ticket.turn = self.turn + ticket.number
        position = len(self)
        while position and self[position - 1].turn > ticket.turn:
            position -= 1
        self.insert(position, ticket)
        self.rows += ticket.rows


class Queue:
    def __init__(self) -> None:
        self.rows = 0
        """Weights of all that wait."""
        self.tickets = 0
        """How many wait."""
        self._levels: dict[int, dict[Lane, _Line]] = {}

    def __bool__(self) -> bool:
        return bool(self._levels)

    def __iter__(self) -> Iterator[Ticket]:
        for lanes in self._levels.values():
            for line in lanes.values():
                yield from line

    def push(self, ticket: Ticket) -> None:
        lanes = self._levels.get(ticket.level)
        if lanes is None:
            lanes = self._levels[ticket.level] = {}
        line = lanes.get(ticket.lane)
        if line is None:
            line = lanes[ticket.lane] = _Line()
        line.add(ticket)
        self.rows += ticket.rows or 1
        self.tickets += 1
        ticket.waiting = True

    def remove(self, ticket: Ticket) -> None:
        line = self._levels[ticket.level][ticket.lane]
        line.remove(ticket)
        self._left(line, ticket)
        if not line:
            self._drop(ticket.level, ticket.lane)

    def take(self, max_rows: int, now: float) -> tuple[list[Ticket], list[Ticket]]:
        """The next batch, and the tickets before it whose deadline has passed.

        The batch is the first ticket and as many behind it as fit, also of lower priorities, so that no room is left.
        A ticket whose result is set already, as a cancelled task's is, is dropped.
        """
        batch: list[Ticket] = []
        late: list[Ticket] = []
        levels = sorted(self._levels) if len(self._levels) > 1 else list(self._levels)
        first = self._levels[levels[0]]
        lane = next(iter(first))
        first[lane] = first.pop(lane)  # behind the other lanes
        room = max_rows
        for level in levels:
            lanes = self._levels[level]
            line = lanes.get(lane)
            if line is None:
                continue
            line.turn += 1
            while line and (not batch or line[0].rows <= room):
                ticket = line.popleft()
                self._left(line, ticket)
                if ticket.result.done():
                    continue
                if ticket.deadline <= now:
                    late.append(ticket)
                else:
                    batch.append(ticket)
                    room -= ticket.rows
            if line:
                break
            self._drop(level, lane)
        return batch, late

    def weight_before(self, level: int) -> int:
        """Weights of the tickets that go before a new one of this priority."""
        if len(self._levels) <= 1 and level in self._levels:
            return self.rows
        lines = (line for other, lanes in self._levels.items() if other <= level for line in lanes.values())
        return sum(ticket.weight for line in lines for ticket in line)

    def has(self, rows: int) -> bool:
        """Whether some lane has so many rows, of one priority."""
        return self.rows >= rows and any(
            line.rows >= rows for lanes in self._levels.values() for line in lanes.values()
        )

    def oldest(self) -> float:
        """When the ticket that waits longest arrived."""
        return min(ticket.arrived for ticket in self)

    def next_deadline(self) -> float:
        """Infinite if nothing waits."""
        return min((ticket.deadline for ticket in self), default=inf)

    def _drop(self, level: int, lane: Lane) -> None:
        """An empty line leaves nothing behind: clients choose the lanes, so there could be any number."""
        lanes = self._levels[level]
        del lanes[lane]
        if not lanes:
            del self._levels[level]

    def _left(self, line: _Line, ticket: Ticket) -> None:
        ticket.waiting = False
        line.rows -= ticket.rows
        self.rows -= ticket.rows or 1
        self.tickets -= 1
