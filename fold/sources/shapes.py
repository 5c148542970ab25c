"""Shapes of a module's inputs, without the batch: as a user writes them, and as example tensors."""

import inspect
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from fold.errors import BnfoldError

DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "float16": torch.float16,
    "int64": torch.int64,
    "int32": torch.int32,
}


@dataclass(frozen=True)
class InputShape:
    """One `--input`: a shape without the batch, and perhaps the argument's name and type."""

    name: str | None
    shape: tuple[int, ...]
    dtype: torch.dtype


def parse_input(text: str) -> InputShape:
    """`3,224,224` or `name:3,224,224:float32`."""
    parts = text.split(":")
    name = parts.pop(0) if len(parts) > 1 and not parts[0].replace(",", "").isdigit() else None
    shape, dtype = parts[0], parts[1] if len(parts) > 1 else "float32"
    sizes = [size.strip() for size in shape.split(",")] if shape else []
    if not all(size.isdigit() and int(size) > 0 for size in sizes) or dtype not in DTYPES or len(parts) > 2:
        raise BnfoldError(
            f"--input {text}: expected a shape without the batch, 3,224,224 or name:3,224,224:float32 "
            f"(types: {', '.join(DTYPES)})"
        )
    return InputShape(name, tuple(int(size) for size in sizes), DTYPES[dtype])


def example_inputs(module: nn.Module, shapes: Iterable[InputShape]) -> tuple[torch.Tensor, ...]:
    """Example tensors with a batch of 2, in the order of `forward`'s arguments where names are given."""
    shapes = list(shapes)
    names = list(inspect.signature(module.forward).parameters)
    unknown = [shape.name for shape in shapes if shape.name is not None and shape.name not in names]
    if unknown:
        raise BnfoldError(f"--input {unknown[0]}: forward has no argument of that name; it takes {', '.join(names)}")
    if all(shape.name is not None for shape in shapes):
        shapes.sort(key=lambda shape: names.index(shape.name or ""))
    generator = torch.Generator().manual_seed(0)
    return tuple(
        torch.randn(2, *shape.shape, generator=generator).to(shape.dtype)
        if shape.dtype.is_floating_point
        else torch.zeros(2, *shape.shape, dtype=shape.dtype)
        for shape in shapes
    )
