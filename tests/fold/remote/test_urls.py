"""A model behind a URL, in Python and on the command line: a file server here."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import fold
from fold.artifact import directory
from fold.errors import BnfoldError
from fold.remote import store
from support.commands import assert_one_line, bnfold
from support.fileserver import Files, serve_files
from support.service import served
from support.service.reloading import corrupt

COMMANDS = ("verify MODEL", "inspect MODEL", "bench MODEL", "compare MODEL MODEL", "predict MODEL data.npy --out out")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BNFOLD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def files(tmp_path: Path, cache: Path) -> Iterator[Files]:
    """`net` in the versions 2 and 10."""
    with serve_files(tmp_path / "server") as found:
        for version in (2, 10):
            served.net(found.folder, version=version)
        yield found


def test_a_url_is_loaded_as_a_folder_is_and_downloaded_once(files: Files) -> None:
    images = np.random.default_rng(0).normal(size=(3, 1, 8, 8)).astype(np.float32)
    [expected] = fold.load(files.folder / "net" / "10").run(images).values()
    for place, version, downloads in (("net", "10", 2), ("net/2", "2", 2), ("net/", "10", 0), ("net/10", "10", 0)):
        files.downloaded.clear()
        model = fold.load(f"{files.url}/{place}")
        assert (model.name, model.version) == ("net", version)
        assert len(files.downloaded) == downloads
        np.testing.assert_array_equal(model.run(images)["scores"], expected)
    assert model.verify(samples=2)


def test_every_command_takes_a_url(files: Files, tmp_path: Path) -> None:
    """It says of a model behind a URL what it says of the same folder."""
    np.save(tmp_path / "data.npy", np.zeros((3, 1, 8, 8), np.float32))
    places = f"{files.url}/net", str(files.folder / "net")
    for words in ("verify MODEL --samples 2", "inspect MODEL", "predict MODEL data.npy --out N"):
        answers = []
        for number, place in enumerate(places):
            arguments = [place if word == "MODEL" else word.replace("N", str(number)) for word in words.split()]
            done = bnfold(*arguments, "--json", cwd=tmp_path)
            answers.append({**json.loads(done.stdout), "code": done.returncode})
            for varies in ("source", "created", "seconds", "rows_per_second"):
                answers[-1].pop(varies, None)
        assert answers[0] == answers[1]
    url, folder = places
    done = bnfold("compare", url, folder, "--samples", 2, "--json")
    assert (done.returncode, json.loads(done.stdout)["same"]) == (0, True)
    done = bnfold("bench", url, "--batch", 1, "--rounds", 1, "--json")
    assert (done.returncode, json.loads(done.stdout)["version"]) == (0, "10")
    assert len(files.downloaded) == 2


def test_credentials_of_a_url_are_not_shown(files: Files) -> None:
    done = bnfold("inspect", f"{files.url.replace('//', '//me:secret@')}/net/2", "--json")
    assert json.loads(done.stdout)["source"] == f"{files.url}/net/2"
    assert "secret" not in done.stdout + done.stderr
    assert_one_line(
        bnfold("verify", f"{files.url.replace('//', '//me:secret@')}/nobody"), f"{files.url}/nobody: is not"
    )


def test_a_server_that_lists_nothing_needs_the_version(files: Files) -> None:
    files.lists = False
    assert fold.load(f"{files.url}/net/2").version == "2"
    with pytest.raises(BnfoldError, match=r"/net: cannot be read \(ClientResponseError: 403"):
        fold.load(f"{files.url}/net")


def test_what_is_altered_is_refused_and_what_was_damaged_is_downloaded_again(files: Files, cache: Path) -> None:
    url = f"{files.url}/net/2"
    fold.load(url)
    [version] = cache.glob("versions/*/net/2")
    corrupt(version)
    assert fold.load(url).verify(samples=2)
    shutil.rmtree(cache)
    corrupt(files.folder / "net" / "2")
    assert_one_line(
        bnfold("verify", url), f"{url}/model.onnx: is not what the manifest says; publish the version again"
    )
    (files.folder / "net" / "2" / "manifest.json").write_text("{}")
    assert_one_line(bnfold("verify", url), f"{url}/manifest.json: ", "fold the model again")


@pytest.mark.parametrize("name", ["../../../outside", "..", ""])
def test_a_manifest_that_names_files_elsewhere_writes_none(name: str, files: Files) -> None:
    manifest = files.folder / "net" / "2" / "manifest.json"
    content = json.loads(manifest.read_text())
    content["files"][name] = "0" * 64
    content["digest"] = directory._digest(content)
    manifest.write_text(json.dumps(content))
    assert_one_line(bnfold("verify", f"{files.url}/net/2"), f"/net/2: {name!r} is no name of a file in it")


def test_a_url_that_names_no_version_is_one_line(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_one_line(bnfold("verify", f"{files.url}/nobody"), f"{files.url}/nobody: is not there")
    assert_one_line(bnfold("verify", files.url), f"{files.url}: holds no version of a model; expected the URL of")
    assert_one_line(
        bnfold("verify", "gopher://host/net"), "gopher://host/net: cannot be read (ValueError: Protocol not"
    )
    monkeypatch.setenv("BNFOLD_MAX_CACHE_BYTES", "10G")
    assert_one_line(bnfold("verify", f"{files.url}/net"), "BNFOLD_MAX_CACHE_BYTES")


@pytest.mark.parametrize(
    ("url", "line"),
    [
        ("s3://bucket/models/net", "s3://bucket/models/net: s3fs is not installed; install bnfold[s3]"),
        ("gs://bucket/models/net", "gs://bucket/models/net: gcsfs is not installed; install bnfold[gcs]"),
        ("https://me:secret@host/net/", "https://host/net: aiohttp is not installed; install bnfold[http]"),
    ],
)
def test_a_missing_package_is_one_line(url: str, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "find_spec", lambda name: name if name == "fsspec" else None)
    for command in COMMANDS:
        assert_one_line(bnfold(*command.replace("MODEL", url).split()), line)
