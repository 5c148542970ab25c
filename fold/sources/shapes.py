"""Shapes of a module's inputs without the batch, parsed from `--input`, and example tensors of these shapes."""

import functools
import inspect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from fold.errors import BnfoldError
from fold.sources.given_shapes import Size, parse_shape

FREE_EXAMPLE, FREE_STEP = 64, 32
"""Example sizes of free dimensions: 64, 96, 128, …, all different, and even enough for networks that halve them."""


@dataclass(frozen=True)
class InputShape:
    """One `--input`: a shape without the batch, the argument's name if given, and the dtype. A free size is a name."""

    name: str | None
    shape: tuple[Size, ...]
    dtype: torch.dtype

    def __str__(self) -> str:
        return ",".join(map(str, self.shape))


def parse_input(text: str) -> InputShape:
    """One `--input`, float32 by default (fold.sources.given_shapes)."""
    given = parse_shape(text)
    return InputShape(given.name, given.shape, getattr(torch, given.dtype or "float32"))


def arrange(module: nn.Module, shapes: Iterable[InputShape]) -> list[InputShape]:
    """The shapes in the order of `forward`'s arguments, each with the name of its argument.

    Raises `BnfoldError` for a name that `forward` does not take, for two shapes of one argument, and for a required
    argument without a shape.
    """
    shapes, arguments = list(shapes), _arguments(module)
    names = list(arguments)
    free = iter(name for name in names if name not in {shape.name for shape in shapes})
    arranged: dict[str, InputShape] = {}
    for position, shape in enumerate(shapes):
        name = shape.name or next(free, f"{names[-1]}_{position}" if _takes_any(module) and names else None)
        if name is None or (shape.name is not None and name not in names):
            what = f"no argument of that name; it takes {', '.join(names)}" if shape.name else f"{len(names)} arguments"
            raise BnfoldError(f"--input {shape.name or shape}: forward has {what}")
        if name in arranged:
            raise BnfoldError(f"--input {name}: was given twice")
        arranged[name] = InputShape(name, shape.shape, shape.dtype)
    missing = [name for name, given in arguments.items() if given.default is given.empty and name not in arranged]
    if missing:
        raise BnfoldError(
            f"forward takes {', '.join(names)}: give the shape of {missing[0]} too, --input {missing[0]}:…"
        )
    return sorted(arranged.values(), key=lambda shape: names.index(shape.name or "") if shape.name in names else 99)


def _arguments(module: nn.Module) -> dict[str, inspect.Parameter]:
    found = inspect.signature(module.forward).parameters
    plain = {name: one for name, one in found.items() if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)}
    return plain or ({"inputs": inspect.Parameter("inputs", inspect.Parameter.KEYWORD_ONLY, default=None)})


def _takes_any(module: nn.Module) -> bool:
    return any(one.kind == one.VAR_POSITIONAL for one in inspect.signature(module.forward).parameters.values())


def bind(module: nn.Module, shapes: Sequence[InputShape]) -> nn.Module:
    """The module with a `forward` of only the given arguments, if it has optional ones before or between them."""
    names = [shape.name or "" for shape in shapes]
    arguments = _arguments(module)
    if names == list(arguments)[: len(names)] or not set(names) <= set(arguments):
        return module
    forward = module.forward

    @functools.wraps(forward)
    def given_alone(*tensors: torch.Tensor) -> object:
        return forward(**dict(zip(names, tensors, strict=True)))

    kept = [arguments[name].replace(kind=inspect.Parameter.POSITIONAL_OR_KEYWORD, default=inspect.Parameter.empty)
            for name in names]  # fmt: skip
    given_alone.__signature__ = inspect.Signature(kept)  # type: ignore[attr-defined]
    module.forward = given_alone
    return module


def example_inputs(module: nn.Module, shapes: Iterable[InputShape], batch: int = 2) -> tuple[torch.Tensor, ...]:
    """Example tensors with `batch` rows, in the order of `forward`'s arguments; free sizes are 64, 96, 128, … ."""
    shapes = arrange(module, shapes)
    free = list(dict.fromkeys(size for shape in shapes for size in shape.shape if isinstance(size, str)))
    sizes = {name: FREE_EXAMPLE + FREE_STEP * position for position, name in enumerate(free)}
    generator = torch.Generator().manual_seed(0)
    return tuple(_example(shape, batch, sizes, generator) for shape in shapes)


def _example(shape: InputShape, batch: int, sizes: dict[str, int], generator: torch.Generator) -> torch.Tensor:
    extents = (batch, *(sizes[size] if isinstance(size, str) else size for size in shape.shape))
    if shape.dtype.is_floating_point:
        return torch.randn(extents, generator=generator).to(shape.dtype)
    return torch.zeros(extents, dtype=shape.dtype)
