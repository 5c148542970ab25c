"""The columns of what is written: of each row its file, number and id, then classes or whole outputs."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import pyarrow as pa

from fold.arrays import Arrays
from fold.artifact import DTYPES, Manifest, TensorSpec
from fold.errors import BnfoldError
from fold.prediction.classes import best_classes
from fold.prediction.data import Chunk
from fold.prediction.model import class_output

ERROR = "error"
SHAPE = "shape"
"""Key in the metadata of a column: the shape of the tensor in each row, such as `512,7,7`."""
CLASSES = (("label", pa.string()), ("index", pa.int32()), ("probability", pa.float64()))


@dataclass(frozen=True)
class Answers:
    """The columns of a run. `top_k` is 0 without classes; classes are values, or lists of `top_k` values above 1."""

    schema: pa.Schema
    outputs: tuple[TensorSpec, ...]
    scores: str | None
    labels: Sequence[str] | None
    top_k: int

    @classmethod
    def of(cls, manifest: Manifest, *, id_type: pa.DataType | None, top_k: int | None, outputs: bool) -> "Answers":
        """`top_k` None is 1 for a model with labels for its one output, unless whole `outputs` are wanted, which are
        written of any other model. Raises `BnfoldError` for what the model does not have."""
        if top_k is None:
            labels = manifest.labels
            labelled = labels is not None and [spec.shape[1:] for spec in manifest.outputs] == [(len(labels),)]
            top_k = int(labelled and not outputs)
            outputs = outputs or not labelled
        scores = class_output(manifest) if top_k else None
        fields = [pa.field("file", pa.string()), pa.field("row", pa.int64())]
        fields += [] if id_type is None else [pa.field("id", id_type)]
        if top_k:
            fields += [pa.field(name, kind if top_k == 1 else pa.list_(kind)) for name, kind in CLASSES]
        taken = {field.name for field in fields} | {ERROR}
        for spec in manifest.outputs if outputs else ():
            if spec.name in taken:
                raise BnfoldError(f"output {spec.name!r} has the name of another column; leave --outputs out")
            fields.append(_field(spec))
        return cls(pa.schema(fields), manifest.outputs if outputs else (), scores, manifest.labels, top_k)

    @property
    def error_schema(self) -> pa.Schema:
        """That of `errors.parquet`: the same columns, and why there is no answer."""
        return self.schema.append(pa.field(ERROR, pa.string()))

    def table(self, chunk: Chunk, rows: np.ndarray, outputs: Arrays) -> pa.Table:
        """The answers for the rows of a chunk at the positions `rows`."""
        columns = self._origin(chunk, rows)
        if self.scores is not None:
            best = best_classes(outputs[self.scores], self.labels, self.top_k)
            for name, kind in CLASSES:
                values = getattr(best, name)
                flat = pa.array(values.reshape(-1), kind)
                columns.append(flat if self.top_k == 1 else _lists(flat, values.shape[1], len(rows)))
        columns += [_column(spec, outputs[spec.name], self.schema.field(spec.name).type) for spec in self.outputs]
        return pa.Table.from_arrays(columns, schema=self.schema)

    def error_table(self, chunk: Chunk, errors: dict[int, str]) -> pa.Table:
        """The rows of a chunk at these positions, without answers."""
        origin = self._origin(chunk, np.array(sorted(errors), np.int64))
        blank = [pa.nulls(len(errors), field.type) for field in list(self.schema)[len(origin) :]]
        texts = pa.array([errors[position] for position in sorted(errors)], pa.string())
        return pa.Table.from_arrays([*origin, *blank, texts], schema=self.error_schema)

    @staticmethod
    def _origin(chunk: Chunk, rows: np.ndarray) -> list[pa.Array]:
        columns = [pa.array([chunk.file[row] for row in rows], pa.string()), pa.array(chunk.row[rows])]
        return columns if chunk.ids is None else [*columns, chunk.ids.take(pa.array(rows))]


def _field(spec: TensorSpec) -> pa.Field:
    if -1 in spec.shape[1:]:
        raise BnfoldError(f"output {spec.name!r}: has free sizes {list(spec.shape)}, which no column holds")
    kind = {"BYTES": pa.string(), "BF16": pa.float32()}.get(spec.datatype)
    kind = pa.from_numpy_dtype(DTYPES[spec.datatype]) if kind is None else kind
    shape = spec.shape[1:]
    if not shape:
        return pa.field(spec.name, kind)
    return pa.field(spec.name, pa.list_(kind, prod(shape)), metadata={SHAPE: ",".join(map(str, shape))})


def _column(spec: TensorSpec, array: np.ndarray, kind: pa.DataType) -> pa.Array:
    flat = array.reshape(-1).astype(np.float32) if spec.datatype == "BF16" else array.reshape(-1)
    if not pa.types.is_fixed_size_list(kind):
        return pa.array(flat, kind)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat, kind.value_type), type=kind)


def _lists(flat: pa.Array, size: int, rows: int) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array(np.arange(rows + 1) * size, pa.int32()), flat)
