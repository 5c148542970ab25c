"""A repository behind a URL: a file server that lists its folders, as nginx and Python's own do."""

import gc
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.commands import assert_one_line, bnfold
from support.fileserver import Files, serve_files
from support.service.reloading import EXPLICIT, REQUEST, WATCH, call, corrupt, index, right, states, table, wait
from support.service.serving import start


@pytest.fixture
def files(tmp_path: Path) -> Iterator[Files]:
    with serve_files(tmp_path / "server") as found:
        yield found


def answered(service: Any) -> str:
    return right(service.post("/v2/models/table/infer", json=REQUEST).json())


def test_it_is_served_and_downloaded_once(files: Files, tmp_path: Path) -> None:
    for version in (1, 2):
        table(files.folder, version)
    (files.folder / "README.md").write_text("no model")
    for downloads in (2, 0):
        files.downloaded.clear()
        with start(files.url, cache=tmp_path / "cache") as service:
            assert answered(service) == "2"
            assert states(service) == {"table/2": "READY"}
            reasons = service.get("/v2/repository/models/table/versions").json()["versions"]
            assert [one["version"] for one in reasons] == ["1", "2"]
        files_of_2 = ["/models/table/2/model.onnx", "/models/table/2/unfolded.onnx"]
        assert sorted(files.downloaded) == files_of_2[:downloads], "once, and of the version that the policy chooses"


def test_a_load_looks_at_its_own_model(files: Files, tmp_path: Path) -> None:
    table(files.folder, 1)
    shutil.copytree(files.folder / "table", files.folder / "other")
    with start(files.url, cache=tmp_path / "cache", **EXPLICIT) as service:
        files.asked.clear()
        assert call(service, "load") == (200, "")
        assert answered(service) == "1"
        assert "/models/table/1/manifest.json" in files.asked
        assert [path for path in files.asked if "/other/" in path] == []


def test_what_is_half_published_or_altered_is_refused_and_the_old_version_serves_on(
    files: Files, tmp_path: Path
) -> None:
    table(files.folder, 1)
    table(tmp_path, 2)
    with start(files.url, cache=tmp_path / "cache", **WATCH) as service:
        assert answered(service) == "1"
        half = files.folder / "table" / "2"
        half.mkdir()
        shutil.copy(tmp_path / "table" / "2" / "unfolded.onnx", half)
        shutil.copy(tmp_path / "table" / "2" / "manifest.json", half)
        wait(lambda: states(service).get("table/2") == "UNAVAILABLE")
        assert index(service)["table/2"] == ("UNAVAILABLE", f"{files.url}/table/2/model.onnx: is not there")
        assert answered(service) == "1"
        shutil.copy(tmp_path / "table" / "2" / "model.onnx", half)
        wait(lambda: states(service).get("table/2") == "READY")
        assert answered(service) == "2"

        altered = tmp_path / "altered"
        table(altered, 3)
        corrupt(altered / "table" / "3")
        shutil.copytree(altered / "table" / "3", files.folder / "table" / ".3")
        (files.folder / "table" / ".3").rename(files.folder / "table" / "3")
        wait(lambda: states(service).get("table/3") == "UNAVAILABLE")
        assert "is not what the manifest says" in index(service)["table/3"][1]
        assert answered(service) == "2"
        shutil.rmtree(files.folder / "table" / "3")
        wait(lambda: "table/3" not in states(service))


def test_a_version_that_is_replaced_in_its_place_takes_over(files: Files, tmp_path: Path) -> None:
    """What serves keeps its own files, for the cache is by digest."""
    table(files.folder, 1)
    with start(files.url, cache=tmp_path / "cache", **EXPLICIT) as service:
        shutil.rmtree(files.folder / "table")
        table(files.folder, 1, size=50)
        assert call(service, "load") == (200, "")
        assert service.get("/v2/models/table/versions/1/ready").status_code == 200
    assert len(list((tmp_path / "cache").glob("versions/*/table/1/model.onnx"))) == 2


def test_a_server_that_is_away_changes_nothing(files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table(files.folder, 1)
    with start(files.url, cache=tmp_path / "cache", **WATCH) as service:
        files.folder.rename(files.folder.with_name("away"))
        wait(lambda: any(f"all models serve on: {files.url}: is not there" in line for line in service.lines))
        assert answered(service) == "1"
        table(files.folder.with_name("away"), 2)
        files.folder.with_name("away").rename(files.folder)
        wait(lambda: states(service) == {"table/2": "READY"})


def test_a_damaged_file_of_the_cache_is_downloaded_again(files: Files, tmp_path: Path) -> None:
    table(files.folder, 1)
    for _ in range(2):
        with start(files.url, cache=tmp_path / "cache") as service:
            assert answered(service) == "1"
        [version] = (tmp_path / "cache").glob("versions/*/table/1")
        corrupt(version)


def test_versions_that_serve_no_more_leave_the_cache(files: Files, tmp_path: Path) -> None:
    """Of a cache that may have nothing: what serves stays, also while its successor is loaded."""
    with start(files.url, cache=tmp_path / "cache", max_cache_bytes=0, **EXPLICIT) as service:
        for version, left in ((1, {"1"}), (2, {"1", "2"}), (3, {"2", "3"})):
            table(files.folder, version)
            assert call(service, "load") == (200, "")
            wait(lambda now=version: states(service) == {f"table/{now}": "READY"})
            assert answered(service) == str(version)
            gc.collect()
            assert {path.name for path in (tmp_path / "cache").glob("versions/*/table/*")} == left


def test_a_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fold.remote.store.find_spec", lambda name: name if name == "fsspec" else None)
    line = "https://host/models: aiohttp is not installed; install bnfold[http]"
    assert_one_line(bnfold("serve", "https://me:secret@host/models/", "--port", 0), line)


def test_a_url_that_leads_nowhere_is_one_line(files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BNFOLD_CACHE", str(tmp_path / "cache"))
    for url, words in (
        (f"{files.url}/nothing", f"{files.url}/nothing: is not there"),
        ("gopher://host/models", "gopher://host/models: cannot be read (ValueError: Protocol not known: gopher)"),
        (files.url, f"{files.url}: holds no model"),
    ):
        assert_one_line(bnfold("serve", url, "--port", 0), words)
    (tmp_path / "file").touch()
    monkeypatch.setenv("BNFOLD_CACHE", str(tmp_path / "file"))
    assert_one_line(bnfold("serve", files.url, "--port", 0), "cannot be created (Not a directory); set BNFOLD_CACHE")
