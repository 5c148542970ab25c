"""Inputs of a model, drawn from a seed."""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from fold.arrays import Arrays
from fold.artifact import DATATYPES, Manifest, TensorSpec
from fold.errors import BnfoldError

FREE_SIZES = (32,)
"""Sizes of the free dimensions behind the batch, in order; the last size is used for all further ones. Networks that
halve their dimensions need multiples of a power of two, mostly of at most 32."""
Family = Literal["normal", "single", "offset", "sparse"]
OFFSET = 100.0
FLAT = 16
"""Contrast of bytes is divided by this in the family `offset`."""
ZEROS = 0.9
IMAGES = (".png", ".jpg", ".jpeg")


class UndrawableError(BnfoldError):
    """Of the type of an input no values can be drawn: only inputs that are given can be computed."""


def drawn_inputs(manifest: Manifest, samples: int, seed: int, family: Family = "normal") -> Arrays:
    """`draw_inputs` for a published model, with the sizes that it was proven with."""
    free = manifest.free_sizes or FREE_SIZES
    return draw_inputs(manifest.required_inputs, samples, seed, family=family, free=free)


def draw_inputs(
    specs: Sequence[TensorSpec],
    samples: int,
    seed: int,
    *,
    family: Family = "normal",
    free: Sequence[int] = FREE_SIZES,
) -> Arrays:
    """Inputs with `samples` rows: floats from N(0, 1), bytes from 0 to 255, other integers 0 or 1. The same seed gives
    the same inputs on any machine.

    In the family `offset` floats lie near 100 or -100, by row, and bytes near 255 or 0; in `sparse` 90 % of the values
    are 0.
    """
    generator = np.random.default_rng(seed)
    inputs: Arrays = {}
    for spec in specs:
        if spec.datatype not in DATATYPES:
            raise UndrawableError(f"input {spec.name!r}: no values of type {spec.datatype} can be drawn; give inputs")
        batched = bool(spec.shape) and spec.shape[0] < 0
        shape = list(spec.shape)
        for position, axis in enumerate(axis for axis, size in enumerate(shape) if size < 0 and axis >= batched):
            shape[axis] = free[min(position, len(free) - 1)]
        if batched:
            shape[0] = samples
        dtype = DATATYPES[spec.datatype]
        pixels = dtype == np.uint8
        if not np.issubdtype(dtype, np.floating) and not pixels:
            inputs[spec.name] = generator.integers(0, 2, shape).astype(dtype)
            continue
        array = generator.integers(0, 256, shape) if pixels else generator.standard_normal(shape)
        if family == "offset":
            odd = (np.arange(shape[0] if shape else 1) % 2).reshape(-1, *[1] * (len(shape) - 1))
            array = array // FLAT + (256 - 256 // FLAT) * (1 - odd) if pixels else array + OFFSET * (1 - 2 * odd)
        elif family == "sparse":
            array[generator.random(shape) < ZEROS] = 0
        inputs[spec.name] = array.astype(dtype)
    return inputs
