"""Part D of a certificate: the folded graph decides as the unfolded model does.

A decision is the arg-max over the classes (axis 1) of one output, for each row and position. A flip is a decision that
differs from that of the truth R. Rounding explains it if R's margin between the two classes is at most twice the error
that rounding may cause in that row, and that error is small beside the output; any other flip counts against the folded
graph.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

FACTOR = 4
"""The folded graph may have this many times the rounding error of the unfolded model."""
EPS = {"fp32": float(np.finfo(np.float32).eps), "tf32": 2.0**-10, "fp16": 2.0**-10, "bf16": 2.0**-7}
"""The distance from 1 to the next number, for each precision; for `tf32`, that of the factors of a product."""
FLOORS = {precision: 8 * eps for precision, eps in EPS.items()}
"""The rounding error that is allowed if the unfolded model happens to have none, relative to the largest output."""
SMALL = 1 / 4
"""An error of rounding that is a larger share of the largest output explains no flip."""


@dataclass(frozen=True)
class Decision:
    """Arg-max agreement of one output. `flips` counts decisions that differ from the truth's, `excused` those of them
    that rounding explains; `smallest_margin` is the smallest margin of the truth, in the output's unit. False if there
    were none that could be compared."""

    name: str
    decisions: int
    flips: int
    excused: int
    smallest_margin: float

    def __bool__(self) -> bool:
        return self.decisions > 0 and self.flips == self.excused

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "agreement": 1 - self.flips / self.decisions if self.decisions else 1.0}


def decide(
    name: str,
    exact: np.ndarray,
    unfolded: np.ndarray,
    folded: np.ndarray,
    precision: str = "fp32",
    *,
    rounding: float = 0.0,
) -> Decision | None:
    """The decisions of one output from R, U and F, arrays of one shape with the batch first; None if it has no classes.
    `precision` is that of F; `rounding` is as for `judge`.

    A position with a NaN, or where U overflows, is no decision. Integers, texts and Booleans are decisions themselves:
    one that differs counts, unless U differs there as well.
    """
    if not exact.size:
        return None
    if not np.issubdtype(exact.dtype, np.floating):
        flips, explained = folded != exact, unfolded != exact
        return Decision(name, exact.size, int(flips.sum()), int((flips & explained).sum()), 0.0)
    if exact.ndim < 2 or exact.shape[1] < 2:
        return None
    R, U, F = (array.astype(np.float64).reshape(*array.shape[:2], -1) for array in (exact, unfolded, folded))
    finite = np.isfinite(R) & np.isfinite(U)
    best = R.max(axis=1)
    made = (finite | (R == U)).all(axis=1) & np.isfinite(best)  # a mask of -inf is the same in both
    if not made.any():  # with a finite truth, U overflows everywhere, and C compares where
        return None if np.isfinite(best).any() else Decision(name, 0, 0, 0, 0.0)
    truth, chosen = R.argmax(axis=1), F.argmax(axis=1)
    errors, sizes = np.zeros_like(R), np.where(finite, np.abs(R), 0)
    errors[finite] = np.abs(U[finite] - R[finite])
    by_row = FACTOR * np.maximum(errors.max(axis=(1, 2)), rounding) + FLOORS[precision] * sizes.max(axis=(1, 2))
    by_row = np.where(by_row <= SMALL * sizes.max(), by_row, 0)
    margin = best - np.take_along_axis(R, chosen[:, None], axis=1)[:, 0]
    flips = made & (chosen != truth)
    excused = flips & (margin <= 2 * by_row[:, None])
    smallest = float(margins(R)[made].min())
    return Decision(name, int(made.sum()), int(flips.sum()), int(excused.sum()), smallest)


def margins(scores: np.ndarray) -> np.ndarray:
    """How far the highest class is above the second one: [rows, …] for scores of [rows, classes, …]."""
    highest = np.partition(scores, -2, axis=1)
    return highest[:, -1] - highest[:, -2]
