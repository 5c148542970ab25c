"""`ulimit -v`: a library that ends the process for want of memory leaves one line, exit 2, and nothing else."""

import resource
import subprocess
import sys

import pytest

LIMIT = 64 << 30

DEATHS = {
    "OpenBLAS": "os.write(2, b'OpenBLAS error: Memory allocation still failed'); ctypes.CDLL(None).exit(1)",
    "C++": "os.write(2, b'terminate called: std::bad_alloc'); os.abort()",
    "a library's own error": "raise SystemError('unknown opcode')",
}


@pytest.mark.parametrize("death", DEATHS)
def test_a_death_for_want_of_memory_is_one_line(tmp_path, death) -> None:
    """It dies while it writes a version. The process is the point: it forks."""
    (tmp_path / "net.pt").touch()
    code = f"""
import ctypes, os, sys, types
from pathlib import Path
from fold.artifact import new_version
from fold.cli import main
def die(source, target, **options):
    with new_version(Path("r"), "net", 1):
        {DEATHS[death]}
sys.modules["fold.convert"] = types.SimpleNamespace(Target=lambda *arguments: None, convert=die)
sys.argv = ["bnfold", "fold", "net.pt", "--out", "r"]
main()
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (LIMIT, LIMIT)),
    )
    (line,) = done.stderr.splitlines()
    assert line.startswith("bnfold: too little memory; give the process more (ulimit -v)")
    assert (done.returncode, done.stdout) == (2, "")
    assert list((tmp_path / "r" / "net").iterdir()) == []
