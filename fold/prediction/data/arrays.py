"""Rows of `.npy` and `.npz` files, which may be larger than memory."""

import os
import zipfile
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.lib import format as npy

from fold.artifact import Manifest
from fold.errors import BnfoldError, first_line
from fold.prediction.data.chunk import Chunk, Column, Wanted, check_column

if TYPE_CHECKING:
    import pyarrow as pa

_READERS: dict[tuple[int, int], Any] = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


class NpyRows:
    """The rows of an `.npy`, which is mapped into memory while it is read."""

    id_type = None

    def __init__(self, path: Path, wanted: Wanted) -> None:
        self.paths, self._manifest = (path,), wanted.manifest
        self._input = wanted.only_input(str(path))
        array = self._open()
        if not array.ndim:
            raise BnfoldError(f"{path}: holds a single number; expected an array with a row for each sample")
        self.rows = len(array)
        check_column(self._input, array.shape[1:], array.dtype, str(path))

    def read(self, start: int, stop: int) -> Chunk:
        values = np.array(self._open()[start:stop])
        return _chunk(self.paths[0], start, stop, None, {self._input.name: Column(values)}, self._manifest)

    def _open(self) -> np.ndarray:
        try:
            array = np.load(self.paths[0], mmap_mode="r", allow_pickle=False)
        except Exception as error:  # numpy raises many types for a damaged file
            raise BnfoldError(f"{self.paths[0]}: is not an .npy of numbers ({first_line(error)})") from error
        if not isinstance(array, np.ndarray):
            raise BnfoldError(f"{self.paths[0]}: is no .npy; name it .npz if it is one")
        return array


class NpzRows:
    """The rows of the arrays in an `.npz`, which are unpacked as they are read."""

    def __init__(self, path: Path, wanted: Wanted) -> None:
        self.paths, self._wanted = (path,), wanted
        self._members: dict[str, _Member] = {}
        self._names = tuple(dict.fromkeys((*wanted.columns.values(), *filter(None, [wanted.id_column]))))
        opened = self._open()
        for spec in wanted.manifest.inputs:
            column = wanted.columns[spec.name]
            check_column(spec, opened[column].shape[1:], opened[column].dtype, f"{path}: array {column!r}")
        counts = {name: member.shape[0] for name, member in opened.items()}
        if len(set(counts.values())) > 1:
            found = ", ".join(f"{name} {count}" for name, count in counts.items())
            raise BnfoldError(f"{path}: its arrays differ in their number of rows ({found})")
        self.rows = next(iter(counts.values()))
        self.id_type = None
        if wanted.id_column is not None:
            member = opened[wanted.id_column]
            self.id_type = _ids(np.empty((0, *member.shape[1:]), member.dtype), path).type

    def read(self, start: int, stop: int) -> Chunk:
        if not self._members:
            self._members = self._open()
        try:
            arrays = {name: member.read(start, stop) for name, member in self._members.items()}
        except Exception as error:  # zipfile and zlib raise many types for a damaged file
            raise BnfoldError(f"{self.paths[0]}: row {start}: cannot be read ({first_line(error)})") from error
        if stop == self.rows:
            self._members = {}
        columns = {name: Column(arrays[column]) for name, column in self._wanted.columns.items()}
        ids = None if self._wanted.id_column is None else _ids(arrays[self._wanted.id_column], self.paths[0])
        return _chunk(self.paths[0], start, stop, ids, columns, self._wanted.manifest)

    def _open(self) -> "dict[str, _Member]":
        path = self.paths[0]
        try:
            with zipfile.ZipFile(path) as file:
                held = [name.removesuffix(".npy") for name in file.namelist()]
                missing = next((name for name in self._names if name not in held), None)
                if missing is None:
                    return {name: _Member(file, name) for name in self._names}
        except Exception as error:  # numpy, zipfile and zlib raise many types for a damaged file
            raise BnfoldError(f"{path}: is not an .npz of plain arrays ({first_line(error)})") from error
        raise BnfoldError(
            f"{path}: holds no array {missing!r}, only {', '.join(held)}; name it by --column INPUT=ARRAY"
        )


class _Member:
    """One array of an `.npz`, read from its first row on."""

    def __init__(self, file: zipfile.ZipFile, name: str) -> None:
        self._stream = file.open(f"{name}.npy")
        version = npy.read_magic(self._stream)
        self.shape, fortran, self.dtype = _READERS[version](self._stream)
        if self.dtype.hasobject or not self.shape:
            raise ValueError(f"{name} is {'an array of objects' if self.dtype.hasobject else 'a single value'}")
        self._columns_first = fortran and len(self.shape) > 1
        self._whole: np.ndarray | None = None
        self._at = 0

    def read(self, start: int, stop: int) -> np.ndarray:
        if self._columns_first:  # its rows do not lie one after another
            if self._whole is None:
                self._whole = np.frombuffer(self._stream.read(), self.dtype).reshape(self.shape[::-1]).T
            return self._whole[start:stop]
        row = prod(self.shape[1:]) * self.dtype.itemsize
        self._stream.seek((start - self._at) * row, os.SEEK_CUR)
        content = self._stream.read((stop - start) * row)
        self._at = stop
        return np.frombuffer(content, self.dtype).reshape(stop - start, *self.shape[1:])


def _chunk(
    path: Path, start: int, stop: int, ids: "pa.Array | None", columns: Mapping[str, Column], manifest: Manifest
) -> Chunk:
    return Chunk.of([str(path)] * (stop - start), np.arange(start, stop), ids, columns, manifest)


def _ids(array: np.ndarray, path: Path) -> "pa.Array":
    """Raises `BnfoldError` for an array that holds no ids."""
    import pyarrow as pa  # noqa: PLC0415  # an extra

    try:
        return pa.array(array)
    except (pa.ArrowException, ValueError) as error:
        raise BnfoldError(f"{path}: the array for --id holds no ids ({first_line(error)})") from error
