"""The statistics extension: requests, rows, batches and their times since the start, for each version of a model.

Plain numbers that only the event loop changes, once for each batch. As in Triton, each request counts the whole time of
its batch.
"""

from typing import Any

from service.batching import BatchStats

SECOND = 1_000_000_000
NOTHING = {"count": 0, "ns": 0}


class Steps:
    """Seconds that merging inputs, running and splitting outputs took, and how often they count."""

    __slots__ = ("count", "inference", "merging", "splitting")

    def __init__(self) -> None:
        self.count = 0
        self.merging = self.inference = self.splitting = 0.0

    def add(self, stats: BatchStats, count: int, share: int) -> None:
        """Count a batch `count` times, and its seconds `share` times."""
        self.count += count
        self.merging += share * stats.merging
        self.inference += share * stats.inference
        self.splitting += share * stats.splitting

    def to_dict(self) -> dict[str, dict[str, int]]:
        return {
            "compute_input": _duration(self.count, self.merging),
            "compute_infer": _duration(self.count, self.inference),
            "compute_output": _duration(self.count, self.splitting),
        }


class ModelStatistics:
    def __init__(self) -> None:
        self._last = 0.0
        self._rows = 0
        self._executions = 0
        self._good = self._bad = 0
        self._good_seconds = self._bad_seconds = self._queued = 0.0
        self._steps = Steps()
        self._batches: dict[int, Steps] = {}

    def add(self, stats: BatchStats, ended: float) -> None:
        """Count one batch, which ended at `ended` (seconds since 1970).

        A request that was cut into parts counts with its first part, and fails at most once. Which rows belong to
        failed requests is not known, so rows count by the share of requests that succeeded.
        """
        requests, failed = len(stats.queued), stats.failures
        charged = requests or 1  # a batch of later parts still counts once
        waited = sum(stats.queued)
        whole = waited + charged * stats.compute
        self._last = ended
        if failed:
            good = max(charged - failed, 0)
            share = good / charged
            self._bad += failed
            self._bad_seconds += whole * (1 - share)
            if not good:
                self._good += requests - failed
                return
            self._rows += round(stats.rows * share)
        else:
            good, share = charged, 1.0
            self._rows += stats.rows
        self._good += requests - failed
        self._good_seconds += whole * share
        self._queued += waited * share
        self._executions += 1
        self._steps.add(stats, requests - failed, good)
        steps = self._batches.get(stats.rows)
        if steps is None:
            steps = self._batches[stats.rows] = Steps()
        steps.add(stats, 1, 1)

    def to_dict(self, name: str, version: str) -> dict[str, Any]:
        """The protocol's ModelStatistics message. No answer is cached, memory is not measured, and each request has one
        response; Triton's tools need the fields."""
        return {
            "name": name,
            "version": version,
            "last_inference": int(1000 * self._last),
            "inference_count": self._rows,
            "execution_count": self._executions,
            "inference_stats": {
                "success": _duration(self._good, self._good_seconds),
                "fail": _duration(self._bad, self._bad_seconds),
                "queue": _duration(self._good, self._queued),
                **self._steps.to_dict(),
                "cache_hit": NOTHING,
                "cache_miss": NOTHING,
            },
            "response_stats": {},
            "batch_stats": [{"batch_size": rows, **steps.to_dict()} for rows, steps in sorted(self._batches.items())],
            "memory_usage": [],
        }


def _duration(count: int, seconds: float) -> dict[str, int]:
    return {"count": count, "ns": int(seconds * SECOND)}
