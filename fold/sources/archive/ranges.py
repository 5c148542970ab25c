"""Checks sizes that a user gives for a `.pt2` against the ranges with which the program was exported."""

from collections.abc import Sequence

import torch
from torch.export import ExportedProgram

from fold.errors import BnfoldError
from fold.sources.given_shapes import by_name, parse_shape

SPECIAL = 2
"""The lower bound that PyTorch gives a free size if no other is asked for, because its compiler treats 0 and 1 apart.
The program itself may be run with 1."""


def check_ranges(program: ExportedProgram, names: Sequence[str], inputs: Sequence[str], batch: int | None) -> None:
    """Raise `BnfoldError` for a size of `inputs` and `batch` outside the range of the program.

    `names` are those of the program's inputs, in order.
    """
    shapes = by_name([parse_shape(text) for text in inputs], names)
    users = set(program.graph_signature.user_inputs)
    placeholders = [node for node in program.graph.nodes if node.op == "placeholder" and node.name in users]
    for name, placeholder in zip(names, placeholders, strict=False):
        value, given = placeholder.meta["val"], shapes.get(name)
        if not isinstance(value, torch.Tensor):
            continue
        wanted = (batch, *(given.shape if given is not None else ()))
        for axis, (dim, size) in enumerate(zip(value.shape, wanted, strict=False)):
            symbol = getattr(getattr(dim, "node", None), "expr", None)  # a free size is a SymInt
            allowed = program.range_constraints.get(symbol)
            if allowed is None or not isinstance(size, int):
                continue
            least = allowed.lower if allowed.lower > SPECIAL else 1
            if not least <= size <= allowed.upper:
                option = "--batch" if axis == 0 else f"--input {name}"
                limits = f"from {least} to {allowed.upper}"
                raise BnfoldError(f"{option}: axis {axis} of input {name!r} is {limits} in the file, not {size}")
