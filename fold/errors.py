"""What a user can mend: one exception type, whose text says which file or node, what was expected, and what to do."""

import errno
import os
import re


class BnfoldError(Exception):
    """Bad input or usage. The command line prints its text as one line and exits with 2."""


OUT_OF_MEMORY = re.compile(
    r"can't allocate memory|cannot allocate memory|bad_alloc|not enough memory|failed to allocate|out of memory|"
    r"cannot map|failed to map|can't start new thread|memory allocation still failed|"
    r"error return without exception set",
    re.IGNORECASE,
)
"""What PyTorch, ONNX Runtime, numpy, OpenBLAS, CPython and the system's loader say of too little memory."""


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether too little memory is the cause of an exception, or of one that it was raised from."""
    while error is not None:
        if isinstance(error, MemoryError) or OUT_OF_MEMORY.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def is_out_of_files(error: BaseException | None) -> bool:
    """Whether the process or the system has no file descriptor left, in an exception or one that it was raised from."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
            return True
        if os.strerror(errno.EMFILE) in str(error):  # ONNX Runtime's exceptions are no OSError
            return True
        error = error.__cause__ or error.__context__
    return False


def first_line(error: BaseException) -> str:
    """What an exception of another library says, as one line of ours may repeat it, without colours of a terminal."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    return next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)


def root_cause(error: BaseException) -> BaseException:
    """The exception from which an exception was raised first."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def printable(text: str) -> str:
    """`text` with escapes (`\\x1b`) in place of what does not show: control characters, line breaks, directions."""
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text)


def shown(value: object) -> object:
    """`finalize` of a page's templates: `printable` texts, whose line breaks stay. What is HTML already is left."""
    if not isinstance(value, str) or hasattr(value, "__html__"):
        return value
    return "\n".join(map(printable, value.split("\n")))


LONGEST_NAME = 200


def short(name: str) -> str:
    """A name as a message repeats it: a file or a user may give one of any length."""
    return name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}… ({len(name):,} characters)"
