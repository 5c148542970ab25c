"""Repositories behind a URL.

`Mirror` is a folder in the cache that looks like the repository, with nothing but the manifest of each version. The
other files are downloaded when a version is opened (`fold.remote`).
"""

import hashlib
import os
import shutil
import threading
from functools import partial
from pathlib import Path

from fold.artifact import NAME_PATTERN, VERSION_PATTERN, ModelVersion, manifest_content, update_file
from fold.remote import Cache, Mark, Store

MANIFEST = "manifest.json"


class Mirror:
    """The repository behind `url`; methods may be called from any thread."""

    def __init__(self, url: str, cache: Cache) -> None:
        """Asks for nothing yet. Raises `BnfoldError` if a package is missing."""
        self._store = Store(url)
        self._cache = cache
        self.folder = cache.folder / "repositories" / hashlib.sha256(url.encode()).hexdigest()[:16]
        self._lock = threading.Lock()
        self._marks: dict[str, Mark] = {}
        """Of the manifests, by NAME/VERSION."""
        self._missing: dict[str, tuple[str, Mark]] = {}
        """The file that is or could not be downloaded, and its mark, by NAME/VERSION."""

    def __str__(self) -> str:
        return str(self._store)

    def refresh(self, model: str | None = None) -> None:
        """Let the folder have what the repository has, of one model alone if it is given. Raises `BnfoldError` if it
        cannot be read; then nothing is taken away."""
        self._cache.make(self.folder)
        with self._lock:
            models = [name for name in self._store.folders("", NAME_PATTERN) if model in (None, name)]
            versions = [f"{name}/{v}" for name in models for v in self._store.folders(name, VERSION_PATTERN)]
            there = {version for version in versions if self._refresh_manifest(version)}
        for path in self.folder.glob(f"{model or '*'}/*"):
            if str(path.relative_to(self.folder)) not in there:
                shutil.rmtree(path, ignore_errors=True)

    def read(self, version: Path) -> ModelVersion:
        """A version of `self.folder` with all of its files. Those that are not in the cache are downloaded. Raises
        `BnfoldError`."""
        named = str(version.relative_to(self.folder))
        found = self._cache.read(
            f"{self._store.url}/{named}", manifest_content(version), partial(self._download, named)
        )
        self._missing.pop(named, None)
        return found

    def _download(self, version: str, file: str, digest: str, target: Path) -> None:
        path = f"{version}/{file}"
        self._missing[version] = (path, ())  # until it is there; its mark is of before, so that no change is missed
        self._missing[version] = (path, self._store.mark(path))
        self._store.download(path, digest, target)

    def _refresh_manifest(self, version: str) -> bool:
        """Whether the version has one."""
        manifest, path = self.folder / version / MANIFEST, f"{version}/{MANIFEST}"
        mark = self._store.mark(path)
        if not mark:
            return False
        known = any(field is not None for field in mark[1:]) and self._marks.get(version) == mark
        if not known or not manifest.is_file():
            content = self._store.read(path)
            manifest.parent.mkdir(parents=True, exist_ok=True)
            update_file(manifest, content)
            self._marks[version] = mark
        if version in self._missing and self._store.mark(self._missing[version][0]) != self._missing[version][1]:
            del self._missing[version]
            os.utime(manifest)  # which is seen as a change, so that the version is tried again
        return True
