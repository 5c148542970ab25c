"""Versions that were downloaded, each in a folder that is named by the digest of its manifest.

What is there is not downloaded again, and a version that is replaced in its place has files of its own. Whoever uses a
version holds a shared lock on its folder. If the cache has more bytes than it may, the versions that were used longest
ago are removed, and none that is locked.
"""

import contextlib
import fcntl
import os
import re
import shutil
import time
import weakref
from collections.abc import Callable
from pathlib import Path

from fold.artifact import (
    NAME_PATTERN,
    ModelVersion,
    alone_in,
    check_digest,
    check_listed,
    parse_manifest,
    try_lock,
    update_file,
)
from fold.errors import BnfoldError
from fold.limits import limit
from fold.remote.store import without_credentials

DEFAULT_BYTES = 10 << 30
DIGEST = re.compile(r"[0-9a-f]{64}")

Download = Callable[[str, str, Path], None]
"""Writes the file of this name and SHA-256 to a path. Raises `BnfoldError`."""


def default_folder() -> Path:
    """A user without a home has none in `~`, which matters only where something is downloaded."""
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "bnfold"


class Cache:
    def __init__(self, folder: Path, max_bytes: int) -> None:
        """`max_bytes` is of all versions together; those in use stay, even if they have more."""
        self.folder = folder
        self._max_bytes = max_bytes
        self._versions = folder / "versions"

    @classmethod
    def of_environment(cls) -> "Cache":
        """The one that `BNFOLD_CACHE` and `BNFOLD_MAX_CACHE_BYTES` describe. Raises `BnfoldError`."""
        written = os.environ.get("BNFOLD_CACHE")
        max_bytes = limit("BNFOLD_MAX_CACHE_BYTES", DEFAULT_BYTES, "bytes")
        return cls(Path(written) if written else default_folder(), max_bytes)

    def read(self, url: str, content: bytes, download: Download) -> ModelVersion:
        """The version at `url`, whose manifest has this content. Files that are missing or were damaged are downloaded.

        It stays in the cache as long as what is returned. Every digest is checked. Raises `BnfoldError`.
        """
        try:
            return self._read(url, content, download)
        except OSError as error:
            where = error.filename or self.folder
            raise BnfoldError(f"{where}: cannot be written ({error.strerror}); set BNFOLD_CACHE") from error

    def _read(self, url: str, content: bytes, download: Download) -> ModelVersion:
        shown = without_credentials(url)
        manifest = parse_manifest(content, f"{shown}/manifest.json")
        check_listed(manifest, f"{shown}/manifest.json")
        held = self._versions / manifest.digest
        folder = held / ("/".join(filter(NAME_PATTERN.fullmatch, url.split("/")[-2:])) or "model")
        descriptor = self._hold(held)
        try:
            self.make(folder)
            with alone_in(folder):  # so that processes that start together download a file once
                for name, digest in manifest.files.items():
                    if Path(name).name != name or name in ("", ".."):
                        raise BnfoldError(f"{shown}: {name!r} is no name of a file in it")
                    try:
                        check_digest(folder, name, digest)
                    except BnfoldError:
                        download(name, digest, folder / name)
                update_file(folder / "manifest.json", content)
            self._remove_oldest()
        except BaseException:
            os.close(descriptor)
            raise
        version = ModelVersion(folder, manifest, url)
        weakref.finalize(version, _release, descriptor)
        return version

    def make(self, folder: Path) -> None:
        """Create a folder of the cache, if it is not there. Raises `BnfoldError`."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BnfoldError(f"{folder}: cannot be created ({error.strerror}); set BNFOLD_CACHE") from error

    def _hold(self, folder: Path) -> int:
        """A descriptor of the folder of a version. Nobody removes the folder while it is open."""
        self.make(self._versions)
        with alone_in(self._versions):
            self.make(folder)
            descriptor = os.open(folder, os.O_RDONLY)
            try_lock(descriptor, fcntl.LOCK_SH)
        _touch(descriptor)
        return descriptor

    def _remove_oldest(self) -> None:
        """Remove versions that nobody uses, until there are no more bytes than there may be."""
        with alone_in(self._versions):
            found = []
            for folder in self._versions.iterdir():
                if DIGEST.fullmatch(folder.name):
                    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
                    found.append((folder.stat().st_mtime_ns, folder, size))
            total = sum(size for *_, size in found)
            for _, folder, size in sorted(found):
                if total <= self._max_bytes:
                    break
                total -= size if _removed(folder) else 0


def _removed(folder: Path) -> bool:
    """Whether a folder could be removed. It stays if somebody uses it, and where nothing can be locked."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # of another user
        return False
    try:
        if not try_lock(descriptor):
            return False
        shutil.rmtree(folder, ignore_errors=True)
        return True
    finally:
        os.close(descriptor)


def _release(descriptor: int) -> None:
    _touch(descriptor)
    os.close(descriptor)


def _touch(descriptor: int) -> None:
    """It was used now."""
    now = time.time_ns()  # the system's own "now" is the same for some milliseconds
    with contextlib.suppress(OSError):  # of another user
        os.utime(descriptor, ns=(now, now))
