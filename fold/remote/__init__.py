"""Model directories behind a URL: s3://, gs://, https://, and what else fsspec opens."""

from fold.remote.cache import DEFAULT_BYTES, Cache, default_folder
from fold.remote.store import Mark, Store, is_url
from fold.remote.version import Place, local, named, open_version

__all__ = [
    "DEFAULT_BYTES",
    "Cache",
    "Mark",
    "Place",
    "Store",
    "default_folder",
    "is_url",
    "local",
    "named",
    "open_version",
]
