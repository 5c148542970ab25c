"""`bnfold` with its arguments, in this process: a new one would load PyTorch again, which takes most of the time."""

import contextlib
import io
import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any
from unittest import mock

from fold.cli import main

Run = subprocess.CompletedProcess[str]


def bnfold(*arguments: object, cwd: Path | None = None) -> Run:
    """What the command line printed, and its exit code."""
    words = list(map(str, arguments))
    code = None
    with (
        contextlib.redirect_stdout(io.StringIO()) as stdout,
        contextlib.redirect_stderr(io.StringIO()) as stderr,
        contextlib.chdir(cwd or Path.cwd()),
        warnings.catch_warnings(),
        mock.patch.object(sys, "path", list(sys.path)),
    ):
        try:
            main(words)
        except SystemExit as left:
            code = left.code
    assert code is None or isinstance(code, int)
    return Run(words, code or 0, stdout.getvalue(), stderr.getvalue())


def assert_one_line(done: Run, *words: str) -> None:
    """Exit 2, nothing on stdout, and one line on stderr that holds the words."""
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    (line,) = done.stderr.strip().splitlines()
    for word in words:
        assert word in line


def run(*arguments: object) -> tuple[dict[str, Any], str]:
    """The JSON of a command that succeeds on two samples, and its stderr."""
    done = bnfold(*arguments, "--samples", 2, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


def refused(*arguments: object) -> str:
    """The one line on stderr of a command that exits with 2 and prints nothing else."""
    done = bnfold(*arguments)
    assert_one_line(done)
    return done.stderr
