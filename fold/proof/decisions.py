"""Part D of a certificate: does the folded graph decide as the unfolded model does?

A decision is the arg-max over the classes (axis 1) of one output, for each row and place. Where the truth is undecided,
rounding may tip it: a flip counts against the folded graph unless the truth's margin between the two classes lies
within what rounding may do to that row, twice.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

FACTOR = 4
"""How many times the unfolded model's own rounding error the folded graph may have."""
EPS = {"fp32": float(np.finfo(np.float32).eps), "tf32": 2.0**-10, "fp16": 2.0**-10, "bf16": 2.0**-7}
"""The distance from 1 to the next number of each type in which a graph may be served; of `tf32` among the factors."""
FLOORS = {precision: 8 * eps for precision, eps in EPS.items()}
"""What rounding may cost a graph whose unfolded form happens to be exact, relative to the largest output."""


@dataclass(frozen=True)
class Decision:
    """Arg-max agreement of one output. `flips` counts decisions that differ from the truth's, `excused` those of them
    whose margin lies under the rounding of their row; `smallest_margin` is the least that the truth decides by."""

    name: str
    decisions: int
    flips: int
    excused: int
    smallest_margin: float

    def __bool__(self) -> bool:
        return self.flips == self.excused

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "agreement": 1 - self.flips / self.decisions if self.decisions else 1.0}


def decide(
    name: str, exact: np.ndarray, unfolded: np.ndarray, folded: np.ndarray, precision: str = "fp32"
) -> Decision | None:
    """The decisions of one output from R, U and F, arrays of one shape with the batch first; None if it makes none.
    `precision` is that of F.

    Whole numbers and truth values are decisions themselves: one that differs counts, unless U differs there as well.
    """
    if not np.issubdtype(exact.dtype, np.floating):
        flips, tipped = folded != exact, unfolded != exact
        return Decision(name, exact.size, int(flips.sum()), int((flips & tipped).sum()), 0.0)
    if exact.ndim < 2 or exact.shape[1] < 2 or not exact.size:
        return None
    R, U, F = (array.astype(np.float64).reshape(*array.shape[:2], -1) for array in (exact, unfolded, folded))
    if not (np.isfinite(R).all() and np.isfinite(U).all()):
        return None
    truth, chosen = R.argmax(axis=1), F.argmax(axis=1)
    best = R.max(axis=1)
    margin = best - np.take_along_axis(R, chosen[:, None], axis=1)[:, 0]
    by_row = FACTOR * np.abs(U - R).max(axis=(1, 2)) + FLOORS[precision] * np.abs(R).max(axis=(1, 2))
    flips = chosen != truth
    excused = flips & (margin <= 2 * by_row[:, None])
    second = np.partition(R, -2, axis=1)[:, -2]
    return Decision(name, flips.size, int(flips.sum()), int(excused.sum()), float((best - second).min()))
