"""A folder behind a URL, read through fsspec."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeGuard

from fold.artifact import new_file, sha256
from fold.errors import BnfoldError, first_line

PACKAGES = {
    "s3": ("s3fs", "s3"), "gs": ("gcsfs", "gcs"), "gcs": ("gcsfs", "gcs"),
    "http": ("aiohttp", "http"), "https": ("aiohttp", "http"),
}  # fmt: skip
"""What fsspec needs for a scheme, and the extra of ours that has it."""
MARKS = ("ETag", "etag", "LastModified", "last_modified", "mtime", "updated", "generation", "md5Hash")
"""How stores tell that a file has changed."""

Mark = tuple[object, ...]
"""The size of a file, and what else tells that it has changed."""


def is_url(place: object) -> TypeGuard[str]:
    return isinstance(place, str) and "://" in place


def without_credentials(url: str) -> str:
    return re.sub(r"//[^/]*@", "//", url)


class Store:
    """The folder behind `url`; paths are inside of it. Any thread may call the methods, which raise `BnfoldError`."""

    def __init__(self, url: str) -> None:
        """Asks for nothing yet. Raises `BnfoldError` if a package is missing."""
        self.url = url.rstrip("/")
        package, extra = PACKAGES.get(url.partition("://")[0], ("fsspec", "http"))
        for needed in ("fsspec", package):
            if find_spec(needed) is None:
                raise BnfoldError(f"{self}: {needed} is not installed; install bnfold[{extra}]")
        from fsspec.core import url_to_fs  # noqa: PLC0415  # an extra

        with self._asking(""):
            files, root = url_to_fs(self.url)
        self._files: Any = files
        self._root: str = root

    def __str__(self) -> str:
        return without_credentials(self.url)

    def folders(self, path: str, pattern: re.Pattern[str]) -> list[str]:
        """Names of the folders in a folder that match, as they are now."""
        with self._asking(path):
            self._files.invalidate_cache()
            entries = self._files.ls(f"{self._root}/{path}" if path else self._root, detail=True)
        names = [entry["name"].rstrip("/").rpartition("/")[2] for entry in entries if entry["type"] == "directory"]
        return sorted(name for name in names if pattern.fullmatch(name))

    def mark(self, path: str) -> Mark:
        """Empty if there is no such file."""
        with self._asking(path):
            try:
                info = self._files.info(f"{self._root}/{path}")
            except FileNotFoundError:
                return ()
        return (info.get("size"), *(info.get(name) for name in MARKS))

    def read(self, path: str) -> bytes:
        """The content of a file."""
        with self._asking(path):
            content: bytes = self._files.cat_file(f"{self._root}/{path}")
        return content

    def download(self, path: str, digest: str, target: Path) -> None:
        """Write a file to `target`, whole, or not at all if its SHA-256 is another one."""
        with new_file(target) as partial, self._asking(path):
            self._files.get_file(f"{self._root}/{path}", str(partial))
            if sha256(partial) != digest:
                raise BnfoldError(f"{self}/{path}: is not what the manifest says; publish the version again")

    @contextmanager
    def _asking(self, path: str) -> Iterator[None]:
        """Turn what the file system raises, which may be anything, into `BnfoldError`."""
        where = "/".join(filter(None, (str(self), path)))
        try:
            yield
        except BnfoldError:
            raise
        except FileNotFoundError as error:
            raise BnfoldError(f"{where}: is not there") from error
        except Exception as error:
            raise BnfoldError(f"{where}: cannot be read ({type(error).__name__}: {first_line(error)})") from error
