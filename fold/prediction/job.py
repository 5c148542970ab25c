"""`bnfold predict`: a model over a data set, shard by shard, so that a run that was killed goes on where it was.

A thread reads ahead while the model computes. Memory holds a few batches, and answers until they are written.
"""

import hashlib
import json
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from fold.arrays import Arrays, cut_rows, join_rows, row_count
from fold.artifact import DTYPES
from fold.errors import BnfoldError
from fold.prediction.answers import Answers
from fold.prediction.data import Chunk, Source, Wanted, merge_chunks, open_sources
from fold.prediction.model import LoadedModel
from fold.prediction.plan import Shard, plan_shards
from fold.prediction.shards import ShardFolder
from fold.prediction.verification import Verification, Verifier
from fold.serving import DeviceLostError, DeviceMemoryError

CHUNK_BYTES = 4 << 20
"""Inputs that are read at a time, but at least one batch for each run at a time."""
READ_AHEAD = 2
"""Chunks that are read before the model asks for them."""


class RowError(BnfoldError):
    """A row could not be predicted, and the run is strict."""


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
class Summary:
    """All starts together, but for `predicted` and `seconds`, which are rows and time of this one. `failed` counts rows
    that could not be predicted; `verification` is None if no row was to be compared."""

    model: str
    version: str
    digest: str
    device: str
    rows: int
    failed: int
    shards: int
    skipped_shards: int
    predicted: int
    seconds: float
    verification: Verification | None

    def __bool__(self) -> bool:
        """Whether every row was predicted, and all that were compared agree with the reference."""
        return not self.failed and (self.verification is None or bool(self.verification))

    @property
    def message(self) -> str:
        """What was done, in one sentence."""
        text = f"{self.rows:,} rows in {self.shards:,} shards"
        if self.skipped_shards:
            text += f", {self.skipped_shards:,} of which were there"
        if self.predicted:
            text += f"; {self.predicted / self.seconds:,.0f} rows/s"
        text += f"; {self.failed:,} rows failed, see errors.parquet" if self.failed else "; no row failed"
        found = self.verification
        if found is None:
            return text
        wrong = f"{found.errors} errors above their limits and {found.decisions} other decisions"
        text += f"; {found.rows:,} rows were compared with the reference: {'they agree' if found else wrong}"
        return f"{text} (largest error {found.error_ratio:.3g} of its limit)"

    def to_dict(self) -> dict[str, Any]:
        """The JSON of `bnfold predict` (docs/formats.md)."""
        return {**asdict(self), "rows_per_second": self.predicted / self.seconds}


def predict_files(
    model: LoadedModel,
    data: Sequence[str],
    out: Path,
    choices: Choices = Choices(),
    progress: Callable[[int, int], None] = lambda done, rows: None,
) -> Summary:
    """Predict each row of `data`, files, folders and glob patterns, once, and write the answers into the folder `out`.

    Shards that are there already are not computed again. `progress` is told how many rows are done, and how many there
    are. Raises `BnfoldError` for data or a folder that does not fit, `RowError` for the first row that fails if the run
    is strict.
    """
    # 1. The rows, and the shards that they are written in
    started, manifest = time.perf_counter(), model.manifest
    if not manifest.batched:
        raise BnfoldError(f"{model}: has no batch axis, so it takes no rows; fold it without --batch")
    _refuse_inside(out, data)
    sources = open_sources(data, Wanted.of(manifest, choices.columns, choices.id_column))
    answers = Answers.of(manifest, id_type=_id_type(sources), top_k=choices.top_k, outputs=choices.outputs)
    shards = plan_shards([source.rows for source in sources], choices.shard_rows)
    folder = ShardFolder(out, answers, manifest, _digest(sources, choices))
    with folder.locked():
        # 2. What is left to do
        noted = folder.finished()
        left = [shard for shard in shards if shard.number not in noted]
        total, rows_left = (sum(shard.rows for shard in some) for some in (shards, left))
        verifier = Verifier(model, choices.verify) if choices.verify and left else None
        run = _Run(model, answers, verifier, strict=choices.strict, done=total - rows_left)
        progress(total - rows_left, total)
        # 3. Each shard
        with closing(_read_ahead(_chunks(sources, left, _rows_at_a_time(model)))) as chunks:
            for shard in left:
                run.begin(shard)
                folder.write(shard.number, run.tables(chunks, lambda rows: progress(rows, total)), run.noted)
                noted[shard.number] = run.noted()
        # 4. All starts together
        folder.gather_errors()
    found = [Verification(**one["verification"]) for one in noted.values() if one["verification"] is not None]
    return Summary(
        model=manifest.name,
        version=manifest.version,
        digest=manifest.digest,
        device=model.device,
        rows=total,
        failed=sum(one["failed"] for one in noted.values()),
        shards=len(shards),
        skipped_shards=len(shards) - len(left),
        predicted=rows_left,
        seconds=time.perf_counter() - started,
        verification=sum(found, Verification()) if found else None,
    )


