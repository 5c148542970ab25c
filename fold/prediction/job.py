"""A run over a data set: which rows there are, in which shards, with which columns, and where they are written.

Every process that takes part makes it from the same arguments, and has the same.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from fold.errors import BnfoldError
from fold.prediction.answers import Answers
from fold.prediction.data import Source, Wanted, open_sources
from fold.prediction.model import LoadedModel
from fold.prediction.plan import Shard, plan_shards
from fold.prediction.shards import ShardFolder


@dataclass(frozen=True)
class Choices:
    """What `bnfold predict` was asked for. `columns` are by input; `top_k` and `outputs` are as in `Answers.of`;
    `verify` is the share of rows that are compared with the reference."""

    columns: Mapping[str, str] = field(default_factory=dict)
    id_column: str | None = None
    top_k: int | None = None
    outputs: bool = False
    shard_rows: int = 10_000
    strict: bool = False
    verify: float = 0.0


@dataclass(frozen=True)
class Job:
    """A run over a data set: what was asked for, and what follows from it."""

    data: Sequence[str]
    out: Path
    choices: Choices
    sources: Sequence[Source]
    answers: Answers
    shards: Sequence[Shard]
    folder: ShardFolder

    @classmethod
    def of(cls, model: LoadedModel, data: Sequence[str], out: Path, choices: Choices) -> "Job":
        """Opens the data. Raises `BnfoldError` for data or a folder that does not fit."""
        manifest = model.manifest
        if not manifest.batched:
            raise BnfoldError(f"{model}: has no batch axis, so it takes no rows; fold it without --batch")
        _refuse_inside(out, data)
        sources = open_sources(data, Wanted.of(manifest, choices.columns, choices.id_column))
        answers = Answers.of(manifest, id_type=_id_type(sources), top_k=choices.top_k, outputs=choices.outputs)
        shards = plan_shards([source.rows for source in sources], choices.shard_rows)
        folder = ShardFolder(out, answers, manifest, _digest(sources, choices))
        return cls(data, out, choices, sources, answers, shards, folder)


def _digest(sources: Sequence[Source], choices: Choices) -> str:
    """Differs if the rows of a shard, or the columns that are written of them, may be other ones."""
    files = []
    for source in sources:
        found = [(str(path), path.stat()) for path in source.paths]
        files.append([source.rows, *((path, stat.st_size, stat.st_mtime_ns) for path, stat in found)])
    asked = [dict(choices.columns), choices.id_column, choices.top_k, choices.outputs, choices.shard_rows]
    return hashlib.sha256(json.dumps([files, asked]).encode()).hexdigest()


def _id_type(sources: Sequence[Source]) -> pa.DataType | None:
    kinds = {source.id_type for source in sources}
    if len(kinds) > 1:
        raise BnfoldError(f"--id: the files hold ids of different types, {', '.join(map(str, kinds))}")
    return kinds.pop()


def _refuse_inside(out: Path, data: Sequence[str]) -> None:
    """Raise `BnfoldError` if what is written would be data of the next start."""
    for text in data:
        if Path(text).is_dir() and out.resolve().is_relative_to(Path(text).resolve()):
            raise BnfoldError(f"{out}: lies in the data, {text}; choose another --out")
