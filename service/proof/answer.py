"""The reference's answer to a request: its outputs in float64, and how far the served ones are from them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fold.arrays import Arrays, in_chunks
from service.proof.references import Halt

if TYPE_CHECKING:
    from fold.proof import Reference


@dataclass(frozen=True, slots=True)
class ReferenceAnswer:
    """`outputs` in float64. For each output and row: `differences`, the largest difference of the served output (1 for
    integers or texts that differ); `margins`, how far the highest class of the reference is above the second one, None
    for an output without classes, and in a row where it is not finite."""

    outputs: Arrays
    differences: dict[str, list[float]]
    margins: dict[str, list[float | None] | None]


def reference_answers(
    batched: bool,
    served: Sequence[tuple[Arrays, Arrays]],
    max_rows: int,
    reference: "Reference",
    halt: Halt,
) -> list[ReferenceAnswer]:
    """The answers to runs, each of which is given by its inputs and its served outputs. At most `max_rows` rows are
    computed at a time; `halt` raises when nobody waits any more."""
    answers = []
    for inputs, outputs in served:

        def exact(rows: Arrays) -> Arrays:
            halt()
            return reference.exact(rows)

        writable = {name: np.array(array) for name, array in inputs.items()}  # views of a body may be unaligned
        truth = in_chunks(exact, writable, max_rows if batched else 0)
        answers.append(_compared(truth, outputs, batched=batched))
    return answers


def _compared(exact: Arrays, outputs: Arrays, *, batched: bool) -> ReferenceAnswer:
    from fold.proof import row_differences  # noqa: PLC0415  # only a request for the reference pays for this import

    differences, margins = {}, {}
    for name, truth in exact.items():
        rows, other = (truth, outputs[name]) if batched else (truth[None], outputs[name][None])
        differences[name] = row_differences(rows, other).tolist()
        margins[name] = _margins(rows)
    return ReferenceAnswer(exact, differences, margins)


def _margins(rows: np.ndarray) -> list[float | None] | None:
    from fold.proof import margins  # noqa: PLC0415  # as above

    if not np.issubdtype(rows.dtype, np.floating) or rows.ndim < 2 or rows.shape[1] < 2 or not rows.size:
        return None
    scores = rows.reshape(len(rows), rows.shape[1], -1)
    finite = np.isfinite(scores).all(axis=(1, 2))
    smallest = margins(np.where(finite[:, None, None], scores, 0)).min(axis=1)
    return [float(margin) if known else None for margin, known in zip(smallest, finite, strict=True)]
