"""What may lie in a model repository: pipes, devices, links to anywhere and in circles. None is opened, none blocks."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from fold.artifact.directory import MANIFEST_BYTES, new_version, read_version, write_manifest
from fold.artifact.files import Listing, check_file, model_folders, open_file, version_folders
from fold.artifact.manifest import Manifest
from fold.errors import BnfoldError

MANIFEST = Manifest(
    name="m",
    version="1",
    created="2026-11-21T00:00:00+00:00",
    source={},
    reference="reference.pt2",
    inputs=(),
    outputs=(),
    fold={},
    verdict={"equivalent": True},
    versions={},
)


@pytest.fixture
def version(tmp_path: Path) -> Path:
    (tmp_path / "secret").write_text("secret")
    with new_version(tmp_path / "r", "m", 1) as folder:
        (folder / "model.onnx").write_bytes(b"graph")
        (folder / "reference.pt2").write_bytes(b"reference")
        write_manifest(folder, MANIFEST)
    return tmp_path / "r" / "m" / "1"


def pipe(path: Path) -> None:
    os.mkfifo(path)


def circle(path: Path) -> None:
    path.symlink_to(path.with_name("other"))
    path.with_name("other").symlink_to(path)


def chain(path: Path) -> None:
    """Longer than the system follows."""
    for number in range(60):
        path.with_name(f"link{number}").symlink_to(path.with_name(f"link{number + 1}"))
    path.with_name("link60").write_text("graph")
    path.symlink_to(path.with_name("link0"))


IRREGULAR: dict[str, tuple[Callable[[Path], None], str]] = {
    "a pipe": (pipe, "is not a regular file"),
    "a folder": (Path.mkdir, "is not a regular file"),
    "a device": (lambda path: path.symlink_to("/dev/zero"), "lies outside of its version's folder"),
    "a file outside": (lambda path: path.symlink_to("../../../secret"), "lies outside of its version's folder"),
    "a circle of links": (circle, "cannot be read (Too many levels of symbolic links)"),
    "a long chain of links": (chain, "cannot be read (Too many levels of symbolic links)"),
    "a link to nothing": (lambda path: path.symlink_to("nothing"), "cannot be read (No such file or directory)"),
}


@pytest.mark.parametrize("kind", list(IRREGULAR))
@pytest.mark.parametrize("name", ["model.onnx", "manifest.json"])
def test_only_regular_files_of_its_folder_are_a_version(version: Path, kind: str, name: str) -> None:
    make, message = IRREGULAR[kind]
    (version / name).unlink()
    make(version / name)
    with pytest.raises(BnfoldError) as refused:
        read_version(version)
    assert str(refused.value).startswith(f"{version / name}: {message}")
    with pytest.raises(BnfoldError):
        check_file(version, name)


def test_a_link_inside_its_folder_and_a_linked_folder_are_read(version: Path, tmp_path: Path) -> None:
    """As Kubernetes mounts files, and as a user links a version."""
    (version / "..data").mkdir()
    (version / "model.onnx").rename(version / "..data" / "model.onnx")
    (version / "model.onnx").symlink_to("..data/model.onnx")
    (tmp_path / "elsewhere").symlink_to(version)
    assert read_version(tmp_path / "elsewhere").manifest == read_version(version).manifest
    with open_file(tmp_path / "elsewhere", "model.onnx") as file:
        assert file.read() == b"graph"


@pytest.mark.parametrize("name", ["/dev/zero", "/etc/passwd", "../1/../../../secret", "..", ".", "", "a\0b", "x" * 300])
def test_a_manifest_may_not_name_a_file_outside(version: Path, name: str) -> None:
    rewrite(version, lambda content: content["files"].update({name: "0" * 64}))
    with pytest.raises(BnfoldError, match=r"outside of its|not a regular file|no name of a file|cannot be read"):
        read_version(version)


@pytest.mark.parametrize("name", ["model.onnx", "reference.pt2"])
def test_a_manifest_lists_the_graph_and_the_reference(version: Path, name: str) -> None:
    rewrite(version, lambda content: content["files"].pop(name))
    with pytest.raises(BnfoldError, match=f"lists no {name},"):
        read_version(version)


OTHER_TYPES = {
    "fold.batchnorms": 'fold: batchnorms: Input should be a valid integer',
    "fold.kept": 'fold: kept: Input should be a valid list',
    "fold.precision": 'fold: precision: ',
    "verdict.equivalent": 'verdict: equivalent: Input should be a valid boolean',
    "verdict.outputs": 'verdict: outputs: Input should be a valid list',
    "verdict.algebra": 'verdict: algebra: ',
    "source.overridable": 'source: overridable: Input should be a valid list',
    "fold": 'fold: Input should be ',
    "labels": 'labels: Input should be a valid',
    "files": 'files: Input should be ',
}  # fmt: skip


@pytest.mark.parametrize("key", list(OTHER_TYPES))
def test_a_manifest_of_other_types_is_refused_when_it_is_read(version: Path, key: str) -> None:
    def change(content: dict) -> None:
        outer, _, inner = key.partition(".")
        if inner:
            content[outer][inner] = "many"
        else:
            content[outer] = 3

    rewrite(version, change)
    with pytest.raises(BnfoldError) as refused:
        read_version(version)
    assert f"manifest.json: {OTHER_TYPES[key]}" in str(refused.value)


def test_a_manifest_without_end_is_refused(version: Path) -> None:
    os.truncate(version / "manifest.json", MANIFEST_BYTES + 1)
    with pytest.raises(BnfoldError, match="has more than 64 MB"):
        read_version(version)


def test_folders_that_count_are_listed_and_others_told(tmp_path: Path) -> None:
    for name in ("net/1", "net/10", "net/2", "net/01", "net/v1", "net/.incoming-1", "-net", ".hidden"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "README.md").write_text("of no model")
    (tmp_path / "net" / "config.pbtxt").write_text("for Triton")
    (tmp_path / "net" / "3").write_text("no folder")
    circle(tmp_path / "net" / "4")
    os.mkdir(os.fsencode(tmp_path) + b"/n\xe9t")
    models, versions = model_folders(tmp_path), version_folders(tmp_path / "net")
    assert (models.found, list(models.ignored)) == (("net",), ["-net", "n\\udce9t"])
    assert versions.found == ("1", "2", "10")
    assert {name: reason[:7] for name, reason in versions.ignored.items()} == {
        "01": "a versi", "3": "it is n", "4": "it is n", "v1": "a versi",
    }  # fmt: skip
    assert version_folders(tmp_path / "README.md") == version_folders(tmp_path / "nobody") == Listing()


def rewrite(version: Path, change: Callable[[dict], object]) -> None:
    """The same manifest with something else in it, and the digest that belongs to it."""
    from fold.artifact.directory import _digest  # noqa: PLC0415  # whoever writes such a manifest can compute it

    content = json.loads((version / "manifest.json").read_text())
    change(content)
    content["digest"] = _digest(content)
    (version / "manifest.json").write_text(json.dumps(content))
