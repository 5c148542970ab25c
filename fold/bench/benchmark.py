"""What a benchmark found: both graphs, their latencies, and the conclusion."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from fold.runtime import Machine, Provider


@dataclass(frozen=True)
class GraphSize:
    """The size of a graph. `file` is the file that it was read or exported from, `operators` excludes constants,
    `precision` is the type in which it computes. `batchnorms_optimised` and `operators_optimised` are those that are
    left after ONNX Runtime's basic optimisations, None where that is not known."""

    file: str
    batchnorms: int
    operators: int
    precision: str = "fp32"
    batchnorms_optimised: int | None = None
    operators_optimised: int | None = None


@dataclass(frozen=True)
class Timing:
    """One graph at one batch size: milliseconds of one run, rows per second at the median, and the error of its worst
    output against float64, relative to that output's largest value."""

    median_ms: float
    first_quartile_ms: float
    third_quartile_ms: float
    rows_per_second: float
    relative_error: float


@dataclass(frozen=True)
class Measurement:
    """Both graphs at one batch size on one provider."""

    provider: Provider
    batch: int
    unfolded: Timing
    folded: Timing

    @property
    def faster(self) -> bool:
        """Whether folding made the model faster by more than the spread of the runs."""
        return self.folded.third_quartile_ms < self.unfolded.first_quartile_ms

    @property
    def slower(self) -> bool:
        return self.folded.first_quartile_ms > self.unfolded.third_quartile_ms

    @property
    def ratio(self) -> float:
        """The median of the unfolded graph over that of the folded one: above 1, folding made the model faster."""
        return self.unfolded.median_ms / self.folded.median_ms

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "ratio": self.ratio}


@dataclass(frozen=True)
class Benchmark:
    """All measurements of a model, with the machine, the versions of the tools, and the date. `threads` is 0 where ONNX
    Runtime chose."""

    model: str
    version: str
    measured: str
    rounds: int
    threads: int
    seed: int
    unfolded: GraphSize
    folded: GraphSize
    measurements: tuple[Measurement, ...]
    machine: Machine
    versions: Mapping[str, str]

    @property
    def conclusion(self) -> str:
        """What was found, and why, in one or two sentences."""
        return f"{self._found()}. {self._why()}."

    def _found(self) -> str:
        ratios, count = [one.ratio for one in self.measurements], len(self.measurements)
        faster, slower = sum(one.faster for one in self.measurements), sum(one.slower for one in self.measurements)
        if not faster and not slower:
            return "The folded graph is as fast as the unfolded one, within the spread of the runs"
        if faster and slower:
            return f"The folded graph is faster in {faster} and slower in {slower} of {count} measurements"
        how, speed = ("faster", f"up to {max(ratios):.2f}") if faster else ("slower", f"down to {min(ratios):.2f}")
        where = "" if max(faster, slower) == count else f" in {max(faster, slower)} of {count} measurements"
        return f"The folded graph is {how}{where}: {speed} times the speed of the unfolded one"

    def _why(self) -> str:
        before, after = self.unfolded, self.folded
        left, fewer = before.batchnorms_optimised, (before.operators_optimised or 0) - (after.operators_optimised or 0)
        reduced = "" if after.precision == before.precision else f"; the folded graph computes in {after.precision}"
        if not before.batchnorms:
            reason = "The model has no BatchNorm"
        elif left is None:
            reason = f"The unfolded graph has {before.batchnorms} BatchNorms, the folded one {after.batchnorms}"
        elif not left:
            reason = f"ONNX Runtime folds all {before.batchnorms} BatchNorms itself when it opens the unfolded graph"
        else:
            reason = f"ONNX Runtime leaves {left} of {before.batchnorms} BatchNorms, bnfold {after.batchnorms}"
        if fewer > max(0, (left or 0) - after.batchnorms):
            reason += f"; after its optimisations the folded graph has {fewer} operators fewer"
        return reason + reduced

    def to_dict(self) -> dict[str, Any]:
        """The JSON of `bnfold bench` (docs/formats.md)."""
        return {
            "model": self.model,
            "version": self.version,
            "measured": self.measured,
            "rounds": self.rounds,
            "threads": self.threads,
            "seed": self.seed,
            "graphs": {"unfolded": asdict(self.unfolded), "folded": asdict(self.folded)},
            "conclusion": self.conclusion,
            "measurements": [measurement.to_dict() for measurement in self.measurements],
            "machine": asdict(self.machine),
            "versions": dict(self.versions),
        }
