"""The model directory: `REPOSITORY/NAME/VERSION/`, written whole or not at all, and checked when it is read.

A version is written into a hidden folder next to its final place and renamed when every byte is on disk, so a reader
sees all of it or nothing. The manifest holds the SHA-256 of each other file, and of itself without that one field.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fold.artifact.files import NAME_PATTERN, holds_version, open_file, sync, version_numbers
from fold.artifact.manifest import Manifest
from fold.errors import LONGEST_NAME, BnfoldError, short

INCOMING = ".incoming-"
"""The prefix of folders and files that are still being written."""
ABANDONED_SECONDS = 24 * 3600
"""The age at which such a folder counts as abandoned on a file system without locks: far longer than any fold takes."""
MANIFEST_BYTES = 64 << 20
"""The most that a manifest may have; that of a network with a thousand BatchNorms has less than one megabyte."""


@dataclass(frozen=True)
class ModelVersion:
    """One version of a model on disk: its folder and its manifest."""

    path: Path
    manifest: Manifest
    url: str | None = None
    """Where it was downloaded from."""

    @property
    def model_file(self) -> Path:
        return self.path / "model.onnx"

    @property
    def reference_file(self) -> Path:
        return self.path / self.manifest.reference


def read_version(path: Path) -> ModelVersion:
    """Read one version and check every digest. Raises `BnfoldError` that names the file at fault.

    The manifest must list the graph and the reference; all that it lists are regular files inside `path`.
    """
    manifest = read_manifest(path)
    check_listed(manifest, path / "manifest.json")
    for name, expected in manifest.files.items():
        check_digest(path, name, expected)
    return ModelVersion(path, manifest)


def check_listed(manifest: Manifest, file: object) -> None:
    """Raise `BnfoldError`, which names the manifest's `file`, unless it lists the graph and the reference."""
    for name in ("model.onnx", manifest.reference):
        if name not in manifest.files:
            raise BnfoldError(f"{file}: lists no {name}, so that nothing says what it must be; fold the model again")


def check_digest(path: Path, name: str, expected: str) -> None:
    """Raise `BnfoldError` unless a file of a version has this SHA-256."""
    try:
        with open_file(path, name) as stream:
            actual = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise BnfoldError(f"{path / name}: cannot be read ({error.strerror}); fold the model again") from error
    if actual != expected:
        raise BnfoldError(
            f"{path / name}: was changed after it was written: its SHA-256 is {actual[:12]}…, "
            f"the manifest says {expected[:12]}…; fold the model again"
        )


def read_manifest(path: Path) -> Manifest:
    """The manifest of a version, whose own digest is checked and no other. Raises `BnfoldError`."""
    return parse_manifest(manifest_content(path), path / "manifest.json")


def manifest_content(path: Path) -> bytes:
    """What the manifest of a version holds; one byte too many if it is too large. Raises `BnfoldError`."""
    try:
        with open_file(path, "manifest.json") as stream:
            return stream.read(MANIFEST_BYTES + 1)
    except OSError as error:
        raise BnfoldError(
            f"{path / 'manifest.json'}: cannot be read ({error.strerror}); "
            "expected a model directory REPOSITORY/NAME/VERSION, made by bnfold fold --out"
        ) from error


def parse_manifest(content: bytes, file: object) -> Manifest:
    """The manifest with this content, whose own digest is checked. Raises `BnfoldError` that names its `file`."""
    if len(content) > MANIFEST_BYTES:
        raise BnfoldError(f"{file}: has more than {MANIFEST_BYTES >> 20} MB; fold the model again")
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise BnfoldError(f"{file}: is not UTF-8 text; fold the model again") from error
    try:
        manifest = Manifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the document"
        raise BnfoldError(f"{file}: {where}: {first['msg']}; fold the model again") from error
    if manifest.digest != _digest(json.loads(text)):
        raise BnfoldError(f"{file}: was changed after it was written (its digest differs); fold the model again")
    return manifest


def next_version(repository: Path, name: str) -> int:
    """One more than the highest version of the model, 1 for a new one."""
    return max(version_numbers(repository / name), default=0) + 1


