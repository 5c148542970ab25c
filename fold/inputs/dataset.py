"""A data set on disk, read batch by batch: an `.npz`, or a folder of `.npz` files and images. One file is in
memory at a time.

Files, and the rows in each file, are shuffled by a seed: data sorted by class must not give batches of one class. The
sizes of batches differ by at most one row: statistics of a small last batch would be unreliable.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fold.arrays import Arrays, join_rows
from fold.artifact import Preprocessing
from fold.errors import BnfoldError
from fold.inputs.given import input_files, is_image, read_file


@dataclass(frozen=True)
class DataSet:
    """Files with their numbers of rows. An image is one float32 row of the input that `preprocessing` names."""

    path: Path
    files: tuple[Path, ...]
    rows: tuple[int, ...]
    preprocessing: Preprocessing | None
    batch_size: int
    seed: int

    @property
    def samples(self) -> int:
        return sum(self.rows)

    @property
    def sizes(self) -> list[int]:
        """Rows of each batch: at most `batch_size`, and no two differ by more than one."""
        count = -(-self.samples // self.batch_size)
        return [self.samples // count + (position < self.samples % count) for position in range(count)]

    def batches(self) -> Iterator[Arrays]:
        """Every row once, shuffled by the seed. The order is the same at each call."""
        sizes = iter(self.sizes)
        wanted = next(sizes)
        waiting: list[Arrays] = []
        for arrays in self._shuffled():
            start, rows = 0, _rows(arrays)
            while rows - start >= wanted:
                waiting.append(_slice(arrays, start, start + wanted))
                yield join_rows(waiting)
                start += wanted
                wanted, waiting = next(sizes, self.samples), []
            waiting.append(_slice(arrays, start, rows))
            wanted -= rows - start

    def _shuffled(self) -> Iterator[Arrays]:
        generator = np.random.default_rng(self.seed)
        for position in generator.permutation(len(self.files)):
            order = generator.permutation(self.rows[position])
            arrays = read_file(self.files[position], self.preprocessing, "FP32")
            yield {name: array[order] for name, array in arrays.items()}


def open_dataset(
    path: Path,
    preprocessing: Preprocessing | None,
    *,
    batch_size: int,
    seed: int = 0,
    check: Callable[[Arrays], None] = lambda arrays: None,
) -> DataSet:
    """Check every `.npz` before the first batch, because a pass over the data can take hours.

    `check` is called with the arrays of each file. Raises `BnfoldError` that names the file if its arrays have no
    common number of rows, contain values that are not finite, or differ from those of the other files.
    """
    files = input_files(path)
    rows, kinds = [], {}
    for file in files:
        if is_image(file):
            rows.append(1)
            continue
        arrays = read_file(file, preprocessing, "FP32")
        rows.append(_check_arrays(file, arrays))
        try:
            check(arrays)
        except BnfoldError as error:
            raise BnfoldError(f"{file}: {error}") from error
        kinds[file] = {name: (array.shape[1:], array.dtype) for name, array in arrays.items()}
    if images := [file for file in files if is_image(file)]:
        if preprocessing is None:
            raise BnfoldError(
                f"{images[0]}: is an image, and the model has no preprocessing; give --preprocessing FILE"
            )
        first = read_file(images[0], preprocessing, "FP32")
        kinds[images[0]] = {name: (array.shape[1:], array.dtype) for name, array in first.items()}
    _check_alike(kinds)
    return DataSet(path, tuple(files), tuple(rows), preprocessing, batch_size, seed)


def _check_arrays(file: Path, arrays: Arrays) -> int:
    counts = {array.shape[0] if array.ndim else None for array in arrays.values()}
    if len(counts) != 1 or counts <= {None, 0}:
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in arrays.items()) or "none"
        raise BnfoldError(f"{file}: its arrays ({shapes}) have no common number of rows; give one row for each sample")
    for name, array in arrays.items():
        if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
            row = int(np.flatnonzero(~np.isfinite(array.reshape(len(array), -1)).all(axis=1))[0])
            raise BnfoldError(f"{file}: {name!r} has values that are not finite in row {row}; expected finite numbers")
    return len(next(iter(arrays.values())))


def _check_alike(kinds: "dict[Path, dict[str, tuple[tuple[int, ...], np.dtype[np.generic]]]]") -> None:
    first = next(iter(kinds))
    for file, kind in kinds.items():
        if kind != kinds[first]:
            this, that = (
                ", ".join(f"{name} {dtype}{list(shape)}" for name, (shape, dtype) in one.items())
                for one in (kind, kinds[first])
            )
            raise BnfoldError(
                f"{file}: has {this}, while {first.name} has {that}; expected the same names, shapes and types in all"
            )


def _slice(arrays: Arrays, start: int, stop: int) -> Arrays:
    return {name: array[start:stop] for name, array in arrays.items()}


def _rows(arrays: Arrays) -> int:
    return len(next(iter(arrays.values())))
