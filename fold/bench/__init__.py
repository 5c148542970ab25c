"""What folding brings on this machine: the latency of both graphs, measured."""

from fold.bench.measure import AnswersDifferError, Benchmark, Measurement, Timing, bench_version, parse_batches

__all__ = ["AnswersDifferError", "Benchmark", "Measurement", "Timing", "bench_version", "parse_batches"]
