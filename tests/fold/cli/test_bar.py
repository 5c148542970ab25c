"""The bar of a command that works: on a terminal only, gone when it ends."""

import contextlib
import os
import re
from pathlib import Path
from threading import Thread
from unittest import mock

import numpy as np
import pytest

from fold.cli import main
from fold.cli.options import console
from support.commands import bnfold, refused
from support.onnxfiles import network, write
from support.service import served

MOVES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r")
"""What moves a terminal's cursor, or colours its text."""


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(network(), tmp_path_factory.mktemp("net"))


@pytest.fixture(autouse=True)
def a_terminal_that_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(console, "is_interactive", True)  # rich decides this when a console is made


def on_a_terminal(*arguments: object) -> str:
    """All that the command writes on stderr if that is a terminal."""
    terminal, end = os.openpty()
    written: list[bytes] = []

    def read() -> None:
        with contextlib.suppress(OSError):  # Linux's end of such a file
            while part := os.read(terminal, 1 << 16):
                written.append(part)

    reader = Thread(target=read)
    reader.start()
    with (
        os.fdopen(end, "w") as stderr,
        contextlib.redirect_stderr(stderr),
        contextlib.suppress(SystemExit),
        mock.patch("gc.freeze"),  # this process goes on after the command
    ):
        main(list(map(str, arguments)))
    reader.join()
    os.close(terminal)
    return b"".join(written).decode()


def test_a_terminal_shows_each_step_and_keeps_none(net: Path, tmp_path: Path) -> None:
    shown = on_a_terminal("fold", net, "--out", tmp_path, "--samples", 2)
    steps = ("starting", f"reading {net}", "part A, algebra: the exact graph in float64", "drawing the report")
    assert all(re.search(rf"\d:\d\d:\d\d {re.escape(step[:30])}", MOVES.sub("", shown)) for step in steps), shown
    assert "\x1b[2K" in shown.rpartition("drawing the report")[2], "the bar is erased"
    verified = MOVES.sub("", on_a_terminal("verify", tmp_path / "net", "--samples", 2))
    assert "part B, rounding: each weight, and its effect" in verified
    assert "equivalent over 2 samples" in verified


def test_a_run_over_a_data_set_shows_its_rate_and_the_time_left(tmp_path: Path) -> None:
    served.net(tmp_path / "repository")
    np.save(tmp_path / "d.npy", np.zeros((60, 1, 8, 8), np.float32))
    words = (tmp_path / "d.npy", "--shard-rows", 10, "--out", tmp_path / "out")
    shown = MOVES.sub("", on_a_terminal("predict", tmp_path / "repository" / "net", *words))
    assert re.search(r"net/1 \S+ 60 of 60 rows, [\d,]+ rows/s 0:00:00", shown), shown


def test_what_is_no_terminal_gets_no_bar(net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where colours are asked for, as by the logs of many a CI."""
    plain = bnfold("fold", net, "--out", tmp_path / "plain", "--samples", 2).stderr
    monkeypatch.setenv("FORCE_COLOR", "1")
    coloured = bnfold("fold", net, "--out", tmp_path / "coloured", "--samples", 2).stderr
    assert console.is_terminal
    for text in (plain, coloured):
        assert "published" in text
        assert not any(word in text for word in ("part A, ", "starting", "\r", "\x1b[2K", "\x1b[?25l"))


def test_an_error_is_one_line_below_nothing(net: Path, tmp_path: Path) -> None:
    wrong = ("fold", net, "--out", tmp_path, "--normalize", "mean=x")
    shown = on_a_terminal(*wrong)
    assert MOVES.sub("", shown.rpartition("\x1b[2K")[2]).strip() == refused(*wrong).strip()
