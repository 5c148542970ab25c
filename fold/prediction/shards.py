"""The folder that a run writes: a Parquet file for each shard, whole or not at all.

A shard is written under another name, synced, and renamed: its file is the commit. Rows that could not be predicted are
committed before it, in a hidden file for each shard, and gathered in `errors.parquet` when all shards are there.
"""

import fcntl
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fold.artifact import Manifest, new_file
from fold.errors import BnfoldError, first_line
from fold.prediction.answers import Answers

ERRORS = "errors.parquet"
PARTIAL = ".partial-"
BUFFERED_BYTES = 64 << 20
"""Answers that are held before they are written as a row group."""


@dataclass(frozen=True)
class Noted:
    """What stands in the file of a shard beside its rows: its number, how many rows of it failed, and what comparisons
    with the reference found, None if there were none (`verification.Verification`)."""

    shard: int
    failed: int
    verification: dict[str, Any] | None


class ShardFolder:
    """Where the shards of one run are; `with folder.locked(): ...` keeps other runs away."""

    def __init__(self, path: Path, answers: Answers, manifest: Manifest, plan: str) -> None:
        """`plan` is a digest of the data and options: another one has other rows in its shards."""
        self.path, self._answers = path, answers
        self._about = {
            "bnfold.model": manifest.name,
            "bnfold.version": manifest.version,
            "bnfold.digest": manifest.digest,
            "bnfold.certificate": json.dumps(manifest.verdict),
            "bnfold.plan": plan,
        }

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Make the folder, and remove what a run that was killed left half written. Raises `BnfoldError` if another run
        writes here."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_RDONLY)
        except OSError as error:
            raise BnfoldError(f"{self.path}: cannot be created ({error.strerror}); choose another --out") from error
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise BnfoldError(f"{self.path}: another bnfold predict writes there; wait for it") from error
            except OSError:  # a file system without locks
                pass
            for partial in self.path.glob(f"{PARTIAL}*"):
                partial.unlink(missing_ok=True)
            yield
        finally:
            os.close(descriptor)

    def finished(self) -> dict[int, Noted]:
        """What was noted of each shard that is there, by number.

        Raises `BnfoldError` for a shard of another model, data set or options.
        """
        noted = [self._noted(path) for path in sorted(self.path.glob("part-*.parquet"))]
        return {one.shard: one for one in noted}

    def _noted(self, path: Path) -> Noted:
        try:
            about = {key.decode(): text.decode() for key, text in (pq.read_metadata(path).metadata or {}).items()}
        except (pa.ArrowException, OSError) as error:
            raise BnfoldError(f"{path}: is no shard of ours ({first_line(error)}); choose another --out") from error
        if about.get("bnfold.digest") != self._about["bnfold.digest"]:
            theirs = f"{about.get('bnfold.model', 'another program')}/{about.get('bnfold.version', '?')}"
            raise BnfoldError(f"{path}: was made by {theirs} of another digest; choose another --out")
        if about.get("bnfold.plan") != self._about["bnfold.plan"]:
            raise BnfoldError(f"{path}: was made from other data or with other options; choose another --out")
        return Noted(**json.loads(about["bnfold.shard"]))

    def write(
        self,
        number: int,
        tables: Iterator[tuple[pa.Table, pa.Table]],
        found: Callable[[], tuple[int, dict[str, Any] | None]],
    ) -> Noted:
        """Commit a shard: its answers and errors, part by part. `found` is called last: how many rows failed, and what
        comparisons found."""
        errors: list[pa.Table] = []
        with self._new(self.path / f"part-{number:05d}.parquet", self._answers.schema) as writer:
            waiting: list[pa.Table] = []
            for answers, failed in tables:
                waiting.append(answers)
                errors += [failed] if failed.num_rows else []
                if sum(table.nbytes for table in waiting) >= BUFFERED_BYTES:
                    writer.write_table(pa.concat_tables(waiting))
                    waiting = []
            if waiting:
                writer.write_table(pa.concat_tables(waiting))
            noted = Noted(number, *found())
            writer.add_key_value_metadata({"bnfold.shard": json.dumps(asdict(noted))})
            beside = self.path / f".errors-{number:05d}.parquet"
            if errors:
                with self._new(beside, self._answers.error_schema) as other:
                    other.write_table(pa.concat_tables(errors))
            else:
                beside.unlink(missing_ok=True)  # of a start that was killed
        return noted

    def gather_errors(self) -> None:
        """Write the rows that failed in all shards into one file; none if there are none."""
        parts = sorted(self.path.glob(".errors-*"))
        if not parts:
            (self.path / ERRORS).unlink(missing_ok=True)
            return
        with self._new(self.path / ERRORS, self._answers.error_schema) as writer:
            for part in parts:
                writer.write_table(pq.read_table(part))

    @contextmanager
    def _new(self, path: Path, schema: pa.Schema) -> Iterator[pq.ParquetWriter]:
        """A file that is under its name when the block has ended, and on disk."""
        with (
            new_file(path, PARTIAL) as partial,
            pq.ParquetWriter(partial, schema.with_metadata(self._about), compression="zstd") as writer,
        ):
            yield writer
