"""Repositories behind a URL: s3://, gs://, https://, and what else fsspec opens.

`Mirror` is a folder in the cache that looks like the repository, with nothing but the manifest of each version. The
other files are downloaded when a version is opened, into a folder that is named by the digest of its manifest: what is
there is not downloaded again, and a version that is replaced in its place has files of its own.
"""

import hashlib
import os
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fold.artifact import NAME_PATTERN, VERSION_PATTERN, new_file, read_manifest, sha256
from fold.errors import BnfoldError, first_line

PACKAGES = {
    "s3": ("s3fs", "s3"), "gs": ("gcsfs", "gcs"), "gcs": ("gcsfs", "gcs"),
    "http": ("aiohttp", "http"), "https": ("aiohttp", "http"),
}  # fmt: skip
"""What fsspec needs for a scheme, and the extra of ours that has it."""
MARKS = ("ETag", "etag", "LastModified", "last_modified", "mtime", "updated", "generation", "md5Hash")
"""How stores tell that a file has changed."""
MANIFEST = "manifest.json"

Mark = tuple[object, ...]
"""The size of a file, and what else tells that it has changed."""


class Mirror:
    """The repository behind `url`; methods may be called from any thread."""

    def __init__(self, url: str, cache: Path) -> None:
        """Asks for nothing yet. Raises `BnfoldError` if a package is missing."""
        self._url = re.sub(r"//[^/]*@", "//", url.rstrip("/"))
        package, extra = PACKAGES.get(url.partition("://")[0], ("fsspec", "http"))
        for needed in ("fsspec", package):
            if find_spec(needed) is None:
                raise BnfoldError(f"{self._url}: {needed} is not installed; install bnfold[{extra}]")
        from fsspec.core import url_to_fs  # noqa: PLC0415  # an extra

        with self._asking(""):
            files, root = url_to_fs(url.rstrip("/"))
        self._files: Any = files
        self._root: str = root
        self._cache = cache
        self.folder = cache / "repositories" / hashlib.sha256(url.encode()).hexdigest()[:16]
        self._lock = threading.Lock()
        self._marks: dict[str, Mark] = {}
        """Of the manifests, by NAME/VERSION."""
        self._missing: dict[str, tuple[str, Mark]] = {}
        """The file that is or could not be downloaded, and its mark, by NAME/VERSION."""

    def __str__(self) -> str:
        return self._url

    def refresh(self, model: str | None = None) -> None:
        """Let the folder have what the repository has, of one model alone if it is given. Raises `BnfoldError` if it
        cannot be read; then nothing is taken away."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BnfoldError(f"{self.folder}: cannot be created ({error.strerror}); set BNFOLD_CACHE") from error
        with self._lock, self._asking(""):
            self._files.invalidate_cache()
            models = [name for name in self._folders("", NAME_PATTERN) if model in (None, name)]
            versions = [f"{name}/{v}" for name in models for v in self._folders(name, VERSION_PATTERN)]
            there = {version for version in versions if self._refresh_manifest(version)}
        for path in self.folder.glob(f"{model or '*'}/*"):
            if str(path.relative_to(self.folder)) not in there:
                shutil.rmtree(path, ignore_errors=True)

    def fetch(self, version: Path) -> Path:
        """The folder with all files of a version of `self.folder`; those that are not there are downloaded, and checked
        against the manifest. Raises `BnfoldError`."""
        files, named = read_manifest(version).files, str(version.relative_to(self.folder))
        folder = self._cache / "versions" / sha256(version / MANIFEST) / named
        folder.mkdir(parents=True, exist_ok=True)
        for file, digest in files.items():
            if Path(file).name != file:
                raise BnfoldError(f"{self._url}/{named}: {file!r} is no name of a file in it")
            if not (folder / file).is_file() or sha256(folder / file) != digest:
                self._download(named, file, digest, folder / file)
        with new_file(folder / MANIFEST) as partial:
            shutil.copyfile(version / MANIFEST, partial)
        self._missing.pop(named, None)
        return folder

    def _download(self, version: str, file: str, digest: str, target: Path) -> None:
        path = f"{version}/{file}"
        self._missing[version] = (path, ())  # until it is there; its mark is of before, so that no change is missed
        with self._asking(path):
            self._missing[version] = (path, self._mark(path))
        with new_file(target) as partial, self._asking(path):
            self._files.get_file(f"{self._root}/{path}", str(partial))
            if sha256(partial) != digest:
                raise BnfoldError(f"{self._url}/{path}: is not what the manifest says; publish the version again")

    def _refresh_manifest(self, version: str) -> bool:
        """Whether the version has one."""
        manifest, path = self.folder / version / MANIFEST, f"{version}/{MANIFEST}"
        mark = self._mark(path)
        if not mark:
            return False
        known = any(field is not None for field in mark[1:]) and self._marks.get(version) == mark
        if not known or not manifest.is_file():
            content = self._files.cat_file(f"{self._root}/{path}")
            if not manifest.is_file() or manifest.read_bytes() != content:
                manifest.parent.mkdir(parents=True, exist_ok=True)
                with new_file(manifest) as partial:
                    partial.write_bytes(content)
            self._marks[version] = mark
        if version in self._missing and self._mark(self._missing[version][0]) != self._missing[version][1]:
            del self._missing[version]
            os.utime(manifest)  # which is seen as a change, so that the version is tried again
        return True

    def _mark(self, path: str) -> Mark:
        """Empty if there is no such file."""
        try:
            info = self._files.info(f"{self._root}/{path}")
        except FileNotFoundError:
            return ()
        return (info.get("size"), *(info.get(name) for name in MARKS))

    def _folders(self, path: str, pattern: re.Pattern[str]) -> list[str]:
        """Names of the folders in one of the repository."""
        entries = self._files.ls(f"{self._root}/{path}" if path else self._root, detail=True)
        names = [entry["name"].rstrip("/").rpartition("/")[2] for entry in entries if entry["type"] == "directory"]
        return sorted(name for name in names if pattern.fullmatch(name))

    @contextmanager
    def _asking(self, path: str) -> Iterator[None]:
        """Turn what the file system raises, which may be anything, into `BnfoldError`."""
        try:
            yield
        except BnfoldError:
            raise
        except FileNotFoundError as error:
            raise BnfoldError(f"{'/'.join(filter(None, (self._url, path)))}: is not there") from error
        except Exception as error:
            where = "/".join(filter(None, (self._url, path)))
            raise BnfoldError(f"{where}: cannot be read ({type(error).__name__}: {first_line(error)})") from error
