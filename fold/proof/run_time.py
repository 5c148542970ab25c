"""The criterion of part C, and the verdict of C and D: the error of the folded graph, and that of the unfolded model.

R is the unfolded model in float64, U the unfolded model in float32, F the folded graph as served. The folded graph is
equivalent if its distance from R is explained by the rounding error of the unfolded model:
`max|F-R| <= 4*max|U-R| + 8*eps*max|R|`, for each output (docs/design.md, "Equivalence"). If the graph is served in a
reduced precision, U is the unfolded model in that precision, and eps is that of its type (docs/certificate.md).

R and U are computed independently. Where they differ by more than rounding explains, R is in doubt, and no F is
equivalent: a limit that grew with |U-R| would accept anything.
"""

import math
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from fold.arrays import Arrays
from fold.proof.decisions import EPS, FACTOR, FLOORS, Decision

WINDOW = 64
"""The number of comparisons whose largest limit applies to the next one."""


@dataclass(frozen=True)
class OutputVerdict:
    """The distance of one output from the truth R. Errors are maxima over all elements and samples, in the output's
    unit.

    `folded_error` must not exceed `limit`, and `unfolded_error` must not exceed `unfolded_limit`: otherwise R is in
    doubt. `compared` counts the values that are finite in R and U. `relative_error` is `folded_error/max|R|`, `ulp` is
    `folded_error` in steps of the served type at `max|R|`, `cosine` is between F and R, `worst_sample` is the row with
    `folded_error`.
    """

    name: str
    equivalent: bool
    unfolded_error: float
    folded_error: float
    limit: float
    relative_error: float
    ulp: float
    cosine: float
    worst_sample: int
    compared: int
    unfolded_limit: float

    @property
    def share(self) -> float:
        """`folded_error` as a share of `limit`."""
        if not self.limit:
            return np.inf if self.folded_error else 0.0
        return np.inf if np.isnan(self.folded_error) else self.folded_error / self.limit

    @property
    def doubted(self) -> bool:
        return not self.unfolded_error <= self.unfolded_limit  # true for NaN, too


@dataclass(frozen=True)
class Evidence:
    """The first inputs of a verdict, and R for them: the canary, which checks a session without PyTorch."""

    inputs: Arrays
    exact: Arrays


