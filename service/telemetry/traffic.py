"""The traffic of the last quarter of an hour, for each version that serves, and what the process took meanwhile: kept
in memory, and of a fixed size.

The counters of `Metrics` are copied every ten seconds, so a request costs nothing here; an interval is the difference
of two copies.
"""

import asyncio
import time
from collections import Counter, deque
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

from fold.runtime import resident_bytes
from service.batching import on_thread
from service.repository import Model, Repository
from service.telemetry.gpu import GpuState
from service.telemetry.metrics import ROWS, SECONDS, Metrics

INTERVAL_SECONDS = 10.0
INTERVALS = 90
"""That are kept."""
Key = tuple[str, str]
"""Model and version."""
Totals = tuple[Counter[Key], dict[Key, dict[str, int]]]
"""Requests, and errors by kind, since the start."""
SHARES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}


class Sample(NamedTuple):
    """The counters of one version at a time, by the clock that never jumps. Counts of histograms are by bucket."""

    at: float
    requests: int
    rows: int
    queue: tuple[int, ...]
    compute: tuple[int, ...]
    batch_rows: tuple[int, ...]
    errors: dict[str, int]
    compared: int
    disagreements: int


class Usage(NamedTuple):
    """What the process takes at a time: resident bytes, None if they are not known; the most bytes of requests in
    flight since the last copy; and the GPUs that serve."""

    at: float
    memory: int | None
    in_flight: int
    gpus: tuple[GpuState, ...]


class Traffic:
    def __init__(self, repository: Repository, metrics: Metrics) -> None:
        self._repository = repository
        self._metrics = metrics
        self._samples: dict[Key, deque[Sample]] = {}
        self._usage = deque[Usage](maxlen=INTERVALS + 1)

    async def run(self) -> None:
        """Copy the counters until the task is cancelled."""
        while True:
            gpus, numbers = self._metrics.gpus, self._metrics.gpus.numbers
            states = await on_thread("read the GPUs", partial(gpus.read, numbers)) if numbers else []
            self.copy(tuple(states))
            await asyncio.sleep(INTERVAL_SECONDS)

    def copy(self, gpus: tuple[GpuState, ...] = ()) -> None:
        """Copy the counters of the versions that serve, and forget the others. `gpus` is what was read of them."""
        self._usage.append(self._usage_now(gpus))
        self._metrics.budget.restart_peak()
        models, totals = self._repository.ready(), self._totals()
        kept = {(model.name, model.version) for model in models}
        for key in self._samples.keys() - kept:
            del self._samples[key]
        for model in models:
            samples = self._samples.setdefault((model.name, model.version), deque(maxlen=INTERVALS + 1))
            sample = self._sample(model, totals)
            if samples and (sample.requests < samples[-1].requests or sample.rows < samples[-1].rows):
                samples.clear()  # the version was loaded again, and its counters began anew
            samples.append(sample)

    def requests(self) -> dict[str, Any]:
        """The number of requests in each interval, for every version that serves; and what the process takes."""
        models, totals = [], self._totals()
        for model in self._repository.ready():
            samples = self._until_now(model, totals)
            requests = [after.requests - before.requests for before, after in pairwise(samples)]
            described = {"name": model.name, "version": model.version, "device": model.session.provider}
            models.append({**described, **_times(samples), "requests": requests})
        return {"models": models, "process": self.usage()}

    def usage(self) -> dict[str, Any]:
        """Memory of the process and of the GPUs, in columns as the traffic: a value for each interval. For the last
        interval, the GPUs are those at its beginning."""
        samples = [*self._usage, self._usage_now(self._usage[-1].gpus if self._usage else ())]
        states = [{gpu.number: gpu for gpu in sample.gpus} for sample in samples]
        gpus = []
        for number in sorted({number for each in states for number in each}):
            column = [each.get(number) for each in states[1:]]
            gpus.append(
                {
                    "gpu": number,
                    "memory_total_bytes": next(each[number].total for each in states if number in each),
                    "memory_used_bytes": [None if state is None else state.used for state in column],
                    "utilization": [None if state is None else state.busy for state in column],
                }
            )
        return {
            **_times(samples),
            "memory_bytes": [sample.memory for sample in samples[1:]],
            "in_flight_bytes": [sample.in_flight for sample in samples[1:]],
            "in_flight_limit_bytes": self._metrics.budget.limit,
            "gpus": gpus,
        }

    def of(self, model: Model) -> dict[str, Any]:
        """The traffic of one version in columns: a value for each interval, the last of which ends now."""
        samples = self._until_now(model, self._totals())
        pairs = list(pairwise(samples))
        kinds = sorted({kind for sample in samples for kind in sample.errors})
        errors = {
            kind: [after.errors.get(kind, 0) - before.errors.get(kind, 0) for before, after in pairs] for kind in kinds
        }
        return {
            "name": model.name,
            "version": model.version,
            **_times(samples),
            "requests": [after.requests - before.requests for before, after in pairs],
            "rows": [after.rows - before.rows for before, after in pairs],
            "queue_seconds": _quantiles(SECONDS, [_minus(after.queue, before.queue) for before, after in pairs]),
            "compute_seconds": _quantiles(SECONDS, [_minus(after.compute, before.compute) for before, after in pairs]),
            "batch_rows": _total(samples),
            "errors": {kind: counts for kind, counts in errors.items() if any(counts)},
            "compared_rows": [after.compared - before.compared for before, after in pairs],
            "disagreements": [after.disagreements - before.disagreements for before, after in pairs],
        }

    def _usage_now(self, gpus: tuple[GpuState, ...]) -> Usage:
        return Usage(time.monotonic(), resident_bytes(), self._metrics.budget.peak, gpus)

    def _until_now(self, model: Model, totals: Totals) -> list[Sample]:
        return [*self._samples.get((model.name, model.version), ()), self._sample(model, totals)]

    def _totals(self) -> Totals:
        requests, errors = Counter[Key](), dict[Key, dict[str, int]]()
        for (name, version, _, _), count in self._metrics.requests.items():
            requests[name, version] += count
        for (name, version, kind), count in self._metrics.errors.items():
            errors.setdefault((name, version), {})[kind] = count
        return requests, errors

    def _sample(self, model: Model, totals: Totals) -> Sample:
        counts, key, observer = self._metrics.counters(model), (model.name, model.version), model.observer
        requests, errors = totals
        return Sample(
            time.monotonic(),
            requests[key],
            counts.rows,
            tuple(counts.queue_seconds.counts),
            tuple(counts.compute_seconds.counts),
            tuple(counts.batch_rows.counts),
            errors.get(key, {}),
            0 if observer is None else observer.rows,
            0 if observer is None else observer.disagreements.total(),
        )


