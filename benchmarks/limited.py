"""Runs a function in a process of its own, with limits of time and memory."""

import multiprocessing
import resource
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import TypeVar

Answer = TypeVar("Answer")

WAIT = 20
"""Times its CPU-seconds that a process may take, beside other work."""


def limited(work: Callable[[], Answer], seconds: int, megabytes: int) -> Answer:
    """What `work` returns in a forked process. Raises `TimeoutError` if it takes more CPU-seconds, and
    `ChildProcessError` if it fails or its data take more memory."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(work, seconds, megabytes, theirs))
    process.start()
    theirs.close()
    try:
        if not ours.poll(WAIT * seconds):
            raise TimeoutError("waits for ever")
        answer: Answer = ours.recv()
        return answer
    except EOFError:
        process.join()
        if process.exitcode == -signal.SIGXCPU:
            raise TimeoutError(f"takes more than {seconds} CPU-seconds") from None
        raise ChildProcessError(f"ended with {process.exitcode}") from None
    finally:
        process.kill()
        process.join()


def _send(work: Callable[[], Answer], seconds: int, megabytes: int, connection: Connection) -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (megabytes << 20, megabytes << 20))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))  # at the second limit it would be killed
    connection.send(work())
