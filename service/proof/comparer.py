"""A separate process that compares responses with the reference, for shadow checks.

In the service's process a comparison would hold the interpreter lock that requests need, and PyTorch would take its
memory. The separate process runs at a low priority.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from fold.arrays import Arrays
from fold.errors import BnfoldError, first_line
from fold.runtime import release_memory

if TYPE_CHECKING:
    from fold.proof import Reference, Verdict

NICE = 10
"""Niceness: a tenth of the service's share of the cores when they are scarce."""
STOP_SECONDS = 2.0
STOPPING = "the service is stopping"


@dataclass(frozen=True, slots=True)
class Task:
    """What to compare: the first rows of a request and of its response; without arrays, only load the reference.

    One reference is kept for each `key`; `digest` identifies the content of the model directory.
    """

    key: str
    digest: str
    path: Path
    provider: Literal["cpu", "cuda"]
    asked: Arrays | None = None
    answered: Arrays | None = None


@dataclass(frozen=True, slots=True)
class Forget:
    """Release the reference of a task with this key and digest. It gets no reply."""

    key: str
    digest: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """The reply to a task: the verdict, or why there is none, and the time it took in seconds."""

    verdict: "Verdict | None"
    failure: str
    seconds: float


class DiedError(BnfoldError):
    """The process that compares died over a task, perhaps for lack of memory."""


class Comparer:
    """Starts the process when it is first needed, and again if it died. One caller at a time; it blocks."""

    def __init__(self) -> None:
        self._process: multiprocessing.process.BaseProcess | None = None
        self._connection: Connection | None = None
        self._lock = threading.Lock()
        self._stopped = False

    def compare(self, task: Task) -> Comparison:
        """Raises `DiedError` if the process died; the next call starts another."""
        with self._lock:
            connection = self._connected()
            try:
                connection.send(task)
                answer: Comparison = connection.recv()
            except (EOFError, OSError) as error:
                self._connection = None
                if self._stopped:
                    raise BnfoldError(STOPPING) from error
                raise DiedError("the process that compares has died, perhaps for lack of memory") from error
            return answer

    def forget(self, key: str, digest: str) -> None:
        """Release a reference, if it is loaded."""
        with self._lock, contextlib.suppress(OSError):  # the process has died and holds nothing
            if self._connection is not None:
                self._connection.send(Forget(key, digest))

    def stop(self) -> None:
        """End the process, whatever it does: it holds nothing that is not written. No signal that code could catch."""
        self._stopped = True  # the next comparison in the queue would start the process again
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.join(STOP_SECONDS)

    def _connected(self) -> Connection:
        if self._connection is None:
            if self._stopped:
                raise BnfoldError(STOPPING)
            context = multiprocessing.get_context("spawn")  # a fork would hold the sockets of this process
            self._connection, theirs = context.Pipe()
            self._process = context.Process(target=_serve, args=(theirs,), name="bnfold compares", daemon=True)
            self._process.start()
            theirs.close()  # so that each side notices the end of the other
        return self._connection


@dataclass(frozen=True, slots=True)
class _Held:
    digest: str
    precision: str
    reference: "Reference"


def _serve(connection: Connection) -> None:
    """Answer tasks until the service ends."""
    for meant_for_the_service in (signal.SIGINT, signal.SIGHUP):  # which ends this process itself
        signal.signal(meant_for_the_service, signal.SIG_IGN)
    threading.Thread(target=_end_with_service, daemon=True).start()
    held: dict[str, _Held] = {}
    with contextlib.suppress(EOFError, OSError):
        connection.send(_answer(connection.recv(), held))
        os.nice(NICE)  # after the first task, which imports PyTorch; at this priority that would take minutes
        while True:
            task = connection.recv()
            if isinstance(task, Forget):
                _forget(task, held)
            else:
                connection.send(_answer(task, held))


def _end_with_service() -> None:
    """End this process when the service has died, also in the middle of a comparison, which may take hours."""
    service = multiprocessing.parent_process()
    if service is not None:
        service.join()
        os._exit(1)


def _forget(task: Forget, held: dict[str, _Held]) -> None:
    if task.key in held and held[task.key].digest == task.digest:
        del held[task.key]
        release_memory()


def _answer(task: Task, held: dict[str, _Held]) -> Comparison:
    started = time.perf_counter()
    verdict, failure = None, ""
    try:
        verdict = _compare(task, held)
    except ModuleNotFoundError as error:
        failure = f"its reference needs {error.name}, which is not installed here"
    except Exception as error:  # a reference that fails must not end the process
        failure = first_line(error)
    return Comparison(verdict, failure, time.perf_counter() - started)


def _compare(task: Task, held: dict[str, _Held]) -> "Verdict | None":
    from fold.proof import compare  # noqa: PLC0415  # imported in the separate process only

    if task.key not in held or held[task.key].digest != task.digest:
        held.pop(task.key, None)  # before the next one is loaded, because two may not fit into memory
        held[task.key] = _load(task)
    model = held[task.key]
    if task.asked is None or task.answered is None:
        return None
    verdict = compare(model.reference, task.answered, task.asked, provider=task.provider, precision=model.precision)
    return replace(verdict, evidence=None)


def _load(task: Task) -> _Held:
    from fold.artifact import read_version  # noqa: PLC0415  # as above
    from fold.proof import load_reference  # noqa: PLC0415

    version = read_version(task.path)
    if version.manifest.digest != task.digest:
        raise BnfoldError(f"{task.path}: is another version than the one that serves")
    reference = load_reference(version, provider=task.provider)
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(1)
    return _Held(task.digest, version.manifest.precision_on(task.provider), reference)