class _Run:
    """Predicts one shard after another."""

    def __init__(
        self, model: LoadedModel, answers: Answers, verifier: Verifier | None, *, strict: bool, done: int
    ) -> None:
        """`done` rows were predicted before."""
        self._model, self._answers, self._verifier, self._strict = model, answers, verifier, strict
        self._done = done

    def begin(self, shard: Shard) -> None:
        self._shard, self._failed = shard, 0
        if self._verifier is not None:
            self._verifier.begin(shard.number)

    def noted(self) -> dict[str, Any]:
        """What stands in the file of the shard beside its rows."""
        found = None if self._verifier is None else asdict(self._verifier.found())
        return {"rows": self._shard.rows, "failed": self._failed, "verification": found}

    def tables(self, chunks: Iterator[Chunk], told: Callable[[int], None]) -> Iterator[tuple[pa.Table, pa.Table]]:
        """The answers and the errors of each chunk of the shard. `told` gets the rows that are done, of all shards."""
        end = self._done + self._shard.rows
        while self._done < end:
            chunk = next(chunks)
            yield self._predict(chunk)
            self._done += chunk.rows
            told(self._done)

    def _predict(self, chunk: Chunk) -> tuple[pa.Table, pa.Table]:
        rows = np.array([position for position in range(chunk.rows) if position not in chunk.errors], np.int64)
        outputs, failed = self._answer(chunk.inputs) if rows.size else ({}, {})
        errors = chunk.errors | {int(rows[position]): text for position, text in failed.items()}
        if errors and self._strict:
            position = min(errors)
            raise RowError(f"{chunk.file[position]}: row {chunk.row[position]}: {errors[position]}")
        self._failed += len(errors)
        kept = np.array([position for position in range(len(rows)) if position not in failed], np.int64)
        if not kept.size:
            return self._answers.schema.empty_table(), self._answers.error_table(chunk, errors)
        if self._verifier is not None:
            inputs = {name: array[kept] for name, array in chunk.inputs.items()} if failed else chunk.inputs
            self._verifier.offer(inputs, outputs)
        return self._answers.table(chunk, rows[kept], outputs), self._answers.error_table(chunk, errors)

    def _answer(self, inputs: Arrays) -> tuple[Arrays, dict[int, str]]:
        """The outputs of the rows that have an answer, and why the others have none, by position."""
        outputs, failed = _run_rows(self._model, inputs)
        if self._answers.scores is None or not outputs:
            return outputs, failed
        finite = np.isfinite(outputs[self._answers.scores]).all(axis=1)
        if finite.all():
            return outputs, failed
        ran = [position for position in range(row_count(inputs)) if position not in failed]
        failed |= {ran[position]: "the scores are not finite" for position in np.flatnonzero(~finite)}
        return {name: array[finite] for name, array in outputs.items()}, failed


def _run_rows(model: LoadedModel, inputs: Arrays) -> tuple[Arrays, dict[int, str]]:
    """The outputs of the rows that the model can run, and why it cannot run the others, by position."""
    try:
        return model.run(inputs), {}
    except (DeviceLostError, DeviceMemoryError):
        raise
    except BnfoldError as error:
        rows = row_count(inputs)
        if rows == 1:
            return {}, {0: str(error)}
        half = -(-rows // 2)
        halves = [_run_rows(model, part) for part in cut_rows(inputs, rows, half)]
        found = [outputs for outputs, _ in halves if outputs]
        errors = halves[0][1] | {half + position: text for position, text in halves[1][1].items()}
        return join_rows(found) if found else {}, errors


def _chunks(sources: Sequence[Source], shards: Sequence[Shard], at_a_time: int) -> Iterator[Chunk]:
    """All rows of the shards in order, so many at a time or fewer; no chunk has rows of two shards."""
    for shard in shards:
        waiting: list[Chunk] = []
        for piece in shard.pieces:
            bounds = [*range(piece.start, piece.stop, at_a_time), piece.stop]
            for start, stop in pairwise(bounds):
                chunk = sources[piece.source].read(start, stop)
                if waiting and (
                    sum(one.rows for one in waiting) + chunk.rows > at_a_time or not _alike(chunk, waiting[0])
                ):
                    yield merge_chunks(waiting)
                    waiting = []
                waiting.append(chunk)
        yield merge_chunks(waiting)


def _rows_at_a_time(model: LoadedModel) -> int:
    """Whole batches of about `CHUNK_BYTES` in all: small rows are not worth a step each."""
    batches = model.rows_at_a_time * model.runs_at_a_time
    row = sum(prod(spec.shape[1:]) * DTYPES[spec.datatype].itemsize for spec in model.inputs)
    return batches * max(1, CHUNK_BYTES // (batches * row) if row > 0 else 1)


def _alike(one: Chunk, other: Chunk) -> bool:
    """Whether the rows of both have one shape: free sizes may differ by file."""
    return all(array.shape[1:] == other.inputs[name].shape[1:] for name, array in one.inputs.items())


def _read_ahead(chunks: Iterator[Chunk]) -> Generator[Chunk]:
    """The same chunks, read by a thread before they are asked for."""
    with ThreadPoolExecutor(1, "bnfold reads") as reader:
        waiting = deque(reader.submit(next, chunks, None) for _ in range(READ_AHEAD))
        while (chunk := waiting.popleft().result()) is not None:
            waiting.append(reader.submit(next, chunks, None))
            yield chunk


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
