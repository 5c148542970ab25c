"""Rows of Parquet files, read one row group after another.

A column is the input of its name: numbers, lists of numbers (also nested, or Arrow's tensors) with as many values as
the input has in a row, texts, or encoded images, also as Hugging Face writes them (`{bytes, path}`).
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from math import prod
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fold.artifact import TensorSpec
from fold.errors import BnfoldError, first_line
from fold.prediction.data.chunk import Chunk, Column, Wanted, check_type
from fold.prediction.data.images import image_column
from fold.prediction.model import image_input

BATCH_BYTES = 16 << 20
"""How much of a row group is unpacked at a time."""


class TableRows:
    """The rows of one Parquet file."""

    def __init__(self, path: Path, wanted: Wanted, pool: ThreadPoolExecutor) -> None:
        self.paths, self._wanted, self._pool = (path,), wanted, pool
        with self._open() as file:
            self.rows, schema = file.metadata.num_rows, file.schema_arrow
            groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
            unpacked = sum(group.total_byte_size for group in groups)
        self._starts: list[int] = np.cumsum([0, *(group.num_rows for group in groups)]).tolist()
        self._batch_rows = max(1, BATCH_BYTES * self.rows // max(1, unpacked))
        self._names = list(dict.fromkeys((*wanted.columns.values(), *filter(None, [wanted.id_column]))))
        for name in self._names:
            if schema.get_field_index(name) < 0:
                known = ", ".join(schema.names)
                raise BnfoldError(f"{path}: has no column {name!r}; it has {known}; see --column INPUT=COLUMN and --id")
        self.id_type = None if wanted.id_column is None else _plain(schema.field(wanted.id_column).type)
        for spec in wanted.manifest.inputs:
            column = wanted.columns[spec.name]
            self._check(spec, _plain(schema.field(column).type), f"{path}: column {column!r}")
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._left: pa.RecordBatch | None = None
        self._at = self.rows

    def read(self, start: int, stop: int) -> Chunk:
        table = pa.Table.from_batches(list(self._slices(start, stop)))
        where, columns = f"{self.paths[0]}: row", {}
        for spec in self._wanted.manifest.inputs:
            array = _array(table.column(self._wanted.columns[spec.name]))
            columns[spec.name] = self._column(spec, array, where, start)
        ids = None if self._wanted.id_column is None else _array(table.column(self._wanted.id_column))
        file, row = [str(self.paths[0])] * table.num_rows, np.arange(start, stop)
        return Chunk.of(file, row, ids, columns, self._wanted.manifest)

    def _open(self) -> pq.ParquetFile:
        try:
            return pq.ParquetFile(self.paths[0])
        except (pa.ArrowException, OSError) as error:
            raise BnfoldError(f"{self.paths[0]}: is no Parquet file ({first_line(error)})") from error

    def _slices(self, start: int, stop: int) -> Iterator[pa.RecordBatch]:
        """Rows `start` to `stop` as they are stored. A row group that was begun is not unpacked again."""
        group = int(np.searchsorted(self._starts, start, side="right")) - 1
        if start < self._at or self._starts[group] > self._at:
            file = self._open()
            left = list(range(group, len(self._starts) - 1))
            self._batches = file.iter_batches(self._batch_rows, row_groups=left, columns=self._names)
            self._at, self._left = self._starts[group], None
        while self._at < stop:
            batch = self._next() if self._left is None else self._left
            skipped = max(0, min(start - self._at, batch.num_rows))
            taken = min(batch.num_rows, stop - self._at) - skipped
            if taken > 0:
                yield batch.slice(skipped, taken)
            used = skipped + max(taken, 0)
            self._left = batch.slice(used) if used < batch.num_rows else None
            self._at += used

    def _next(self) -> pa.RecordBatch:
        try:
            return next(self._batches)
        except (StopIteration, pa.ArrowException, OSError) as error:
            raise BnfoldError(f"{self.paths[0]}: row {self._at}: cannot be read ({first_line(error)})") from error

    def _check(self, spec: TensorSpec, kind: pa.DataType, where: str) -> None:
        """Raise `BnfoldError` for a column that can be no input."""
        if self._is_image(spec, kind):
            return
        if -1 in spec.shape[1:]:
            raise BnfoldError(f"{where}: input {spec.name!r} has free sizes, which a column does not give; use .npy")
        leaf = _leaf(kind)
        try:
            dtype = np.dtype(leaf.to_pandas_dtype())
        except (NotImplementedError, TypeError) as error:
            raise BnfoldError(f"{where}: is {kind}, input {spec.name!r} takes {spec.datatype}") from error
        text = pa.types.is_string(leaf) or pa.types.is_large_string(leaf)
        check_type(spec, np.dtype(np.str_) if text else dtype, where)

    def _is_image(self, spec: TensorSpec, kind: pa.DataType) -> bool:
        how = self._wanted.manifest.preprocessing
        return how is not None and how.input == spec.name and _encoded(kind)

    def _column(self, spec: TensorSpec, array: pa.Array, where: str, start: int) -> Column:
        if not self._is_image(spec, array.type):
            return tensor_column(array, spec.shape[1:])
        encoded = pc.struct_field(array, "bytes") if pa.types.is_struct(array.type) else array
        images = [(one or b"", f"{where} {start + position}") for position, one in enumerate(encoded.to_pylist())]
        return image_column(self._pool, images, *image_input(self._wanted.manifest, where))


def tensor_column(array: pa.Array, shape: tuple[int, ...]) -> Column:
    """The rows of a column as tensors of `shape`. A row with a null, or with another number of values, is an error."""
    rows, missing = len(array), array.is_null().to_numpy(zero_copy_only=False)
    at = np.arange(rows + 1)
    values = array.storage if isinstance(array, pa.ExtensionArray) else array
    while True:
        kind = values.type
        if pa.types.is_fixed_size_list(kind):
            at = (at + values.offset) * kind.list_size
        elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
            at = values.offsets.to_numpy()[at].astype(np.int64)
        else:
            break
        values = values.values
    values = values.slice(at[0], at[-1] - at[0])
    at -= at[0]
    nulls = np.concatenate([[0], np.cumsum(values.is_null().to_numpy(zero_copy_only=False))])
    counts, holes, wanted = np.diff(at), np.diff(nulls[at]), prod(shape)
    errors = {}
    for position in np.flatnonzero(missing | (holes > 0) | (counts != wanted)).tolist():
        if missing[position] or holes[position]:
            errors[position] = "has a null"
        else:
            errors[position] = f"has {counts[position]} values, expected {wanted}, shape {list(shape)}"
    flat = _numbers(values)
    if errors:
        good = [position for position in range(rows) if position not in errors]
        flat = np.concatenate([flat[:0], *(flat[at[position] : at[position + 1]] for position in good)])
    return Column(flat.reshape(rows - len(errors), *shape), errors)


def _numbers(values: pa.Array) -> np.ndarray:
    if values.null_count:
        empty = "" if pa.types.is_string(values.type) or pa.types.is_large_string(values.type) else 0
        values = pc.fill_null(values, False if pa.types.is_boolean(values.type) else empty)
    found: np.ndarray = values.to_numpy(zero_copy_only=False)
    return found


def _array(column: pa.ChunkedArray) -> pa.Array:
    """A column in one piece, without a dictionary, which is another one in each row group."""
    return column.cast(_plain(column.type)).combine_chunks()


def _plain(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _leaf(kind: pa.DataType) -> pa.DataType:
    kind = kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind
    while pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        kind = kind.value_type
    return kind


def _encoded(kind: pa.DataType) -> bool:
    """Whether a column may hold encoded images."""
    if pa.types.is_struct(kind):
        return bool(kind.get_field_index("bytes") >= 0)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))
