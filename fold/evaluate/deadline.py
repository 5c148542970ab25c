"""The time that one evaluation in float64 may take: a graph may be as large as it likes, and a Loop may never end."""

import signal
import threading
from time import monotonic
from types import FrameType, TracebackType
from typing import Self

from fold.errors import BnfoldError
from fold.limits import limit
from fold.runtime import run_options

SETTING = "BNFOLD_MAX_EVALUATION_SECONDS"
"""Environment variable with the most seconds that one evaluation of a graph in float64 may take."""
SECONDS = 3600
"""Without the setting. The whole proof of a ResNet-50 takes 15 s (docs/benchmarks.md)."""
LONGEST_ALARM = 1e8
"""Seconds that a timer of the system takes."""


class TooLongError(BnfoldError):
    """An evaluation in float64 takes more than its time."""


class Deadline:
    """When an evaluation that begins now must have ended.

    Within its block an alarm also ends an operator that has begun: a loop in Python, or a regular expression. It is set
    on the main thread alone, where the system delivers it, and not where somebody else uses alarms. One call into C,
    such as a product of matrices, is not interrupted.
    """

    def __init__(self) -> None:
        self._seconds = limit(SETTING, SECONDS, "seconds")
        self._end = monotonic() + self._seconds
        self._node = ""
        self._alarmed = False

    def __enter__(self) -> Self:
        on_main_thread = threading.current_thread() is threading.main_thread()
        if on_main_thread and self._seconds and signal.getsignal(signal.SIGALRM) is signal.SIG_DFL:
            self._alarmed = True
            signal.signal(signal.SIGALRM, self._ring)
            signal.setitimer(signal.ITIMER_REAL, min(self._seconds, LONGEST_ALARM))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._alarmed:
            try:
                signal.setitimer(signal.ITIMER_REAL, 0)
            finally:  # the alarm may go off until here
                signal.signal(signal.SIGALRM, signal.SIG_DFL)

    def check(self, node: str) -> None:
        """Raise `TooLongError` that names the node which is next if the time is over, or if another thread ends this
        evaluation (`fold.runtime.ended_by`)."""
        self._node = node
        if monotonic() >= self._end:
            raise self._error()
        options = run_options()
        if options is not None and options.terminate:
            raise TooLongError(f"an evaluation in float64 was ended from outside; it had come to {node}")

    def _ring(self, number: int, frame: FrameType | None) -> None:
        raise self._error()

    def _error(self) -> TooLongError:
        return TooLongError(
            f"an evaluation in float64 takes more than {self._seconds:,} s and has come to {self._node}; if it ends at "
            f"all, set {SETTING} to more seconds"
        )
