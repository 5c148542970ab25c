"""`bnfold predict`: a model over a data set, shard by shard, so that a run that was killed goes on where it was."""

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from fold.prediction.compute import ShardRun, Told
from fold.prediction.job import Choices, Job
from fold.prediction.model import LoadedModel
from fold.prediction.plan import Shard
from fold.prediction.shards import Noted
from fold.prediction.verification import Verification

Engine = Literal["local", "ray"]
"""Where shards are computed: in this process, or by workers of a Ray cluster."""


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
    choices: Choices,
    *,
    engine: Engine = "local",
    progress: Callable[[int, int], None] = lambda done, rows: None,
) -> Summary:
    """Predict each row of `data`, files, folders and glob patterns, once, and write the answers into the folder `out`.

    Shards that are there already are not computed again. `progress` is told how many rows are done, and how many there
    are. Raises `BnfoldError` for data or a folder that does not fit, `RowError` for the first row that fails if the run
    is strict. With `engine` ray, shards are computed on a Ray cluster (`fold.prediction.cluster`).
    """
    # 1. The rows, and the shards that they are written in
    started, manifest = time.perf_counter(), model.manifest
    job = Job.of(model, data, out, choices)
    with job.folder.locked():
        # 2. What is left to do
        noted = job.folder.finished()
        left = [shard for shard in job.shards if shard.number not in noted]
        total, rows_left = (sum(shard.rows for shard in some) for some in (job.shards, left))
        done = total - rows_left
        progress(done, total)

        def told(rows: int) -> None:
            nonlocal done
            done += rows
            progress(done, total)

        # 3. Each shard
        if left:
            with closing(_computed(engine, model, job, left, told)) as computed:
                noted |= {one.shard: one for one in computed}
        # 4. All starts together
        job.folder.gather_errors()
    found = [Verification(**one.verification) for one in noted.values() if one.verification is not None]
    return Summary(
        model=manifest.name,
        version=manifest.version,
        digest=manifest.digest,
        device=model.device,
        rows=total,
        failed=sum(one.failed for one in noted.values()),
        shards=len(job.shards),
        skipped_shards=len(job.shards) - len(left),
        predicted=rows_left,
        seconds=time.perf_counter() - started,
        verification=sum(found, Verification()) if found else None,
    )


def _computed(engine: Engine, model: LoadedModel, job: Job, shards: Sequence[Shard], told: Told) -> Generator[Noted]:
    if engine == "local":
        return ShardRun(model, job).compute(shards, told)
    from fold.prediction.cluster import compute_on_ray  # noqa: PLC0415  # needs an extra

    return compute_on_ray(model, job, shards, told)