@dataclass(frozen=True)
class Verdict:
    """True if every output is equivalent and every flipped decision is explained by rounding. `seed` is None if the
    caller gave the inputs. `disagreement` says how the unfolded graph differs from PyTorch in float64, if it does."""

    outputs: tuple[OutputVerdict, ...]
    decisions: tuple[Decision, ...]
    samples: int
    seed: int | None
    provider: str
    precision: str
    seconds: float
    disagreement: str | None = None
    evidence: Evidence | None = field(default=None, repr=False, compare=False)

    def __bool__(self) -> bool:
        return (
            self.compared > 0
            and self.disagreement is None
            and all(output.equivalent for output in self.outputs)
            and all(self.decisions)
        )

    @property
    def compared(self) -> int:
        """The number of finite values that C compared."""
        return sum(output.compared for output in self.outputs)

    @property
    def doubt(self) -> str | None:
        """Why the reference is in doubt, or None."""
        doubted = [output for output in self.outputs if output.doubted]
        if not doubted:
            return None if self.disagreement is None else f"the reference is in doubt: {self.disagreement}"
        first = max(doubted, key=lambda output: np.nan_to_num(output.unfolded_error, nan=np.inf))
        how_far = f"{first.unfolded_error:.3g}" if np.isfinite(first.unfolded_error) else "infinitely far"
        return (
            f"the reference is in doubt: output {first.name!r} of the unfolded model is {how_far} apart in float64 "
            f"and in {self.precision}, and rounding explains at most {first.unfolded_limit:.3g}"
        )

    @property
    def empty(self) -> str | None:
        """The first output that has no finite value; if all are empty arrays, the first one."""
        names = [output.name for output in self.outputs if not output.compared and not output.equivalent]
        return next(iter(names if self.compared else [output.name for output in self.outputs]), None)

    @property
    def message(self) -> str:
        """The verdict in one sentence."""
        if self.doubt is not None:
            return f"NOT proven: {self.doubt}"
        if self.empty is not None:
            return (
                f"NOT proven over {self.samples} samples on {self.provider} in {self.precision}: "
                f"output {self.empty!r} of the unfolded model has no finite value, so nothing of it was compared"
            )
        worst = self.worst
        numbers = (
            f"output {worst.name!r} is at most {worst.folded_error:.3g} from float64, "
            f"the unfolded model {worst.unfolded_error:.3g}, the limit is {worst.limit:.3g}"
        )
        if self.precision != "fp32":
            numbers += f"; relative error at most {self.max_relative_error:.3g}"
        if self.precision in ("fp16", "bf16") and self.provider == "cuda":
            numbers += "; layers in float32 ran in TF32"
        where = f"over {self.samples} samples on {self.provider} in {self.precision}"
        return f"{'equivalent' if self else 'NOT equivalent'} {where}: {self.summary} ({numbers})"

    @property
    def worst(self) -> OutputVerdict:
        """The output that is not equivalent, or nearest to its limit."""
        return max(self.outputs, key=lambda output: (not output.equivalent, output.share))

    @property
    def summary(self) -> str:
        """The decisions and the error of the worst output in a few words; first what does not hold."""
        worst = self.worst
        error = f"error {_share(worst.share)}"
        if not worst.equivalent and worst.share <= 1:
            error = f"infinities or NaN of output {worst.name!r} are not those of the unfolded model"
        made = sum(decision.decisions for decision in self.decisions)
        if not made:
            return error
        same = made - sum(decision.flips for decision in self.decisions)
        excused = sum(decision.excused for decision in self.decisions)
        decisions = f"same decisions on {same} of {made}"
        decisions += f" (rounding explains {excused})" if excused else ""
        return f"{decisions}; {error}" if worst.equivalent else f"{error}; {decisions}"

    @property
    def max_relative_error(self) -> float:
        """The largest of any output."""
        return max((output.relative_error for output in self.outputs), default=0.0)

    @property
    def decision_agreement(self) -> float | None:
        """The share of decisions that agree with the truth; None if no output has classes."""
        made = sum(decision.decisions for decision in self.decisions)
        return 1 - sum(decision.flips for decision in self.decisions) / made if made else None

    def to_dict(self) -> dict[str, Any]:
        return {
            "equivalent": bool(self),
            "message": self.message,
            "samples": self.samples,
            "seed": self.seed,
            "provider": self.provider,
            "precision": self.precision,
            "max_relative_error": self.max_relative_error,
            "decision_agreement": self.decision_agreement,
            "seconds": round(self.seconds, 4),
            "compared": self.compared,
            "outputs": [asdict(output) for output in self.outputs],
            "decisions": [decision.to_dict() for decision in self.decisions],
        }


def _share(share: float) -> str:
    """A share of a limit in words."""
    if share == 0:
        return "0"
    if share < 0.01:
        return "below 1 % of the limit"
    return f"{100 * share:.0f} % of the limit" if share <= 1 else f"{share:.3g} times the limit"


