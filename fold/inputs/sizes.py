"""Sizes of free dimensions with which a graph works: 32, or others if a layer has nothing left to compute."""

import math
from collections.abc import Sequence
from functools import partial
from itertools import permutations
from typing import TYPE_CHECKING

import numpy as np

from fold.arrays import Arrays, Run
from fold.artifact import TensorSpec
from fold.errors import BnfoldError
from fold.inputs.drawn import FREE_SIZES, draw_inputs

if TYPE_CHECKING:
    import onnx_ir as ir

LARGEST_SIZE = 256
SIDES = (32, 48, 64, 96, 128, 192, 256)
"""Sides of rectangles. Networks that read a line of text need, for example, 48 × 192."""


def working_sizes(model: "ir.Model", specs: Sequence[TensorSpec], seed: int) -> tuple[int, ...] | None:
    """The first sizes with which `model` works, in ONNX Runtime and in float64: the multiples of 32 up to 256 for all
    free dimensions; if each of these ends in an error or an empty output, rectangles of `SIDES`, the smallest first.

    None if it has no free dimensions behind the batch, and `FREE_SIZES` if it computes something with some squares, but
    nothing finite. Raises `BnfoldError` with the first error if no size fits.
    """
    most = max((_free(spec) for spec in specs), default=0)
    if not most:
        return None
    from fold.evaluate import Evaluator, TooLongError  # noqa: PLC0415  # a service draws inputs and must not load onnx
    from fold.runtime import open_graph, run  # noqa: PLC0415

    runs: list[Run] = [partial(run, open_graph(model)), Evaluator(model)]  # the faster one first
    failures: list[BnfoldError] = []

    def work(sizes: tuple[int, ...]) -> bool:
        inputs = draw_inputs(specs, 1, seed, free=sizes)
        try:
            for compute in runs:
                outputs = compute(inputs)
                empty = next((name for name, array in outputs.items() if not array.size), None)
                if empty is not None:
                    raise BnfoldError(f"output {empty!r} is empty")
                if not works(outputs):
                    return False
            return True
        except TooLongError:
            raise  # larger inputs take even longer
        except BnfoldError as error:
            failures.append(error)
            return False

    squares = [(size,) for size in range(FREE_SIZES[-1], LARGEST_SIZE + 1, FREE_SIZES[-1])]
    rectangles = sorted(permutations(SIDES, 2), key=lambda pair: (math.prod(pair), pair)) if most > 1 else []
    for tried in (squares, rectangles):
        found = next((sizes for sizes in tried if work(sizes)), None)
        if found is not None:
            return found
        if len(failures) < len(squares):
            return FREE_SIZES
    names = ", ".join(spec.name for spec in specs if _free(spec))
    raise BnfoldError(
        f"input {names}: no size from {FREE_SIZES[-1]} to {LARGEST_SIZE} fits the free dimensions; give sizes that fit "
        f"by --input; with {FREE_SIZES[-1]}: {failures[0]}"
    )


def works(outputs: Arrays) -> bool:
    """Whether each output has a finite value."""
    return all(
        bool(np.isfinite(array).any()) if np.issubdtype(array.dtype, np.floating) else array.size > 0
        for array in outputs.values()
    )


def _free(spec: TensorSpec) -> int:
    """The number of free dimensions behind the batch."""
    batched = spec.shape[:1] == (-1,)
    return sum(size < 0 for size in spec.shape[batched:])
