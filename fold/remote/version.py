"""A version of a model, in a folder of this machine or behind a URL."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fold.artifact import VERSION_PATTERN, ModelVersion, read_version, version_folder
from fold.errors import BnfoldError
from fold.remote.cache import Cache
from fold.remote.store import Store, is_url, without_credentials

Place = str | os.PathLike[str]
"""A path, or a URL."""


def open_version(place: Place) -> ModelVersion:
    """`REPOSITORY/NAME`, its newest version, or `REPOSITORY/NAME/VERSION`; every digest is checked.

    What a URL names is downloaded, unless it is in the cache, where it stays as long as what is returned. Raises
    `BnfoldError`.
    """
    return _download(place) if is_url(place) else read_version(version_folder(Path(place)))


@contextmanager
def local(place: Place) -> Iterator[Path]:
    """The folder of a version behind a URL, which stays in the cache until the block ends; any other place as it is."""
    version = open_version(place) if is_url(place) else None
    yield Path(place) if version is None else version.path


def named(place: Place) -> str:
    """How a place is shown: of a URL without its credentials."""
    return without_credentials(place) if is_url(place) else str(Path(place))


def _download(url: str) -> ModelVersion:
    store = Store(url)
    if not store.mark("manifest.json"):
        versions = store.folders("", VERSION_PATTERN)
        if not versions:
            raise BnfoldError(
                f"{store}: holds no version of a model; expected the URL of REPOSITORY/NAME or REPOSITORY/NAME/VERSION"
            )
        store = Store(f"{store.url}/{max(versions, key=int)}")
    content = store.read("manifest.json")
    return Cache.of_environment().read(store.url, content, store.download)
