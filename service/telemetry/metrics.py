"""Metrics for Prometheus: plain numbers that only the event loop changes, turned into metric families at each scrape.

A request then costs a few additions instead of a dozen locks. Model names are taken from the repository, never from a
request's path, so clients cannot add labels.
"""

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from fold.serving import FACTS
from service.batching import BatchStats
from service.budget import Budget
from service.errors import ServiceError
from service.repository import Model, Repository
from service.telemetry.gpu import GpuCollector
from service.telemetry.statistics import ModelStatistics

SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
ROWS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)
TOGETHER = 64
"""Batches that are counted together, unless a scrape comes before."""

Labels = tuple[str, str]
"""Model and version; both empty if a request named none that exists."""
NO_MODEL: Labels = ("", "")
CLASSES = ("0xx", "1xx", "2xx", "3xx", "4xx", "5xx")


class Histogram:
    """Counts of values up to each of `bounds` (ascending), and above all of them."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def buckets(self) -> list[tuple[str, float]]:
        names = [*map(str, self.bounds), "+Inf"]
        return list(zip(names, map(float, accumulate(self.counts)), strict=True))


@dataclass
class ModelCounters:
    """What is counted of one version."""

    rows: int = 0
    batch_rows: Histogram = field(default_factory=lambda: Histogram(ROWS))
    queue_seconds: Histogram = field(default_factory=lambda: Histogram(SECONDS))
    compute_seconds: Histogram = field(default_factory=lambda: Histogram(SECONDS))
    statistics: ModelStatistics = field(default_factory=ModelStatistics)
    _uncounted: list[tuple[float, BatchStats]] = field(default_factory=list)
    """Batches, and when they ended. Counting many together costs less for each."""

    def add(self, stats: BatchStats) -> None:
        self._uncounted.append((time.time(), stats))
        if len(self._uncounted) >= TOGETHER:
            self.count()

    def count(self) -> "ModelCounters":
        """Count the batches that were added. Returns itself."""
        for ended, stats in self._uncounted:
            self.statistics.add(stats, ended)
            self.rows += stats.rows
            self.batch_rows.add(stats.rows)
            self.compute_seconds.add(stats.compute)
            for seconds in stats.queued:
                self.queue_seconds.add(seconds)
        self._uncounted.clear()
        return self


@dataclass
class Counted:
    """A request that is being counted. `later`: it is counted when its answer is complete, by who set this."""

    model: Model | None = None
    later: bool = False


class Metrics:
    """The counters of one app, and the page that shows them."""

    def __init__(self, repository: Repository, ready: Callable[[], bool], budget: Budget) -> None:
        self.requests: Counter[tuple[str, str, str, str]] = Counter()
        self.errors: Counter[tuple[str, str, str]] = Counter()
        self._models: dict[Labels, ModelCounters] = {}
        self._repository = repository
        self._ready = ready
        self.budget = budget
        self.gpus = GpuCollector(repository)
        self._registry = CollectorRegistry()
        self._registry.register(self)
        self._registry.register(self.gpus)
        ProcessCollector(registry=self._registry)

    def track(self, model: Model) -> None:
        """Count the batches of `model` from now on."""
        counts = self._models.setdefault(_labels(model), ModelCounters())
        model.batcher.on_batch = counts.add

    def forget(self, model: Model) -> None:
        """Drop the counters of a version that was retired, unless it has been loaded again."""
        key = (model.name, model.version)
        if self._repository.serves(*key):
            return
        self._models.pop(key, None)
        for counts in (self.requests, self.errors):
            for labels in [labels for labels in counts if labels[:2] == key]:
                del counts[labels]

    def statistics(self, model: Model) -> dict[str, Any]:
        """The statistics of a version, in the form of the statistics extension."""
        return self.counters(model).statistics.to_dict(model.name, model.version)

    def counters(self, model: Model) -> ModelCounters:
        return self._models.setdefault(_labels(model), ModelCounters()).count()

    def answered(self, route: str, model: Model | None, status: int = 200) -> None:
        name, version = _labels(model)
        self.requests[name, version, route, CLASSES[status // 100]] += 1

    def failed(self, route: str, model: Model | None, error: ServiceError) -> None:
        self.answered(route, model, error.status)
        self.errors[(*_labels(model), error.kind)] += 1

    @contextmanager
    def counting(self, route: str) -> Iterator[Counted]:
        """Count the block as one request of `route`. The block sets `Counted.model` once it knows the model."""
        counted = Counted()
        try:
            yield counted
        except ServiceError as error:
            self.failed(route, counted.model, error)
            raise
        except Exception:
            self.failed(route, counted.model, ServiceError())
            raise
        if not counted.later:
            self.answered(route, counted.model)

    def page(self) -> bytes:
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """Called by prometheus_client for every scrape."""
        yield _gauge("bnfold_ready", "1 while the service takes requests", [], [((), float(self._ready()))])
        ready = [((m.name, m.version), 1.0) for m in self._repository.ready()]
        broken = [((e.name, e.version, e.cause or ""), 1.0) for e in self._repository.broken()]
        serving = {key for key, _ in ready}
        states = ready + [(key[:2], 0.0) for key, _ in broken if key[:2] not in serving]
        yield _gauge("bnfold_model_ready", "1 if the version serves, 0 if it is broken", ["model", "version"], states)
        yield _gauge(
            "bnfold_model_broken",
            "1 for a version that cannot be loaded, or whose certificate does not hold here",
            ["model", "version", "cause"],
            broken,
        )
        yield from self._repository_metrics()
        models = self._repository.ready()
        queued = [(_labels(model), float(model.batcher.queued_rows)) for model in models]
        yield _gauge("bnfold_queue_rows", "Rows that wait for a batch", ["model", "version"], queued)
        in_flight = [((), float(self.budget.used))]
        yield _gauge("bnfold_bytes_in_flight", "Memory that requests have taken of their budget", [], in_flight)
        running = [(_labels(model), float(model.batcher.running_rows)) for model in models]
        yield _gauge("bnfold_running_rows", "Rows of the batches that run", ["model", "version"], running)

        requests = CounterMetricFamily(
            "bnfold_requests", "Requests answered", labels=["model", "version", "route", "status"]
        )
        for labels, count in self.requests.items():
            requests.add_metric(labels, count)
        yield requests
        errors = CounterMetricFamily("bnfold_errors", "Requests refused or failed", labels=["model", "version", "kind"])
        for error_labels, count in self.errors.items():
            errors.add_metric(error_labels, count)
        yield errors
        rows = CounterMetricFamily("bnfold_rows", "Rows computed", labels=["model", "version"])
        for model_labels, counts in self._models.items():
            rows.add_metric(model_labels, counts.count().rows)
        yield rows
        yield from self._device_metrics(models)
        yield self._histogram("bnfold_batch_rows", "Rows of one batch", lambda counts: counts.batch_rows)
        yield self._histogram(
            "bnfold_queue_seconds", "A request's wait in the queue", lambda counts: counts.queue_seconds
        )
        yield self._histogram("bnfold_compute_seconds", "Time to run one batch", lambda counts: counts.compute_seconds)
        yield from self._verdict_metrics()
        yield from self._shadow_metrics()

    def _repository_metrics(self) -> Iterator[Metric]:
        """Without model names, because these counters must outlive the models."""
        repository = self._repository
        states = Counter({"READY": 0, "LOADING": 0, "UNLOADING": 0, "UNAVAILABLE": 0})
        states.update(entry.state for entry in repository.entries())
        counted = [((state,), float(count)) for state, count in states.items()]
        yield _gauge("bnfold_repository_versions", "Versions that the index lists", ["state"], counted)
        yield CounterMetricFamily("bnfold_repository_loads", "Versions that were loaded", repository.loads)
        yield CounterMetricFamily("bnfold_repository_unloads", "Versions that were unloaded", repository.unloads)
        failures = CounterMetricFamily(
            "bnfold_repository_failures", "Versions that could not be loaded", labels=["cause"]
        )
        for cause, count in repository.failures.items():
            failures.add_metric((cause,), count)
        yield failures

    def _device_metrics(self, models: list[Model]) -> Iterator[Metric]:
        nodes = [
            ((*_labels(model), provider), float(count))
            for model in models
            for provider, count in model.session.placement.nodes.items()
        ]
        labels = ["model", "version"]
        yield _gauge(
            "bnfold_nodes", "Operators of the optimised graph by execution provider", [*labels, "provider"], nodes
        )
        cold = CounterMetricFamily(
            "bnfold_cold_shapes",
            "Runs on a GPU of shapes that were not warmed up, or of others than the run before if the model convolves",
            labels=labels,
        )
        for model in models:
            cold.add_metric(_labels(model), model.session.cold_shapes)
        yield cold
        facts = [((*_labels(model), *model.session.placement.facts(model.manifest).values()), 1.0) for model in models]
        yield _gauge("bnfold_session_info", "How a version is computed, in labels", [*labels, *FACTS], facts)
        lost = [(_labels(model), float(model.session.lost is not None)) for model in models]
        yield _gauge("bnfold_device_lost", "1 if the device no longer responds", labels, lost)

    def _histogram(self, name: str, text: str, pick: Callable[[ModelCounters], Histogram]) -> Metric:
        family = HistogramMetricFamily(name, text, labels=["model", "version"])
        for labels, counts in self._models.items():
            histogram = pick(counts.count())
            family.add_metric(labels, histogram.buckets(), histogram.sum)
        return family

    def _verdict_metrics(self) -> Iterator[Metric]:
        """No value before the first check: a model that was never checked here is neither equivalent nor not."""
        proofs = [(_labels(model), model.proof) for model in self._repository.ready() if model.proof is not None]
        labels = ["model", "version"]
        equivalent = [(key, float(bool(proof.verdict["equivalent"]))) for key, proof in proofs]
        yield _gauge("bnfold_equivalent", "1 if the last check found the served graph equivalent", labels, equivalent)
        times = [(key, proof.at) for key, proof in proofs]
        yield _gauge("bnfold_equivalence_timestamp_seconds", "When it was last checked", labels, times)
        for name, text, key in (
            ("bnfold_equivalence_error", "Largest error of the served graph against float64", "folded_error"),
            ("bnfold_equivalence_limit", "Largest error that counts as equivalent", "limit"),
        ):
            values = [
                ((*model, output["name"]), float(output[key]))
                for model, proof in proofs
                for output in proof.verdict["outputs"]
            ]
            yield _gauge(name, text, [*labels, "output"], values)

    def _shadow_metrics(self) -> Iterator[Metric]:
        """The share of every model, which is 0 without a shadow check; the rest for models that have one."""
        models = self._repository.ready()
        labels = ["model", "version"]
        shares = [(_labels(model), model.observer.share if model.observer else 0.0) for model in models]
        yield _gauge(
            "bnfold_shadow_share", "Share of the responses that are compared with the reference", labels, shares
        )
        observers = [(_labels(model), model.observer) for model in models if model.observer is not None]
        rows = CounterMetricFamily("bnfold_shadow_rows", "Rows compared with the reference", labels=labels)
        wrong = CounterMetricFamily(
            "bnfold_shadow_disagreements",
            "Answers with an error beyond rounding, or with another decision than the reference",
            labels=[*labels, "kind"],
        )
        drops = CounterMetricFamily(
            "bnfold_shadow_drops", "Sampled answers that were not compared", labels=[*labels, "reason"]
        )
        for key, observer in observers:
            rows.add_metric(key, observer.rows)
            for kind, count in observer.disagreements.items():
                wrong.add_metric((*key, kind), count)
            for reason, count in observer.drops.items():
                drops.add_metric((*key, reason), count)
        yield from (rows, wrong, drops)
        ratios = [(key, observer.error_ratio) for key, observer in observers]
        yield _gauge("bnfold_shadow_error_ratio", "Largest error of an answer over its limit", labels, ratios)


def _gauge(name: str, text: str, labels: list[str], values: Iterable[tuple[tuple[str, ...], float]]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=labels)
    for key, value in values:
        family.add_metric(key, value)
    return family


def _labels(model: Model | None) -> Labels:
    return NO_MODEL if model is None or model.retired else (model.name, model.version)
