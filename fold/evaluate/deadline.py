"""The time that one evaluation in float64 may take: a graph may be as large as it likes, and a Loop may never end."""

from time import monotonic

from fold.errors import BnfoldError
from fold.limits import limit

SETTING = "BNFOLD_MAX_EVALUATION_SECONDS"
"""Environment variable with the most seconds that one evaluation of a graph in float64 may take."""
SECONDS = 3600
"""Without the setting. The whole proof of a ResNet-50 takes 15 s (docs/benchmarks.md)."""


class TooLongError(BnfoldError):
    """An evaluation in float64 takes more than its time."""


class Deadline:
    """When an evaluation that begins now must have ended."""

    def __init__(self) -> None:
        self._seconds = limit(SETTING, SECONDS, "seconds")
        self._end = monotonic() + self._seconds

    def check(self, node: str) -> None:
        """Raise `TooLongError` that names the node which is next if the time is over."""
        if monotonic() >= self._end:
            raise TooLongError(
                f"an evaluation in float64 takes more than {self._seconds:,} s and has come to {node}; if it ends at "
                f"all, set {SETTING} to more seconds"
            )
