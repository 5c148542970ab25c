"""Arrays by tensor name: the type that inputs and outputs have everywhere, and how their rows are cut and joined."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

Arrays = dict[str, np.ndarray]
Run = Callable[[Arrays], Arrays]
"""Computes the outputs of a model from its inputs."""


def widened(inputs: Mapping[str, np.ndarray]) -> Arrays:
    """Floats in float64, anything else as it is."""
    return {name: a.astype(np.float64) if np.issubdtype(a.dtype, np.floating) else a for name, a in inputs.items()}


def row_count(arrays: Arrays) -> int:
    """Rows of the first array that has an axis, which are those of all where it is the batch; 1 if none has one."""
    return next((len(array) for array in arrays.values() if array.ndim), 1)


def first_rows(arrays: Arrays, rows: int) -> Arrays:
    """At most `rows` rows of each array, counted along its first axis; a scalar as it is."""
    return {name: array[:rows] if array.ndim else array for name, array in arrays.items()}


def cut_rows(arrays: Arrays, total: int, at_most: int) -> list[Arrays]:
    """Arrays of `total` rows as views of at most `at_most` rows each, in order."""
    starts = range(0, total, at_most)
    return [{name: array[at : at + at_most] for name, array in arrays.items()} for at in starts]


def join_rows(parts: Sequence[Arrays]) -> Arrays:
    """The rows of all parts, in order; a single part is returned itself."""
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def in_chunks(run: Run, inputs: Arrays, rows: int) -> Arrays:
    """Outputs of `run` on at most `rows` rows at a time; 0 is all at once."""
    total = row_count(inputs) if rows else 0
    if total <= rows:
        return run(inputs)
    return join_rows([run(part) for part in cut_rows(inputs, total, rows)])
