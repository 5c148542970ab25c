"""Calls into ONNX Runtime: how another thread ends them, and the end of the process.

Python ends the daemon threads of a process that exits. One that comes back from ONNX Runtime is ended inside of C++,
which aborts the process: "terminate called without an active exception", exit code 134, after all work is done. So the
end of the process waits for the calls in flight, and no daemon thread begins another one.
"""

import atexit
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnxruntime as ort

SECONDS = 5.0
"""The end of the process waits no longer: a run that hangs does not keep the process alive."""


class CallsInFlight:
    """A context for calls into ONNX Runtime that let go of the interpreter. Any number of threads may be in it."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._count = 0
        self._ending = False
        atexit.register(self._end)

    def __enter__(self) -> None:
        with self._changed:
            if not self._ending or not threading.current_thread().daemon:
                self._count += 1
                return
        threading.Event().wait()  # the process ends meanwhile

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._count -= 1
            self._changed.notify_all()

    def _end(self) -> None:
        with self._changed:
            self._ending = True
            self._changed.wait_for(lambda: self._count == 0, SECONDS)


in_flight = CallsInFlight()

_options: ContextVar["ort.RunOptions | None"] = ContextVar("run options", default=None)


@contextmanager
def ended_by(options: "ort.RunOptions") -> Iterator[None]:
    """A block whose runs in ONNX Runtime, and evaluations in float64, end when another thread sets `terminate` in
    `options`: at the next node, or the next iteration of a Loop. They raise then."""
    token = _options.set(options)
    try:
        yield
    finally:
        _options.reset(token)


def run_options() -> "ort.RunOptions | None":
    """The options of the block of `ended_by` around this call, if there is one."""
    return _options.get()