def quantile(bounds: tuple[float, ...], counts: tuple[int, ...], share: float) -> float | None:
    """The value below which a `share` of the counted values lies, interpolated within its bucket; None if there are no
    values. Above the last bound it is that bound. As `histogram_quantile` of Prometheus."""
    wanted, below, lower = share * sum(counts), 0, 0.0
    if not wanted:
        return None
    for bound, count in zip(bounds, counts, strict=False):
        if count and below + count >= wanted:
            return lower + (bound - lower) * (wanted - below) / count
        below, lower = below + count, bound
    return lower


def _quantiles(bounds: tuple[float, ...], intervals: list[tuple[int, ...]]) -> dict[str, list[float | None]]:
    return {name: [quantile(bounds, counts, share) for counts in intervals] for name, share in SHARES.items()}


def _minus(after: tuple[int, ...], before: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(late - early for late, early in zip(after, before, strict=True))


def _times(samples: Sequence[Sample | Usage]) -> dict[str, list[float]]:
    """When each interval ended (seconds since 1970), and how long it was."""
    began = time.time() - time.monotonic()
    return {
        "ended": [round(began + after.at, 1) for after in samples[1:]],
        "seconds": [round(after.at - before.at, 3) for before, after in pairwise(samples)],
    }


def _total(samples: list[Sample]) -> list[dict[str, Any]]:
    """Batches of all intervals by their size; `up_to` is null for the largest."""
    counts = _minus(samples[-1].batch_rows, samples[0].batch_rows)
    bounds: list[int | None] = [*map(int, ROWS), None]
    return [{"up_to": bound, "batches": count} for bound, count in zip(bounds, counts, strict=True)]