def judge(
    name: str,
    exact: np.ndarray,
    unfolded: np.ndarray,
    folded: np.ndarray,
    precision: str = "fp32",
    *,
    noise: float = 0.0,
    rounding: float = 0.0,
) -> OutputVerdict:
    """The verdict on one output from R, U and F, arrays of one shape with the batch first; `precision` is that of F.

    `noise` is how far a multiple of rounding moves R, measured: |U-R| may be as large. `rounding` is how far rounding
    itself moves R, if that was measured: F may be 4 times as far, even if U is nearer.
    Integers and texts must equal R, except where U differs from R and `noise` is not 0: then a few decisions of the
    model hang on rounding.
    Texts are 1 apart where they differ.
    """
    if exact.dtype.kind in "OSU":
        exact, unfolded, folded = np.zeros(exact.shape, np.int64), *(1 * (each != exact) for each in (unfolded, folded))
    doubted = False
    if not np.issubdtype(exact.dtype, np.floating):
        doubted = noise == 0 and not np.array_equal(unfolded, exact)
        folded = np.where(unfolded == exact, folded, exact)
        unfolded, noise = exact, 0.0
    R, U, F = (array.astype(np.float64) for array in (exact, unfolded, folded))
    # Where the unfolded model itself overflows, F must hold the same infinity or NaN.
    finite = np.isfinite(R) & np.isfinite(U)
    same = np.array_equal(F[~finite], U[~finite], equal_nan=True)
    size = float(np.abs(R[finite]).max(initial=0))
    errors = np.zeros_like(R)
    errors[finite] = np.abs(F[finite] - R[finite])
    unfolded_error = float(np.abs(U[finite] - R[finite]).max(initial=0))
    if doubted or (~np.isfinite(R) & np.isfinite(U)).any():  # no rounding takes float64 alone out of range
        unfolded_error = np.inf
    unfolded_limit = max(FLOORS[precision] * size, noise)
    folded_error = float(errors.max(initial=0))
    limit = FACTOR * max(unfolded_error, rounding) + FLOORS[precision] * size
    rows = errors.reshape(errors.shape[0], -1).max(axis=1, initial=0) if errors.ndim else errors.reshape(1)
    norms = float(np.linalg.norm(R[finite]) * np.linalg.norm(F[finite]))
    compared = int(finite.sum())
    return OutputVerdict(
        name=name,
        # false for NaN, too, and if nothing could be compared of what the model wrote
        equivalent=same
        and folded_error <= limit
        and unfolded_error <= unfolded_limit
        and (compared > 0 or R.size == 0),
        unfolded_error=unfolded_error,
        folded_error=folded_error,
        limit=limit,
        relative_error=folded_error / size if size else 0.0,
        ulp=folded_error / float(np.spacing(np.float32(size))) / (EPS[precision] / EPS["fp32"]),
        cosine=float(np.dot(R[finite], F[finite])) / norms if norms else 1.0,
        worst_sample=int(np.argmax(rows)) if rows.size else 0,
        compared=compared,
        unfolded_limit=unfolded_limit,
    )


class Tally:
    """What comparisons of answers with the reference, of a few rows each, have found so far.

    `disagreements` counts comparisons in which an error was over its limit, or a decision was another one.
    `error_ratio` is the largest error over its limit; infinite where an error has no size.
    """

    def __init__(self, certified: Mapping[str, Any]) -> None:
        """`certified` is the verdict in the manifest."""
        self.rows = 0
        self.disagreements: Counter[Literal["error", "decision"]] = Counter({"error": 0, "decision": 0})
        self.error_ratio = 0.0
        self._limits: dict[str, deque[float]] = {}
        self._proven = {output["name"]: output.get("limit") or 0.0 for output in certified.get("outputs", ())}

    def count(self, verdict: Verdict) -> bool:
        """Whether the answers agree with the reference."""
        self.rows += verdict.samples
        ratios = [self._ratio(output) for output in verdict.outputs]
        self.error_ratio = max(self.error_ratio, *ratios)
        wrong = any(ratio > 1 for ratio in ratios)
        self.disagreements["error"] += wrong
        self.disagreements["decision"] += not all(verdict.decisions)
        return not wrong and all(verdict.decisions)

    def _ratio(self, output: OutputVerdict) -> float:
        """Error over limit. A single row may have almost no rounding error, so the limit is the largest of the last
        comparisons and of the certificate, as if all their rows were one set of inputs."""
        limits = self._limits.setdefault(output.name, deque(maxlen=WINDOW))
        limits.append(output.limit)
        if not output.equivalent and not output.folded_error > output.limit:  # NaN, or finite where the truth is not
            return math.inf
        limit = max(*limits, self._proven.get(output.name, 0.0))
        return output.folded_error / limit if limit else math.inf if output.folded_error else 0.0