def refuse_version(repository: Path, name: str, version: int) -> None:
    """Raise `BnfoldError` for a bad name or version, and for a version that exists: none is ever overwritten."""
    if len(name) > LONGEST_NAME:
        raise BnfoldError(f"model name {short(name)!r}: is too long; expected at most {LONGEST_NAME} characters")
    if not NAME_PATTERN.fullmatch(name):
        raise BnfoldError(
            f"model name {short(name)!r}: expected letters, digits, '_', '-' and '.', and a letter or digit first"
        )
    if version < 1:
        raise BnfoldError(f"version {version}: expected a whole number from 1")
    _refuse_inside(repository)
    final = repository / name / str(version)
    if final.exists():
        raise BnfoldError(f"{final}: exists, and a published version is never overwritten; choose another --version")


def _refuse_inside(repository: Path) -> None:
    """Raise `BnfoldError` for a folder of one model, or a folder inside a version: its digests would not hold."""
    above = [repository.absolute(), *repository.absolute().parents]
    version = next((p for p in above if (p / "manifest.json").is_file() and (p / "model.onnx").is_file()), None)
    if version is not None:
        raise BnfoldError(f"{repository}: lies in the published version {version}; choose another --out")
    if holds_version(repository):
        raise BnfoldError(f"{repository}: is the folder of a model; give its repository, --out {repository.parent}")


@contextmanager
def new_version(repository: Path, name: str, version: int) -> Iterator[Path]:
    """A folder to write one version into. It is published when the block ends, and removed if the block raises.

    The block must write the manifest last (`write_manifest`). Raises `BnfoldError` as `refuse_version` does, and if
    something cannot be written.
    """
    refuse_version(repository, name, version)
    model = repository / name
    final = model / str(version)
    incoming = model / f"{INCOMING}{os.getpid()}-{uuid.uuid4().hex[:8]}"
    try:
        model.mkdir(parents=True, exist_ok=True)
        with alone_in(model):
            _remove_abandoned(model)
            incoming.mkdir()
            lock = os.open(incoming, os.O_RDONLY)
            try_lock(lock)
    except OSError as error:
        raise BnfoldError(f"{model}: cannot be created ({error.strerror}); choose another --out") from error
    try:
        yield incoming
        for file in incoming.iterdir():
            sync(file)
        sync(incoming)
        refuse_version(repository, name, version)
        incoming.rename(final)
        sync(model)
    except OSError as error:
        path = str(error.filename or incoming).replace(str(incoming), str(final))
        raise BnfoldError(f"{path}: cannot be written ({error.strerror})") from error
    finally:
        if incoming.exists():
            shutil.rmtree(incoming, ignore_errors=True)
        os.close(lock)


def write_manifest(folder: Path, manifest: Manifest) -> Manifest:
    """Write the manifest with the digest of each file in `folder`; returns it as written."""
    files = {p.name: sha256(p) for p in sorted(folder.iterdir()) if p.name != "manifest.json"}
    complete = manifest.model_copy(update={"files": files, "digest": ""})
    complete = complete.model_copy(update={"digest": _digest(complete.model_dump(mode="json"))})
    (folder / "manifest.json").write_text(complete.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return complete


def sha256(file: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _digest(manifest: dict[str, Any]) -> str:
    """The SHA-256 of a manifest as it was written. A manifest of an older bnfold, with fewer keys, keeps its digest."""
    content = {key: value for key, value in manifest.items() if key != "digest"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@contextmanager
def alone_in(model: Path) -> Iterator[None]:
    """A block that other processes and threads wait for, if they ask for the same folder."""
    descriptor = os.open(model, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def remove_abandoned(repository: Path) -> None:
    """Remove what writers that died left in the folders of all models."""
    with contextlib.suppress(OSError):  # no such folder, or no right to look
        for model in {path.parent for path in repository.glob(f"*/{INCOMING}*")}:
            with alone_in(model):
                _remove_abandoned(model)


def _remove_abandoned(model: Path) -> None:
    for path in model.glob(f"{INCOMING}*"):
        if _is_abandoned(path):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _is_abandoned(path: Path) -> bool:
    """Whether nobody writes it. A writer, also one in another container, holds a lock until it ends, however it does.

    A file system without locks says nothing; there age decides.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:  # its writer has published it meanwhile, or it is somebody else's
        return False
    try:
        held = try_lock(descriptor)
        return time.time() - path.stat().st_mtime > ABANDONED_SECONDS if held is None else held
    finally:
        os.close(descriptor)


def try_lock(descriptor: int, kind: int = fcntl.LOCK_EX) -> bool | None:
    """Lock a file or folder until it is closed, alone or with others (`fcntl.LOCK_SH`); False if another process holds
    it, None if it cannot be locked."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # such as a folder on NFS
        return None
    return True
