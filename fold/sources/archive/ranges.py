"""Checks sizes that a user gives for a `.pt2` against the ranges with which the program was exported."""

from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import torch
from torch.export import ExportedProgram

from fold.errors import BnfoldError
from fold.sources.given_shapes import Size, by_name, parse_shape

SPECIAL = 2
"""The lower bound that PyTorch gives a free size if no other is asked for, because its compiler treats 0 and 1 apart.
The program itself may be run with 1."""


def check_ranges(program: ExportedProgram, inputs: Sequence[str], batch: int | None) -> None:
    """Raise `BnfoldError` for a size of `inputs` and `batch` outside the range of the program, and for one that the
    program computes from others, unless all of them are given and fit."""
    placeholders = _inputs(program)
    shapes = by_name([parse_shape(text) for text in inputs], list(placeholders))
    free: dict[Any, Size | None] = {}
    computed: list[tuple[str, str, Any, Size | None]] = []
    for name, placeholder in placeholders.items():
        value, given = placeholder.meta["val"], shapes.get(name)
        if not isinstance(value, torch.Tensor):
            continue
        wanted = (batch, *(given.shape if given is not None else ()))
        for axis, (dim, size) in enumerate(zip_longest(value.shape, wanted[: value.ndim])):
            expression = _expression(dim)
            option = "--batch" if axis == 0 else f"--input {name}"
            allowed = program.range_constraints.get(expression)
            if expression is not None and not expression.is_symbol:
                computed.append((option, f"axis {axis} of input {name!r}", expression, size))
            elif expression is not None:
                free[expression] = size
            if allowed is None or not isinstance(size, int):
                continue
            least = allowed.lower if allowed.lower > SPECIAL else 1
            if not least <= size <= allowed.upper:
                limits = f"from {least} to {allowed.upper}"
                raise BnfoldError(f"{option}: axis {axis} of input {name!r} is {limits} in the file, not {size}")
    for option, where, expression, size in computed:
        if free.keys().isdisjoint(expression.free_symbols):
            continue
        expected = expression.subs({symbol: given for symbol, given in free.items() if isinstance(given, int)})
        if expected.free_symbols or size is None:
            raise BnfoldError(f"--input: {where} is {expression} in the file, computed from others; give all of them")
        if expected != size:
            raise BnfoldError(f"{option}: {where} is {expression}, so {expected}, in the file, not {size}")


def computed_size(program: ExportedProgram) -> str | None:
    """The first size of an input that the program computes from others, as a message says it; None if there is none."""
    for name, placeholder in _inputs(program).items():
        value = placeholder.meta["val"]
        for axis, dim in enumerate(value.shape if isinstance(value, torch.Tensor) else ()):
            expression = _expression(dim)
            if expression is not None and not expression.is_symbol:
                return f"axis {axis} of input {name!r} is {expression}"
    return None


def _inputs(program: ExportedProgram) -> dict[str, torch.fx.Node]:
    users = set(program.graph_signature.user_inputs)
    return {node.name: node for node in program.graph.nodes if node.op == "placeholder" and node.name in users}


def _expression(dim: Any) -> Any:
    """Of a free size, which is a SymInt; None for a number."""
    return getattr(getattr(dim, "node", None), "expr", None)
