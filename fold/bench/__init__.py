"""Benchmark: the latency of the unfolded and the folded graph on this machine."""

from fold.bench.benchmark import Benchmark, Measurement, Timing
from fold.bench.measure import AnswersDifferError, bench_version, parse_batches
from fold.bench.opening import Opening, SpeedRatio, compare_opening, speed_ratio

__all__ = [
    "AnswersDifferError",
    "Benchmark",
    "Measurement",
    "Opening",
    "SpeedRatio",
    "Timing",
    "bench_version",
    "compare_opening",
    "parse_batches",
    "speed_ratio",
]
