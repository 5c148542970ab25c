"""Keeps our output free of what libraries and a user's own code say while they work for us."""

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout


@contextmanager
def silenced() -> Iterator[None]:
    """Hide PyTorch's warnings and logs of its own internals; our errors tell the user what to do. What is printed, such
    as by the user's own modules, goes to stderr: stdout has our JSON alone.
    """
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "torch._export")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(sys.stderr):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
