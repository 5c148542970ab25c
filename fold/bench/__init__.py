"""Benchmark: the latency of the unfolded and the folded graph on this machine."""

from fold.bench.benchmark import Benchmark, Measurement, Timing
from fold.bench.measure import AnswersDifferError, bench_version, parse_batches

__all__ = ["AnswersDifferError", "Benchmark", "Measurement", "Timing", "bench_version", "parse_batches"]
