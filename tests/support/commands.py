"""`bnfold` with its arguments, and the README's examples, in this process: a new one would load PyTorch again, which
takes most of the time."""

import contextlib
import gc
import io
import json
import re
import shlex
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any
from unittest import mock

from fold.cli import main
from support import ROOT

Run = subprocess.CompletedProcess[str]
README = ROOT / "README.md"


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
        mock.patch.object(gc, "freeze"),  # this process goes on after the command
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


def examples() -> list[tuple[str, str]]:
    """Language and text of every fenced example that names a language."""
    return re.findall(r"^```(sh server|sh|python)\n(.*?)^```$", README.read_text(), re.MULTILINE | re.DOTALL)


def run_lines(text: str, folder: Path) -> str:
    """What the commands of an example print, one in each line."""
    return "".join(run_line(line, folder) for line in text.replace("\\\n", " ").splitlines())


def run_line(line: str, folder: Path) -> str:
    """What `bnfold …`, `python -m …` or `python -c …` prints, run in this process as if started in the folder."""
    program, *words = shlex.split(line)
    if program == "python":
        option, name, *arguments = words
        if option == "-c":
            return run_python(name, folder)
        assert option == "-m", line
        return run_python(f"import {name}; {name}.app()", folder, name, *arguments)
    assert program == "bnfold", line
    done = bnfold(*words, cwd=folder)
    assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def run_python(text: str, folder: Path, *arguments: str) -> str:
    """What Python code prints, run in this process. `arguments` are its `sys.argv`."""
    code: object = None
    with (
        contextlib.redirect_stdout(io.StringIO()) as stdout,
        contextlib.chdir(folder),
        mock.patch.object(sys, "argv", list(arguments)),
    ):
        try:
            exec(compile(text, str(README), "exec"), {"__name__": "__main__"})
        except SystemExit as left:
            code = left.code
    assert not code, f"{text}\n{stdout.getvalue()}"
    return stdout.getvalue()
