"""How long a model's runs take, as measured: what deadlines, Retry-After and the choice of the thread are judged by.

Averages are exponentially weighted, by lane and by power of two of the rows. A run is compared only with similar runs:
nothing is extrapolated from small batches to large ones, and a kind that was seen too seldom is unknown.
"""

from math import inf

from service.batching.lane import Lane

TRUSTED = 4
"""Runs of one kind before their time counts as known. At first it is the shortest of these: what is set up once is no
part of it."""
WEIGHT = 1 / 8
"""Of the newest run in the average."""
CLIP = 4.0
"""A run counts at most so many times the average: one that the system happened to interrupt says little."""
SOLE_SECONDS = 0.02
"""How long a run may keep the event loop while there is no other connection. The hop to the thread and back would make
it longer, and of a longer run a new client would notice the wait."""
INLINE_ROWS = 10
"""However many rows a batch has, it may keep the event loop no longer than so many times what one row may."""
OVERRUN_SECONDS = 0.005
SOLE_OVERRUN_SECONDS = 0.05
"""A run in the event loop that took longer (the latter for the sole connection) keeps runs out of it for `REST` times
as long as it took, or for `SOLE_REST` times."""
REST = 100
SOLE_REST = 10
KINDS = 256
"""Lanes and sizes that are remembered; clients choose the free dimensions, so there could be any number."""


class _RunTimes:
    """Of one kind of run."""

    __slots__ = ("count", "cpu_seconds", "seconds")

    def __init__(self) -> None:
        self.count = 0
        self.seconds = self.cpu_seconds = inf

    def add(self, seconds: float, cpu_seconds: float) -> None:
        self.count += 1
        if self.count <= TRUSTED:
            self.seconds = min(self.seconds, seconds)
            self.cpu_seconds = min(self.cpu_seconds, cpu_seconds)
        else:
            self.seconds += (min(seconds, CLIP * self.seconds) - self.seconds) * WEIGHT
            self.cpu_seconds += (min(cpu_seconds, CLIP * self.cpu_seconds) - self.cpu_seconds) * WEIGHT


class Pace:
    def __init__(self, max_rows: int, inline_seconds: float) -> None:
        self.row = 0.0
        """Seconds a row, over the last batches; 0 before the first."""
        self.full = 0.0
        """Seconds of a full batch; 0 while unknown."""
        self._max_rows = max_rows
        self._inline_seconds = inline_seconds
        self._no_inline_before = -inf
        self._full = _RunTimes()
        self._kinds: dict[tuple[Lane, int, bool], _RunTimes] = {}
        self._spent = self._done = 0.0

    def add(self, lane: Lane, rows: int, seconds: float, cpu_seconds: float, *, single_core: bool = False) -> None:
        """A batch took `seconds`, of which its threads computed for `cpu_seconds`; `single_core` on one core."""
        key = (lane, rows.bit_length(), single_core)
        kind = self._kinds.get(key)
        if kind is None:
            if len(self._kinds) >= KINDS:
                self._kinds.clear()
            kind = self._kinds[key] = _RunTimes()
        kind.add(seconds, cpu_seconds)
        if 2 * rows > self._max_rows:
            self._full.add(seconds, cpu_seconds)
            if self._full.count >= TRUSTED:
                self.full = self._full.seconds
        self._spent += seconds - self._spent * WEIGHT
        self._done += (rows or 1) - self._done * WEIGHT
        self.row = self._spent / self._done

    def seconds(self, lane: Lane, rows: int, *, single_core: bool = False) -> float:
        """Of a batch like this; 0 while unknown."""
        kind = self._kinds.get((lane, rows.bit_length(), single_core))
        return 0.0 if kind is None or kind.count < TRUSTED else kind.seconds

    def fits_inline(self, lane: Lane, rows: int, now: float, *, sole: bool = False) -> bool:
        """Whether a batch like this is known to be so little work that the event loop may do it; `sole`, where it keeps
        no other connection waiting."""
        kind = self._kinds.get((lane, rows.bit_length(), False))
        if kind is None or kind.count < TRUSTED or now < self._no_inline_before:
            return False
        allowed = self._inline_seconds * min(max(rows, 1), INLINE_ROWS)
        return kind.cpu_seconds < (max(allowed, SOLE_SECONDS) if sole and allowed else allowed)

    def ran_inline(self, seconds: float, now: float, *, sole: bool = False) -> None:
        """A batch kept the event loop for `seconds`. One that took far too long is not tried again soon: the time of a
        run may depend on the values in it, and the average does not show that."""
        if seconds > (SOLE_OVERRUN_SECONDS if sole else OVERRUN_SECONDS):
            self._no_inline_before = now + (SOLE_REST if sole else REST) * seconds
