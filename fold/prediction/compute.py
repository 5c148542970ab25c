"""Computes shards one after another, in this process. A thread reads ahead while the model computes.

Memory holds a few batches, and answers until they are written.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict
from itertools import pairwise
from math import prod

import numpy as np
import pyarrow as pa

from fold.arrays import Arrays, cut_rows, join_rows, row_count
from fold.artifact import DTYPES
from fold.errors import BnfoldError
from fold.prediction.data import Chunk, Source, merge_chunks
from fold.prediction.job import Job
from fold.prediction.model import LoadedModel
from fold.prediction.plan import Shard
from fold.prediction.shards import Noted
from fold.prediction.verification import Verifier
from fold.serving import DeviceLostError, DeviceMemoryError

CHUNK_BYTES = 4 << 20
"""Inputs that are read at a time, but at least one batch for each run at a time."""
READ_AHEAD = 2
"""Chunks that are read before the model asks for them."""

Told = Callable[[int], None]
"""Is told of rows that were done."""


class RowError(BnfoldError):
    """A row could not be predicted, and the run is strict."""


class ShardRun:
    """Computes and commits shards of a run, any of them, at best in ascending order."""

    def __init__(self, model: LoadedModel, job: Job) -> None:
        """Raises `BnfoldError` if rows are to be compared with a reference that cannot be loaded."""
        self._model, self._job = model, job
        self._verifier = Verifier(model, job.choices.verify) if job.choices.verify else None

    def compute(self, shards: Sequence[Shard], told: Told = lambda rows: None) -> Generator[Noted]:
        """What was noted of each shard, when it is committed. Raises `RowError` for the first row that fails if the run
        is strict."""
        chunks = _read_ahead(_chunks(self._job.sources, shards, _rows_at_a_time(self._model)))
        with closing(chunks):
            for shard in shards:
                self._failed = 0
                if self._verifier is not None:
                    self._verifier.begin(shard.number)
                yield self._job.folder.write(shard.number, self._tables(shard, chunks, told), self._found)

    def _found(self) -> tuple[int, dict[str, float] | None]:
        """How many rows of the shard failed, and what the comparisons found."""
        return self._failed, None if self._verifier is None else asdict(self._verifier.found())

    def _tables(self, shard: Shard, chunks: Iterator[Chunk], told: Told) -> Iterator[tuple[pa.Table, pa.Table]]:
        """The answers and the errors of each chunk of the shard."""
        left = shard.rows
        while left:
            chunk = next(chunks)
            yield self._predict(chunk)
            left -= chunk.rows
            told(chunk.rows)

    def _predict(self, chunk: Chunk) -> tuple[pa.Table, pa.Table]:
        rows = np.array([position for position in range(chunk.rows) if position not in chunk.errors], np.int64)
        outputs, failed = self._answer(chunk.inputs) if rows.size else ({}, {})
        errors = chunk.errors | {int(rows[position]): text for position, text in failed.items()}
        if errors and self._job.choices.strict:
            position = min(errors)
            raise RowError(f"{chunk.file[position]}: row {chunk.row[position]}: {errors[position]}")
        self._failed += len(errors)
        kept = np.array([position for position in range(len(rows)) if position not in failed], np.int64)
        if not kept.size:
            return self._job.answers.schema.empty_table(), self._job.answers.error_table(chunk, errors)
        if self._verifier is not None:
            inputs = {name: array[kept] for name, array in chunk.inputs.items()} if failed else chunk.inputs
            self._verifier.offer(inputs, outputs)
        return self._job.answers.table(chunk, rows[kept], outputs), self._job.answers.error_table(chunk, errors)

    def _answer(self, inputs: Arrays) -> tuple[Arrays, dict[int, str]]:
        """The outputs of the rows that have an answer, and why the others have none, by position."""
        outputs, failed = _run_rows(self._model, inputs)
        if self._job.answers.scores is None or not outputs:
            return outputs, failed
        finite = np.isfinite(outputs[self._job.answers.scores]).all(axis=1)
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
