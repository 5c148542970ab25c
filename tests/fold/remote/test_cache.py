"""The cache of what was downloaded: what is used stays, and of the rest what was used last."""

import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fold.artifact import ModelVersion, read_manifest
from fold.artifact import files as artifact_files
from fold.errors import BnfoldError
from fold.remote import Cache
from support.service.reloading import table

VERSIONS = range(1, 6)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Versions of different sizes."""
    folder = tmp_path_factory.mktemp("repository")
    for version in VERSIONS:
        table(folder, version, size=200 * version)
    return folder / "table"


def read(cache: Cache, model: Path, version: int) -> ModelVersion:
    folder = model / str(version)
    content = (folder / "manifest.json").read_bytes()
    return cache.read(f"s3://b/{folder}", content, lambda name, _, target: shutil.copy(folder / name, target))


def here(cache: Cache) -> set[int]:
    return {int(path.parent.name) for path in cache.folder.glob("versions/*/table/*/manifest.json")}


@pytest.fixture(scope="module")
def _without_sync() -> Iterator[None]:
    """Nothing of it has to be there after a power cut."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(artifact_files, "sync", lambda path: None)
        yield


@pytest.mark.usefixtures("_without_sync")
@given(
    st.lists(st.tuples(st.sampled_from(VERSIONS), st.sampled_from(["use", "keep", "drop"])), max_size=15),
    st.integers(0, 40_000),
)
def test_versions_go_when_they_are_too_many_the_oldest_first(
    published: Path, steps: list[tuple[int, str]], max_bytes: int
) -> None:
    """Beside a model of it: a version is used from when it is read until nobody holds it."""
    sizes = {v: sum(file.stat().st_size for file in (published / str(v)).iterdir()) for v in VERSIONS}
    used: list[int] = []  # in the cache, the last one used last
    held: dict[int, ModelVersion] = {}
    with tempfile.TemporaryDirectory() as folder:
        cache = Cache(Path(folder), max_bytes)
        for version, step in steps:
            if step == "drop":
                if held.pop(version, None) is None:
                    continue
            else:
                found = read(cache, published, version)
                assert found.manifest == read_manifest(published / str(version))
                if step == "keep":
                    held.setdefault(version, found)
                del found
            used = [*(v for v in used if v != version), version]
            if step != "drop":
                for old in used[:-1]:
                    if old not in held and sum(sizes[v] for v in used) > max_bytes:
                        used.remove(old)
            assert here(cache) == set(used)
        held.clear()


def test_it_removes_nothing_of_others(published: Path, tmp_path: Path) -> None:
    """A user may name any folder; and another cache may use a version of this one."""
    (tmp_path / "versions" / "mine").mkdir(parents=True)
    other = read(Cache(tmp_path, 1 << 30), published, 1)
    cache = Cache(tmp_path, 0)
    for version in (2, 3):
        read(cache, published, version)
    assert here(cache) == {1, 3}
    assert (tmp_path / "versions" / "mine").is_dir()
    assert other.model_file.is_file()


def test_who_reads_a_version_at_the_same_time_waits_for_one_download(published: Path, tmp_path: Path) -> None:
    downloaded: list[str] = []

    def download(name: str, _: str, target: Path) -> None:
        downloaded.append(name)
        shutil.copy(published / "1" / name, target)

    content = (published / "1" / "manifest.json").read_bytes()
    with ThreadPoolExecutor(8) as pool:
        read_all = [pool.submit(Cache(tmp_path, 0).read, "s3://b/table/1", content, download) for _ in range(8)]
        assert {one.result().path for one in read_all} == {next(tmp_path.glob("versions/*/table/1"))}
    assert sorted(downloaded) == ["model.onnx", "unfolded.onnx"]


def test_a_cache_that_cannot_be_written_is_one_line(published: Path, tmp_path: Path) -> None:
    (tmp_path / "versions").touch()
    with pytest.raises(BnfoldError, match=r"cannot be created \(.*\); set BNFOLD_CACHE$"):
        read(Cache(tmp_path, 0), published, 1)
