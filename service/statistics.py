"""The statistics extension: what has been inferred since the start, counted for each version of a model.

Plain integers that only the event loop changes, once for each batch. Durations are nanoseconds. As in Triton, a request
is charged the whole time of the batch that it was in.
"""

import time
from dataclasses import dataclass, field
from typing import Any

from service.batcher import BatchStats

SECOND = 1_000_000_000
NOTHING = {"count": 0, "ns": 0}


@dataclass(slots=True)
class Duration:
    count: int = 0
    ns: int = 0

    def add(self, count: int, ns: int) -> None:
        self.count += count
        self.ns += ns

    def to_dict(self) -> dict[str, int]:
        return {"count": self.count, "ns": self.ns}


@dataclass(slots=True)
class Steps:
    """The steps of a run: merging inputs, the run itself, splitting outputs."""

    input: Duration = field(default_factory=Duration)
    infer: Duration = field(default_factory=Duration)
    output: Duration = field(default_factory=Duration)

    def add(self, count: int, merging: int, inference: int, splitting: int) -> None:
        self.input.add(count, merging)
        self.infer.add(count, inference)
        self.output.add(count, splitting)

    def to_dict(self) -> dict[str, dict[str, int]]:
        return {
            "compute_input": self.input.to_dict(),
            "compute_infer": self.infer.to_dict(),
            "compute_output": self.output.to_dict(),
        }


class ModelStatistics:
    def __init__(self) -> None:
        self._last = 0
        self._rows = 0
        self._executions = 0
        self._success, self._fail, self._queue = Duration(), Duration(), Duration()
        self._steps = Steps()
        self._batches: dict[int, Steps] = {}

    def add(self, stats: BatchStats) -> None:
        """Count one batch. A request that was cut into parts counts with the first of them, and fails at most once; the
        rows of those that fail are not told apart from the others', so they count by their share of the requests."""
        merging, inference, splitting = (
            int(seconds * SECOND) for seconds in (stats.merging, stats.inference, stats.splitting)
        )
        requests, failed = len(stats.queued), stats.failures
        charged = max(requests, 1)  # parts after the first are charged to nobody else
        good = max(charged - failed, 0)
        waited = int(sum(stats.queued) * SECOND)
        whole = waited + charged * (merging + inference + splitting)
        self._last = time.time_ns() // 1_000_000
        self._success.add(requests - failed, whole * good // charged)
        self._fail.add(failed, whole - whole * good // charged)
        if not good:
            return
        self._rows += stats.rows * good // charged
        self._executions += 1
        self._queue.add(requests - failed, waited * good // charged)
        self._steps.add(requests - failed, good * merging, good * inference, good * splitting)
        self._batches.setdefault(stats.rows, Steps()).add(1, merging, inference, splitting)

    def to_dict(self, name: str, version: str) -> dict[str, Any]:
        """Field names are those of the protocol's ModelStatistics message. Nothing is ever answered from a cache, which
        perf_analyzer wants to be told."""
        return {
            "name": name,
            "version": version,
            "last_inference": self._last,
            "inference_count": self._rows,
            "execution_count": self._executions,
            "inference_stats": {
                "success": self._success.to_dict(),
                "fail": self._fail.to_dict(),
                "queue": self._queue.to_dict(),
                **self._steps.to_dict(),
                "cache_hit": NOTHING,
                "cache_miss": NOTHING,
            },
            "batch_stats": [{"batch_size": rows, **steps.to_dict()} for rows, steps in sorted(self._batches.items())],
        }
