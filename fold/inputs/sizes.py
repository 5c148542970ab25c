"""Sizes of free dimensions with which a graph works: 32, or larger ones if a layer has nothing left to compute."""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from fold.arrays import Arrays, Run
from fold.artifact import TensorSpec
from fold.errors import BnfoldError
from fold.inputs.drawn import FREE_SIZES, draw_inputs

if TYPE_CHECKING:
    import onnx_ir as ir

LARGEST_SIZE = 256


def working_sizes(model: "ir.Model", specs: Sequence[TensorSpec], seed: int) -> tuple[int, ...] | None:
    """The first sizes among the multiples of 32 up to 256 with which `model` works, in float64 and in ONNX Runtime.

    None if it has no free dimensions behind the batch, and `FREE_SIZES` if some of its runs end but none has finite
    outputs. Raises `BnfoldError` with the first error if no run ends.
    """
    if not any(_free(spec) for spec in specs):
        return None
    from fold.evaluate import Evaluator, TooLongError  # noqa: PLC0415  # a service draws inputs and must not load onnx
    from fold.runtime import open_graph, run  # noqa: PLC0415

    runs: list[Run] = [Evaluator(model), partial(run, open_graph(model))]
    tried = range(FREE_SIZES[-1], LARGEST_SIZE + 1, FREE_SIZES[-1])
    failures: list[BnfoldError] = []
    for size in tried:
        inputs = draw_inputs(specs, 1, seed, free=(size,))
        try:
            if all(works(compute(inputs)) for compute in runs):
                return (size,)
        except TooLongError:
            raise  # larger inputs take even longer
        except BnfoldError as error:
            failures.append(error)
    if len(failures) == len(tried):
        names = ", ".join(spec.name for spec in specs if _free(spec))
        raise BnfoldError(
            f"input {names}: no size from {tried[0]} to {tried[-1]} fits the free dimensions; give sizes that fit by "
            f"--input; with {tried[0]}: {failures[0]}"
        )
    return FREE_SIZES


def works(outputs: Arrays) -> bool:
    """Whether each output has a finite value."""
    return all(
        bool(np.isfinite(array).any()) if np.issubdtype(array.dtype, np.floating) else array.size > 0
        for array in outputs.values()
    )


def _free(spec: TensorSpec) -> bool:
    batched = spec.shape[:1] == (-1,)
    return any(size < 0 for size in spec.shape[batched:])
