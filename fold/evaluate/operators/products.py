"""Sums of products.

Seen in onnx 1.23: its Einsum multiplies each element of one factor by each of another, also where both could be summed
before: `ab,cd->` of two million numbers takes 10^12 multiplications.
"""

from typing import Any

import numpy as np
from onnx.reference.ops import op_einsum


class Einsum(op_einsum.Einsum):
    """Each factor is first summed along what only it has."""

    def _run(self, *arrays: np.ndarray, equation: Any = None) -> tuple[np.ndarray]:
        given, arrow, kept = equation.replace(" ", "").partition("->")
        terms, factors = given.split(","), list(arrays)
        if arrow:  # else what only one factor has is kept
            for place, term in enumerate(terms[: len(factors)]):
                alone = [letter for letter in term if letter.isalpha() and equation.count(letter) == 1]
                before, _, behind = term.partition("...")
                axes = (before.index(one) if one in before else behind.index(one) - len(behind) for one in alone)
                factors[place] = factors[place].sum(axis=tuple(axes))
                terms[place] = "".join(letter for letter in term if letter not in alone)
        (product,) = super()._run(  # type: ignore[no-untyped-call]
            *factors, equation=f"{','.join(terms)}{arrow}{kept}"
        )
        return (product,)
