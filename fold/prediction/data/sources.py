"""Data sets on disk: files, folders and patterns become sources, which read the rows that they are asked for."""

import glob
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from fold.errors import BnfoldError
from fold.inputs import input_files, is_image
from fold.prediction.data.arrays import NpyRows, NpzRows
from fold.prediction.data.chunk import Chunk, Wanted
from fold.prediction.data.images import ImageRows
from fold.runtime import cores

if TYPE_CHECKING:
    import pyarrow as pa

TABLES = (".parquet", ".pq")
KINDS = (".npy", ".npz", *TABLES)


class Source(Protocol):
    """A file, or images one after another, with their number of rows. Rows are read in ascending order."""

    rows: int
    id_type: "pa.DataType | None"

    @property
    def paths(self) -> Sequence[Path]: ...

    def read(self, start: int, stop: int) -> Chunk:
        """Rows `start` to `stop`. Raises `BnfoldError` for a file that cannot be read any more."""


def open_sources(data: Sequence[str], wanted: Wanted) -> list[Source]:
    """The sources of files, folders and glob patterns, in the order of `data` and within it by name.

    Raises `BnfoldError` that names the file for one that cannot be read, that holds nothing for the model, or that is
    given twice, and if there are no rows.
    """
    files = [file for text in data for path in _expanded(text) for file in input_files(path, KINDS)]
    twice = next((file for file, count in Counter(file.resolve() for file in files).items() if count > 1), None)
    if twice is not None:
        raise BnfoldError(f"{twice}: is given twice; each row is predicted once")
    pool = ThreadPoolExecutor(cores(), "bnfold reads images")
    sources: list[Source] = []
    for images, group in groupby(files, is_image):
        if images:
            sources.append(ImageRows(list(group), wanted, pool))
        else:
            sources += [_open(file, wanted, pool) for file in group]
    if not any(source.rows for source in sources):
        raise BnfoldError(f"{', '.join(data)}: holds no rows")
    return sources


def _open(path: Path, wanted: Wanted, pool: ThreadPoolExecutor) -> Source:
    kind = path.suffix.lower()
    if not path.is_file():
        raise BnfoldError(f"{path}: no such file or folder")
    if kind in TABLES:
        from fold.prediction.data.tables import TableRows  # noqa: PLC0415  # needs an extra

        return TableRows(path, wanted, pool)
    if kind == ".npy":
        return NpyRows(path, wanted)
    if kind == ".npz":
        return NpzRows(path, wanted)
    raise BnfoldError(f"{path}: is no data; expected {', '.join(KINDS)} or an image")


def _expanded(text: str) -> list[Path]:
    """The paths that match a glob pattern, or the one path that `text` is."""
    if Path(text).exists() or not glob.has_magic(text):
        return [Path(text)]
    found = sorted(glob.glob(text, recursive=True))
    if not found:
        raise BnfoldError(f"{text}: matches no file")
    return [Path(path) for path in found]
