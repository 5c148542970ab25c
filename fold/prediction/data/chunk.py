"""Rows that were read from a data set: what goes into a run, and which of them could not be read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from fold.arrays import Arrays, join_rows
from fold.artifact import Manifest, TensorSpec
from fold.errors import BnfoldError
from fold.inputs import as_datatype

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Wanted:
    """What a model takes from a data set: the column of each input, and the column of ids, if there is one."""

    manifest: Manifest
    columns: Mapping[str, str]
    id_column: str | None

    @classmethod
    def of(cls, manifest: Manifest, columns: Mapping[str, str], id_column: str | None) -> "Wanted":
        """`columns` are by input; any other input has the column of its own name. Raises `BnfoldError`."""
        names = [spec.name for spec in manifest.inputs]
        for name in columns:
            if name not in names:
                known = ", ".join(names)
                raise BnfoldError(f"--column {name}={columns[name]}: the model has no input {name!r}; it takes {known}")
        return cls(manifest, {name: columns.get(name, name) for name in names}, id_column)

    def only_input(self, path: str) -> TensorSpec:
        """The input of a file whose array has no name. Raises `BnfoldError`."""
        self.refuse_id(path)
        if len(self.manifest.inputs) != 1:
            names = ", ".join(self.columns)
            raise BnfoldError(f"{path}: holds an array without a name, and the model takes {names}; give an .npz")
        return self.manifest.inputs[0]

    def refuse_id(self, path: str) -> None:
        """Raise `BnfoldError` if ids are wanted from a file that has no columns."""
        if self.id_column is not None:
            raise BnfoldError(f"{path}: has no column {self.id_column!r} for --id; leave --id out for such files")


@dataclass(frozen=True)
class Column:
    """Values of an input for consecutive rows, without those rows that `errors`, by position, say could not be read."""

    values: np.ndarray
    errors: dict[int, str] = field(default_factory=dict)

    def fitted(self, spec: TensorSpec) -> "Column":
        """In the datatype of the input. A row whose values do not fit into it counts as one that cannot be read."""
        try:
            return Column(as_datatype(spec.name, self.values, spec.datatype), self.errors)
        except BnfoldError:
            errors, kept = dict(self.errors), []
            rows = len(self.values) + len(errors)
            for position, value in zip((p for p in range(rows) if p not in self.errors), self.values, strict=True):
                try:
                    kept.append(as_datatype(spec.name, value[None], spec.datatype))
                except BnfoldError as error:
                    errors[position] = str(error)
            none = as_datatype(spec.name, self.values[:0], spec.datatype)
            return Column(np.concatenate([none, *kept]), errors)


@dataclass(frozen=True)
class Chunk:
    """Consecutive rows of a data set: for each its file, its number there, and its id if ids are wanted.

    `inputs` hold the rows that could be read, in order; `errors` says why the others could not, by position.
    """

    file: list[str]
    row: np.ndarray
    ids: "pa.Array | None"
    inputs: Arrays
    errors: dict[int, str]

    @classmethod
    def of(
        cls, file: list[str], row: np.ndarray, ids: "pa.Array | None", columns: Mapping[str, Column], manifest: Manifest
    ) -> "Chunk":
        """`columns` are by input, of the types and shapes that were checked when the file was opened."""
        fitted = {spec.name: columns[spec.name].fitted(spec) for spec in manifest.inputs}
        errors = {position: text for column in fitted.values() for position, text in column.errors.items()}
        inputs = {}
        for name, column in fitted.items():
            own = (position for position in range(len(file)) if position not in column.errors)
            keep = [position not in errors for position in own]
            inputs[name] = column.values if all(keep) else column.values[keep]
        return cls(file, row, ids, inputs, errors)

    @property
    def rows(self) -> int:
        return len(self.file)


def merge_chunks(chunks: Sequence[Chunk]) -> Chunk:
    """One chunk of the rows of all, in order; their inputs have one shape beside the batch."""
    if len(chunks) == 1:
        return chunks[0]
    errors: dict[int, str] = {}
    before, ids = 0, None
    for chunk in chunks:
        errors |= {before + position: text for position, text in chunk.errors.items()}
        before += chunk.rows
    if chunks[0].ids is not None:
        import pyarrow as pa  # noqa: PLC0415  # imported already, if there are ids

        ids = pa.concat_arrays([chunk.ids for chunk in chunks])
    return Chunk(
        [name for chunk in chunks for name in chunk.file],
        np.concatenate([chunk.row for chunk in chunks]),
        ids,
        join_rows([chunk.inputs for chunk in chunks]),
        errors,
    )


def check_column(spec: TensorSpec, shape: Sequence[int], dtype: np.dtype[np.generic], where: str) -> None:
    """Raise `BnfoldError` that begins with `where` unless rows of this shape and type are rows of the input."""
    expected = spec.shape[1:]
    if len(shape) != len(expected) or any(want not in (-1, got) for want, got in zip(expected, shape, strict=True)):
        raise BnfoldError(f"{where}: has rows of shape {list(shape)}, input {spec.name!r} takes {list(expected)}")
    check_type(spec, dtype, where)


def check_type(spec: TensorSpec, dtype: np.dtype[np.generic], where: str) -> None:
    """The same for the type alone."""
    try:
        as_datatype(spec.name, np.empty(0, dtype), spec.datatype)
    except BnfoldError as error:
        raise BnfoldError(f"{where}: {error}") from error
