"""Commands where memory is limited (`ulimit -v`): OpenBLAS and C++ end the process themselves if they get none.

So the command runs in a child process. If that dies, the parent removes what it was writing and says why in one line.
"""

import atexit
import os
import resource
import signal
import sys
from pathlib import Path

from fold.cli.options import NO_MEMORY, complain, console

DEATHS = (signal.SIGABRT, signal.SIGBUS, signal.SIGKILL, signal.SIGSEGV)
"""Signals by which a process ends that gets no memory. Any other was sent by somebody."""
END = b"\0"

_parent: list[int] = []
"""In the child: the pipe on which the parent learns the repository, then that the child ended by itself."""


def is_limited() -> bool:
    """Whether this process may have only so much address space."""
    return resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY


def run_in_child() -> int | None:
    """Fork. Returns None in the child, which goes on, and the exit code in the parent when the child has ended."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _parent.append(writing)
        atexit.register(os.write, writing, END)  # not called if a library calls exit()
        sys.stderr = os.fdopen(os.dup(2), "w", buffering=1, encoding="utf-8", errors="backslashreplace")
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what libraries say while they die
        return None
    os.close(writing)
    os.set_blocking(reading, False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to the child as well
    signal.signal(signal.SIGTERM, lambda number, frame: os.kill(child, number))
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    told = os.read(reading, 1 << 16)
    if code and told.rstrip(END):
        _remove_left(told.rstrip(END))  # without memory the child may not have managed it, even if it did not die
    if told.endswith(END):
        return code
    if code < 0 and -code not in DEATHS:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    console.show_cursor()
    return complain(NO_MEMORY)


def watch(repository: Path) -> None:
    """Let the parent remove what this process was writing in `repository`, if it dies."""
    for pipe in _parent:
        os.write(pipe, os.fsencode(repository.absolute()))


def _remove_left(repository: bytes) -> None:
    from fold.artifact import remove_abandoned  # noqa: PLC0415

    remove_abandoned(Path(os.fsdecode(repository)))
