"""The command line in process: what a command printed, or how it refused."""

import json

import pytest

from fold.cli import main


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[dict, str]:
    """The JSON of a command that succeeds on two samples, and its stderr."""
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in (*arguments, "--samples", 2, "--json")])
    out, err = capsys.readouterr()
    assert not left.value.code, err
    return json.loads(out), err


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line on stderr of a command that exits with 2 and prints nothing else."""
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    assert (left.value.code, out, err.count("\n")) == (2, "", 1), err
    return err
