"""The traffic of the last quarter of an hour."""

import asyncio
import threading
import time
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from service.batching import BatchStats
from service.budget import Budget
from service.repository import Model, Repository
from service.telemetry import Metrics, Traffic
from service.telemetry.gpu import GpuState
from service.telemetry.metrics import SECONDS, Histogram
from service.telemetry.traffic import INTERVALS, quantile
from support.service.serving import PATIENCE

ROW = {"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}


def test_requests_and_errors_are_in_the_last_interval(service: Any) -> None:
    def of(models: list[dict[str, Any]]) -> dict[str, Any]:
        return next(model for model in models if model["name"] == "free")

    before = service.get("/v2/models/free/traffic").json()
    for _ in range(3):
        assert service.post("/v2/models/free/infer", json={"inputs": [ROW]}).status_code == 200
    assert service.post("/v2/models/free/infer", json={}).status_code == 400
    after = service.get("/v2/models/free/versions/1/traffic").json()
    assert sum(after["requests"]) - sum(before["requests"]) == 4
    assert sum(after["rows"]) - sum(before["rows"]) == 3
    assert sum(after["errors"]["bad_request"]) - sum(before["errors"].get("bad_request", [])) == 1
    intervals = len(after["ended"])
    assert {len(after[key]) for key in ("seconds", "requests", "rows", "compared_rows", "disagreements")} == {intervals}
    for kind in ("queue_seconds", "compute_seconds"):
        assert {name: len(values) for name, values in after[kind].items()} == dict.fromkeys(
            ("p50", "p95", "p99"), intervals
        )
        known = [value for value in after[kind]["p99"] if value is not None]
        assert all(0 < value <= SECONDS[-1] for value in known)
    assert sum(size["batches"] for size in after["batch_rows"]) >= 3
    assert abs(after["ended"][-1] - time.time()) < PATIENCE, "a date"
    told = service.get("/v2/traffic").json()
    every, process = told["models"], told["process"]
    assert all(memory > 1e6 for memory in process["memory_bytes"])
    assert len(process["memory_bytes"]) == len(process["in_flight_bytes"]) == len(process["ended"])
    assert process["gpus"] == []
    assert {version["device"] for version in every} == {"cpu"}
    assert sum(of(every)["requests"]) == sum(after["requests"])
    assert service.get("/v2/models/unheard-of/traffic").status_code == 404


@pytest.fixture
def model() -> Any:
    session = SimpleNamespace(provider="cpu")
    return SimpleNamespace(name="net", version="1", retired=False, observer=None, session=session)


@pytest.fixture
def metrics(model: Any) -> Metrics:
    repository = SimpleNamespace(ready=lambda: [model], serves=lambda *key: False)
    return Metrics(cast(Repository, repository), lambda: True, Budget(1))


def traffic_of(metrics: Metrics, models: list[Any]) -> Traffic:
    return Traffic(cast(Repository, SimpleNamespace(ready=lambda: models)), metrics)


def test_it_is_bounded_and_forgets_versions_that_are_gone(metrics: Metrics, model: Any) -> None:
    models = [model]
    traffic = traffic_of(metrics, models)
    for _ in range(3 * INTERVALS):
        metrics.answered("infer", cast(Model, model))
        traffic.copy()
    found = traffic.of(cast(Model, model))
    assert len(found["requests"]) == INTERVALS + 1, "the last one is not over"
    assert found["requests"] == [1] * INTERVALS + [0]
    models.clear()
    traffic.copy()
    models.append(model)
    assert traffic.of(cast(Model, model))["requests"] == []


def test_a_version_that_was_loaded_again_begins_anew(metrics: Metrics, model: Any) -> None:
    traffic = traffic_of(metrics, [model])
    metrics.answered("infer", cast(Model, model))
    metrics.counters(cast(Model, model)).add(BatchStats(5, [0.1], 0.0, 0.1, 0.0, 0))
    traffic.copy()
    metrics.forget(cast(Model, model))
    traffic.copy()
    found = traffic.of(cast(Model, model))
    assert (found["requests"], found["rows"]) == ([0], [0])


def test_memory_in_flight_and_gpus_by_interval(metrics: Metrics) -> None:
    traffic = traffic_of(metrics, [])
    traffic.copy()
    metrics.budget.take(1)
    metrics.budget.give(1)
    traffic.copy((GpuState(0, used=5, total=8, busy=0.5), GpuState(3, used=1, total=9, busy=0.25)))
    traffic.copy((GpuState(3, used=2, total=9, busy=1.0),))
    found = traffic.requests()["process"]
    assert found["in_flight_bytes"] == [1, 0, 0], "the most of each interval"
    assert found["in_flight_limit_bytes"] == 1
    assert found["gpus"] == [
        {"gpu": 0, "memory_total_bytes": 8, "memory_used_bytes": [5, None, None], "utilization": [0.5, None, None]},
        {"gpu": 3, "memory_total_bytes": 9, "memory_used_bytes": [1, 2, 2], "utilization": [0.25, 1.0, 1.0]},
    ]
    for _ in range(2 * INTERVALS):
        traffic.copy()
    assert len(traffic.requests()["process"]["ended"]) == INTERVALS + 1


def test_the_gpus_that_serve_are_read_on_a_thread(metrics: Metrics, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = []

    def read(numbers: set[int]) -> list[GpuState]:
        threads.append(threading.current_thread())
        return [GpuState(number, used=5, total=8, busy=0.5) for number in sorted(numbers)]

    monkeypatch.setattr(metrics, "gpus", SimpleNamespace(numbers={1}, read=read))
    traffic = traffic_of(metrics, [])

    async def until_read() -> list[Any]:
        task = asyncio.create_task(traffic.run())
        while not (found := traffic.usage()["gpus"]):
            await asyncio.sleep(0)
        task.cancel()
        return cast(list[Any], found)

    (gpu,) = asyncio.run(until_read())
    assert (gpu["gpu"], gpu["memory_used_bytes"], gpu["memory_total_bytes"]) == (1, [5], 8)
    assert threads[0] is not threading.current_thread()


@pytest.mark.parametrize("share", [0.5, 0.95, 0.99])
def test_quantiles_lie_in_the_bucket_of_the_true_ones(share: float) -> None:
    values = np.random.default_rng(1).lognormal(-6, 1, 5000)
    histogram = Histogram(SECONDS)
    for value in values:
        histogram.add(value)
    found, true = quantile(SECONDS, tuple(histogram.counts), share), np.quantile(values, share)
    bounds = np.array([0, *SECONDS])
    assert found is not None
    assert abs(np.searchsorted(bounds, found) - np.searchsorted(bounds, true)) <= 1
    assert quantile(SECONDS, (0,) * (len(SECONDS) + 1), share) is None
    assert quantile(SECONDS, (*(0,) * len(SECONDS), 7), share) == SECONDS[-1]
