"""Starts this process again with what glibc and libraries read only at their start."""

import os
import sys

from fold.runtime.cpus import thread_limits
from fold.runtime.memory import huge_pages


def start_tuned() -> None:
    """Start this process again, with the same id and arguments, if it needs variables for huge pages or for the numbers
    of threads that its control group allows. Returns if it has them, or if the user has set them."""
    wanted = huge_pages() | thread_limits()
    if wanted:
        os.environ.update(wanted)
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
