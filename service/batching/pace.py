"""How long a model's runs take, as measured: what deadlines, Retry-After and the choice of the thread are judged by.

Exponentially weighted, by lane and by power of two of the rows. A run is compared only with its like: nothing is
extrapolated from small batches to large ones, and what was seen too seldom is unknown.
"""

from math import inf

from service.batching.lane import Lane

TRUSTED = 4
"""Runs of one kind before their time counts as known, which is the shortest of these at first: what is set up once is
no part of it."""
WEIGHT = 1 / 8
"""Of the newest run in the average."""
CLIP = 4.0
"""A run counts at most so many times the average: one that the system happened to interrupt says little."""
LONE_SECONDS = 0.02
"""What a run may take of the event loop while nobody else has a connection: the way to the thread and back would make
it longer, which of one that takes more nobody notices, but that a newcomer waits."""
INLINE_ROWS = 10
"""However many rows a batch has, it may take the event loop no longer than so many times what one row may."""
OVERRUN_SECONDS = 0.005
LONE_OVERRUN_SECONDS = 0.05
"""A run in the event loop that took longer, the latter if it was alone, keeps runs out of it for `REST` times as long
as it took, or for `LONE_REST` times."""
REST = 100
LONE_REST = 10
KINDS = 256
"""Lanes and sizes that are remembered; clients choose the free dimensions, so there could be any number."""


class _Kind:
    __slots__ = ("count", "own", "seconds")

    def __init__(self) -> None:
        self.count = 0
        self.seconds = self.own = inf

    def add(self, seconds: float, own: float) -> None:
        self.count += 1
        if self.count <= TRUSTED:
            self.seconds = min(self.seconds, seconds)
            self.own = min(self.own, own)
        else:
            self.seconds += (min(seconds, CLIP * self.seconds) - self.seconds) * WEIGHT
            self.own += (min(own, CLIP * self.own) - self.own) * WEIGHT


class Pace:
    def __init__(self, max_rows: int, inline_seconds: float) -> None:
        self.row = 0.0
        """Seconds a row, over the last batches; 0 before the first."""
        self.full = 0.0
        """Seconds of a full batch; 0 while unknown."""
        self._max_rows = max_rows
        self._inline_seconds = inline_seconds
        self._no_inline_before = -inf
        self._full = _Kind()
        self._kinds: dict[tuple[Lane, int, bool], _Kind] = {}
        self._spent = self._done = 0.0

    def add(self, lane: Lane, rows: int, seconds: float, own: float, *, narrow: bool = False) -> None:
        """A batch took `seconds`, of which the thread worked for `own`; `narrow` on one core."""
        key = (lane, rows.bit_length(), narrow)
        kind = self._kinds.get(key)
        if kind is None:
            if len(self._kinds) >= KINDS:
                self._kinds.clear()
            kind = self._kinds[key] = _Kind()
        kind.add(seconds, own)
        if 2 * rows > self._max_rows:
            self._full.add(seconds, own)
            if self._full.count >= TRUSTED:
                self.full = self._full.seconds
        self._spent += seconds - self._spent * WEIGHT
        self._done += (rows or 1) - self._done * WEIGHT
        self.row = self._spent / self._done

    def seconds(self, lane: Lane, rows: int, *, narrow: bool = False) -> float:
        """Of a batch like this; 0 while unknown."""
        kind = self._kinds.get((lane, rows.bit_length(), narrow))
        return 0.0 if kind is None or kind.count < TRUSTED else kind.seconds

    def fits_inline(self, lane: Lane, rows: int, now: float, *, alone: bool = False) -> bool:
        """Whether a batch like this is known to be so little work that the event loop may do it; `alone`, where it
        keeps nobody else waiting."""
        kind = self._kinds.get((lane, rows.bit_length(), False))
        if kind is None or kind.count < TRUSTED or now < self._no_inline_before:
            return False
        allowed = self._inline_seconds * min(max(rows, 1), INLINE_ROWS)
        return kind.own < (max(allowed, LONE_SECONDS) if alone and allowed else allowed)

    def ran_inline(self, seconds: float, now: float, *, alone: bool = False) -> None:
        """A batch took the event loop `seconds`. One that took far too long is not tried again soon: what a run takes
        may depend on what is asked, and the average does not tell."""
        if seconds > (LONE_OVERRUN_SECONDS if alone else OVERRUN_SECONDS):
            self._no_inline_before = now + (LONE_REST if alone else REST) * seconds
