"""Polling the repository's folder: what is published there serves, what is removed from there is retired."""

from pathlib import Path

import pytest

from service.repository.polling import Poller
from support.service.reloading import REQUEST, WATCH, Load, call, corrupt, right, states, table, wait
from support.service.serving import start, start_process


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    table(tmp_path / "repository", 1)
    return tmp_path / "repository"


def test_watching_follows_the_folder(tmp_path: Path) -> None:
    """From an empty repository to one of two models, and back; each step under load once there is something."""
    folder = tmp_path / "repository"
    folder.mkdir()
    with start(folder, **WATCH) as service:
        assert service.lines[-1].startswith("bnfold: serving no model yet on http://")
        assert service.get("/v2/health/ready").json() == {"ready": True}
        table(folder, 1)
        wait(lambda: states(service) == {"table/1": "READY"})
        with Load(service).of(3) as load:
            load.go_on("1")
            table(folder, 2)
            load.go_on("2")
            publish_broken_as(folder, 3)
            wait(lambda: states(service).get("table/3") == "UNAVAILABLE")
            load.go_on("2")
            remove(folder / "table" / "2")
            load.go_on("1")
            wait(lambda: states(service) == {"table/1": "READY", "table/3": "UNAVAILABLE"})
            table(folder, 1, name="other")
            wait(lambda: states(service).get("other/1") == "READY")
            remove(folder / "table" / "3")
            wait(lambda: "table/3" not in states(service))
            assert 'version="3"' not in service.get("/metrics").text
            remove(folder / "other")
            wait(lambda: states(service) == {"table/1": "READY"})
            assert service.post("/v2/models/other/infer", json=REQUEST).status_code == 404
        assert load.failed == []
        status, error = call(service, "load")
        assert (status, error) == (
            403, "load and unload are off: repository_control is watch; set BNFOLD_REPOSITORY_CONTROL=explicit",
        )  # fmt: skip
    assert sum(line.startswith("bnfold: not serving table/3: ") for line in service.lines) == 2, "once for each try"


def publish_broken_as(folder: Path, version: int) -> None:
    table(folder.parent / "staging", version)
    staged = folder.parent / "staging" / "table" / str(version)
    corrupt(staged)
    staged.rename(folder / "table" / str(version))


def remove(version: Path) -> None:
    """As an atomic step: into a folder that nobody looks at."""
    away = version.parent / f".gone-{version.name}"
    version.rename(away)


def test_a_folder_that_goes_away_changes_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A share that is not mounted for a while: several polls."""
    polls, poll = [], Poller.poll

    async def counted(self: Poller) -> None:
        was_there = folder.exists()
        await poll(self)
        polls.append(was_there or folder.exists())

    monkeypatch.setattr(Poller, "poll", counted)
    with start(folder, **WATCH) as service:
        folder.rename(folder.with_name("away"))
        table(folder.with_name("away"), 2)
        assert right(service.post("/v2/models/table/infer", json=REQUEST).json()) == "1"
        wait(lambda: polls.count(False) >= 3)
        assert states(service) == {"table/1": "READY"}
        folder.with_name("away").rename(folder)
        wait(lambda: states(service) == {"table/2": "READY"})
    said = [line for line in service.lines if "the repository cannot be polled, and all models serve on: " in line]
    assert len(said) == 1


FROM_THE_COMMAND_LINE = """
import os
from fold.cli import main
main(["serve", os.environ["BNFOLD_REPOSITORY"], "--watch"])
"""


def test_the_command_line_watches(folder: Path) -> None:
    with start_process(folder, code=FROM_THE_COMMAND_LINE, watch_seconds=0.05) as service:
        table(folder, 2)
        wait(lambda: states(service) == {"table/2": "READY"})
