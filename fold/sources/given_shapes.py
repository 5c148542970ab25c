"""Sizes of inputs that a user gives by `--input` and `--batch`: parsed, and put into a graph in place of free sizes."""

import re
from collections.abc import Sequence
from typing import NamedTuple

import onnx_ir as ir

from fold.errors import BnfoldError
from fold.graph import infer_all_shapes

DTYPES = ("float32", "float64", "float16", "int64", "int32", "int16", "int8", "uint8", "bool")

Size = int | str
"""A number, or the name of a free size."""


class GivenShape(NamedTuple):
    """One `--input`: the name and the type where they were given, and the shape without the batch."""

    name: str | None
    shape: tuple[Size, ...]
    dtype: str | None


def parse_shape(text: str) -> GivenShape:
    """`3,224,224`, `3,H,W` with free sizes, or `name:3,224,224:float32`. Raises `BnfoldError`."""
    parts = text.split(":")
    named = len(parts) == 3 or (len(parts) == 2 and parts[1] not in DTYPES)
    name = parts.pop(0) if named else None
    shape, dtype = parts[0], parts[1] if len(parts) > 1 else None
    sizes = [_size(size.strip()) for size in shape.split(",")] if shape else []
    if None in sizes or (dtype is not None and dtype not in DTYPES) or len(parts) > 2 or name == "":
        raise BnfoldError(
            f"--input {text}: expected a shape without the batch, 3,224,224, 3,H,W with free sizes, or "
            f"name:3,224,224:float32 (types: {', '.join(DTYPES)})"
        )
    return GivenShape(name, tuple(size for size in sizes if size is not None), dtype)


def _size(text: str) -> Size | None:
    if text.isdigit():
        return int(text) or None
    return text if text.isidentifier() and text != "batch" else None


def fix_sizes(model: ir.Model, inputs: Sequence[str], batch: int | None) -> ir.Model:
    """A copy in which sizes of the inputs that the file leaves free are as `inputs` and `batch` say.

    Raises `BnfoldError` for an input that the graph does not have, and for a size that contradicts the file.
    """
    if not inputs and batch is None:
        return model
    model = model.clone()
    values = {value.name or "": value for value in model.graph.inputs if not value.is_initializer()}
    shapes = by_name([parse_shape(text) for text in inputs], list(values))
    fixed: dict[str, int] = {}
    for name, value in values.items():
        given = shapes.get(name)
        if given is not None and given.dtype is not None and given.dtype != _type_name(value):
            raise BnfoldError(f"--input {name}: is {_type_name(value)} in the file, not {given.dtype}")
        if value.shape is None and given is not None:  # without a shape in the file, its batch is free
            value.shape = ir.Shape(["batch" if batch is None else batch, *given.shape])
        elif value.shape is not None:
            wanted = (batch, *(given.shape if given is not None else [None] * (len(value.shape) - 1)))
            value.shape = ir.Shape(_merged(name, value.shape, wanted, fixed))
    inner = (one for node in ir.traversal.RecursiveGraphIterator(model.graph) for one in (*node.inputs, *node.outputs))
    for one in (*model.graph.inputs, *model.graph.outputs, *inner):
        if one is not None and one.shape is not None:
            one.shape = ir.Shape([_replaced(dim, fixed) for dim in one.shape])
    infer_all_shapes(model)
    return model


def by_name(given: Sequence[GivenShape], names: Sequence[str]) -> dict[str, GivenShape]:
    """The given shape of each input that has one. Raises `BnfoldError` for a name that is not among `names`."""
    free = iter(name for name in names if name not in {one.name for one in given})
    shapes: dict[str, GivenShape] = {}
    for one in given:
        name = one.name or next(free, "")
        if name not in names:
            what = f"the graph has no input {name!r}; it takes {', '.join(names)}" if name else "is one too many"
            raise BnfoldError(f"--input {name or ','.join(map(str, one.shape))}: {what}")
        if name in shapes:
            raise BnfoldError(f"--input {name}: was given twice")
        shapes[name] = one
    return shapes


def _merged(name: str, stored: ir.Shape, wanted: Sequence[Size | None], fixed: dict[str, int]) -> list[Size | None]:
    """The sizes of one input. `fixed` collects what named sizes of the file become."""
    if len(wanted) != len(stored):
        cut = ",".join(str(size) for size in wanted[2:])
        hint = f"; leave the batch out, --input {cut}" if len(wanted) == len(stored) + 1 else ""
        raise BnfoldError(
            f"--input {name}: has {len(wanted) - 1} sizes, expected {len(stored) - 1}, those of "
            f"{list(map(_text, stored))} without the first, the batch{hint}"
        )
    merged: list[Size | None] = []
    for axis, (dim, size) in enumerate(zip(stored, wanted, strict=True)):
        option = "--batch" if axis == 0 else f"--input {name}"
        known = dim if isinstance(dim, int) else fixed.get(str(dim.value))
        if known is not None and size is not None and size != known:
            raise BnfoldError(f"{option}: axis {axis} of input {name!r} is {known} in the file, not {size}")
        if not isinstance(dim, int) and isinstance(size, int) and dim.value is not None:
            fixed[str(dim.value)] = size
        merged.append(size if isinstance(size, int) else dim if isinstance(dim, int) else dim.value)
    return merged


def _replaced(dim: int | ir.SymbolicDim, fixed: dict[str, int]) -> Size | None:
    """A size after named ones became numbers; one that is computed from them is left to shape inference."""
    if isinstance(dim, int) or dim.value is None:
        return dim if isinstance(dim, int) else None
    text = str(dim.value)
    if text in fixed:
        return fixed[text]
    return None if any(re.search(rf"\b{re.escape(name)}\b", text) for name in fixed) else text


def _text(dim: int | ir.SymbolicDim) -> str:
    return str(dim if isinstance(dim, int) else dim.value)


def _type_name(value: ir.Value) -> str:
    return "of unknown type" if value.dtype is None else str(value.dtype.numpy())
