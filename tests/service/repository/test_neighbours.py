"""One model among neighbours that are broken in every way: it serves, and each of the others is told of, once."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fold.artifact import directory
from service.repository.polling import Poller
from support.service.reloading import EXPLICIT, REQUEST, WATCH, call, index, right, table, wait
from support.service.serving import Service, start


def rewrite(version: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """The same manifest with something else in it, and the digest that belongs to it."""
    content = json.loads((version / "manifest.json").read_text())
    change(content)
    content["digest"] = directory._digest(content)
    (version / "manifest.json").write_text(json.dumps(content))


def names(file: str) -> Callable[[Path], None]:
    return lambda version: rewrite(version, lambda content: content["files"].update({file: "0" * 64}))


def with_pipe(version: Path) -> None:
    os.mkfifo(version / "pipe")
    names("pipe")(version)


def replaced(file: str, make: Callable[[Path], object]) -> Callable[[Path], None]:
    def change(version: Path) -> None:
        (version / file).unlink()
        make(version / file)

    return change


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "absolute": (names("/etc/passwd"), "/etc/passwd: lies outside of its version's folder"),
    "bare": (lambda v: rewrite(v, lambda c: c["files"].pop("model.onnx")), "lists no model.onnx"),
    "device": (names("/dev/zero"), "/dev/zero: lies outside of its version's folder"),
    "fifo": (with_pipe, "pipe: is not a regular file"),
    "other": (lambda v: rewrite(v, lambda c: c["fold"].update(kept=3)), "fold: kept: Input should be a valid list"),
    "parent": (names("../../../secret"), "lies outside of its version's folder"),
    "piped": (replaced("manifest.json", os.mkfifo), "manifest.json: is not a regular file"),
    "shut": (lambda v: v, "manifest.json: cannot be read (Permission denied)"),
    "turning": (replaced("model.onnx", lambda f: f.symlink_to(f)), "Too many levels of symbolic links"),
}


@pytest.fixture
def denied(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody may read `locked`, and no file of `shut`: root may read all, so it is simulated."""
    scandir, opened = os.scandir, os.open

    def no_scandir(path: Any = ".") -> Any:
        if str(path).endswith("/locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    def no_open(path: Any, *options: Any, **more: Any) -> int:
        if "/shut/" in str(path):
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *options, **more)

    monkeypatch.setattr(os, "scandir", no_scandir)
    monkeypatch.setattr(os, "open", no_open)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The repository: `table` is in order."""
    folder = tmp_path / "repository"
    (tmp_path / "secret").write_text("secret")
    table(folder, 1)
    for name, (change, _) in BROKEN.items():
        shutil.copytree(folder / "table", folder / name)
        change(folder / name / "1")
    (folder / "locked" / "1").mkdir(parents=True)
    for ignored in ("table/01", "table/v1", "old/v2", "-minus"):
        (folder / ignored).mkdir(parents=True)
    (folder / "round").symlink_to("round")
    os.mkdir(os.fsencode(folder) + b"/n\xe9t")
    (folder / "README.md").write_text("of no model")
    return folder


IGNORED = [
    "-minus, n\\udce9t: a model's folder has a name of letters, digits, '_', '-' and '.', with a letter or digit "
    "first; round: it is no folder",
    "old/v2: a version's folder is named by a whole number from 1, without leading zeros",
    "table/01, table/v1: a version's folder is named by a whole number from 1, without leading zeros",
]


@pytest.fixture
def service(folder: Path, denied: None) -> Iterator[Service]:
    with start(folder, **WATCH) as service:
        yield service


def test_neighbours_stop_nobody_and_each_is_told_of_once(
    folder: Path, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 1. What is in order serves; what is not is in the index, in the metrics and on the page, with the reason.
    assert right(service.post("/v2/models/table/infer", json=REQUEST).json()) == "1"
    listed, page, metrics = index(service), service.get("/"), service.get("/metrics").text
    assert page.status_code == 200
    reasons = {f"{name}/1": reason for name, (_, reason) in BROKEN.items()}
    reasons["locked/"] = "locked: cannot be read (Permission denied)"
    assert set(listed) == {"table/1", *reasons}
    for name, reason in reasons.items():
        state, told = listed[name]
        assert (state, reason in told) == ("UNAVAILABLE", True), told
        model, version = name.split("/")
        assert f'bnfold_model_broken{{cause="load",model="{model}",version="{version}"}} 1.0' in metrics
        assert f"<h2>{model}</h2>" in page.text
    refused = service.post("/v2/models/locked/infer", json=REQUEST)
    assert (refused.status_code, "model locked is not ready: " in refused.json()["error"]) == (503, True)
    said = list(service.lines)
    assert [line.removeprefix("bnfold: ignoring ") for line in said if "ignoring" in line] == IGNORED
    for name in reasons:
        assert len([line for line in said if line.startswith(f"bnfold: not serving {name.removesuffix('/')}: ")]) == 1

    # 2. The folder is polled as ever, and nothing is told or loaded again.
    polls = count_polls(monkeypatch)
    wait(lambda: len(polls) > 3)
    assert service.lines == said
    table(folder, 2)
    wait(lambda: index(service).get("table/2") == ("READY", ""))
    (folder / "locked").rename(folder / ".locked")
    (folder / "old" / "v2").rename(folder / "old" / "x2")
    wait(lambda: "locked/" not in index(service))
    wait(lambda: any("ignoring old/x2: a version's folder" in line for line in service.lines))


def count_polls(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    polls: list[None] = []
    poll = Poller.poll

    async def counted(self: Poller) -> None:
        await poll(self)
        polls.append(None)

    monkeypatch.setattr(Poller, "poll", counted)
    return polls


def test_a_folder_that_can_be_read_no_more_leaves_its_model_serving(folder: Path, denied: None) -> None:
    with start(folder, **EXPLICIT) as service:
        shutil.rmtree(folder / "locked")
        (folder / "table").rename(folder / "locked")
        assert call(service, "load", "locked")[0] == 400
        assert call(service, "load", "table")[0] == 404
        assert right(service.post("/v2/models/table/infer", json=REQUEST).json()) == "1"
        listed = index(service)
        assert listed["table/1"] == ("READY", "")
        assert listed["locked/"][0] == "UNAVAILABLE"
        # What a load answers of a folder that is ignored
        for name, reason in (("old", "ignored: old/v2: a version's"), ("README.md", "README.md: it is no folder")):
            status, error = call(service, "load", name)
            assert (status, reason in error) == (404, True), error
        status, error = call(service, "load", "-minus")
        assert (status, "a model's folder has a name of letters" in error) == (404, True)
    assert len([line for line in service.lines if "ignoring old/v2" in line]) == 1


def test_a_repository_whose_name_is_no_text(folder: Path) -> None:
    """Its path is in reasons and errors, which are JSON."""
    strange = Path(os.fsdecode(os.fsencode(folder.parent) + b"/n\xe9t"))
    folder.rename(strange)
    with start(strange, **EXPLICIT) as service:
        assert "/n\\udce9t/fifo/1/pipe: is not a regular file" in index(service)["fifo/1"][1]
        status, error = call(service, "load", "nobody")
        assert (status, "in /" in error, error.endswith("n\\udce9t")) == (404, True, True)
        assert service.get("/").status_code == 200


def test_a_version_that_vanishes_while_it_is_loaded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from service.repository import repository  # noqa: PLC0415

    read = repository.read_version

    def vanish(path: Path) -> Any:
        found = read(path)
        if path.parent.name == "gone":
            path.rename(path.with_name(".gone"))
        return found

    with start(folder, **WATCH) as service:
        monkeypatch.setattr(repository, "read_version", vanish)
        table(folder, 1, name="gone")
        wait(lambda: any(line.startswith("bnfold: not serving gone/1: ") for line in service.lines))
        wait(lambda: "gone/1" not in index(service))
        assert right(service.post("/v2/models/table/infer", json=REQUEST).json()) == "1"


REPORTS: dict[str, Callable[[Path], object]] = {
    "a pipe": os.mkfifo,
    "a file outside": lambda file: file.symlink_to("/etc/passwd"),
    "a file of another model": lambda file: file.symlink_to("../../other/1/manifest.json"),
    "a device": lambda file: file.symlink_to("/dev/zero"),
    "no text": lambda file: file.write_bytes(b"\xff\xfe"),
    "nothing": lambda file: None,
}


def test_only_a_regular_report_of_its_folder_is_given_out(folder: Path) -> None:
    report = folder / "table" / "1" / "report.html"
    with start(folder, **EXPLICIT) as service:
        for kind, make in REPORTS.items():
            make(report)
            answer = service.get("/models/table/versions/1/report")
            assert (answer.status_code, "table/1 has no report.html" in answer.json()["error"]) == (404, True), kind
            report.unlink(missing_ok=True)
        (report.with_name("real")).write_text("<p>é</p>", encoding="utf-8")
        report.symlink_to("real")
        assert service.get("/models/table/versions/1/report").text == "<p>é</p>"
