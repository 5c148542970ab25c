"""Traces a loaded module with the shapes that the user gave or that the architecture declares, and tries free sizes."""

import copy
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from torch.export import ExportedProgram

from fold.errors import BnfoldError, first_line
from fold.inputs import FREE_SIZES
from fold.sources.export import export_program
from fold.sources.inferred import infer_inputs
from fold.sources.quiet import silenced
from fold.sources.shapes import FREE_EXAMPLE, FREE_STEP, InputShape, arrange, bind, example_inputs, parse_input

MULTIPLES = (1, 2, 4, 8, 16, 32, 64)

GIVE_ONE = "give the shape of one input without the batch, such as --input 3,224,224"


def trace(
    module: nn.Module, path: Path, inputs: Sequence[str], batch: int | None = None
) -> tuple[ExportedProgram, list[InputShape], str | None]:
    """The exported program, the shapes in the order of `forward`'s arguments, and a note on them for the user.

    The batch is free, or `batch` rows and nothing else. Raises `BnfoldError` if the shapes are unknown, if `module`
    cannot be traced with them, and for a free size that the network does not take.
    """
    note = None
    if inputs:
        shapes = arrange(module, [parse_input(text) for text in inputs])
    else:
        found = infer_inputs(module)
        if found is None:
            raise BnfoldError(f"{path}: {GIVE_ONE}")
        shapes, whence = found
        told = " and ".join(f"{shape.name}: {shape}" for shape in shapes)
        note = f"took the shape of input {told} from {whence}; --input overrides it"
    try:
        rows = batch or 2
        examples = example_inputs(module, shapes, rows)
        module = bind(module, shapes)
        multiples = _check_free(module, shapes, rows)
        try:
            program = export_program(module, examples, [shape.shape for shape in shapes], batch=batch)
        except BnfoldError as error:
            fixed = _fixed_batch(module, shapes) if batch is None else None
            if fixed is None:
                raise
            raise BnfoldError(
                f"{type(module).__name__}: its code fixes the batch; give it, --batch {fixed} ({error})"
            ) from error
        _try_free(program, shapes, rows)
    except BnfoldError as error:
        if inputs:
            without = _without_batch(module, shapes)
            if without is not None:
                raise BnfoldError(f"--input {shapes[0]}: holds the batch; leave it out, {without}") from error
            raise
        raise BnfoldError(f"{path}: {GIVE_ONE} ({note}, but {error})") from error
    return program, shapes, "; ".join(filter(None, (note, multiples))) or None


def _without_batch(module: nn.Module, shapes: Sequence[InputShape]) -> str | None:
    """The options for the same shapes without their first sizes, if the network takes these; else None."""
    if not all(len(shape.shape) > 1 for shape in shapes):
        return None
    cut = [InputShape(shape.name, shape.shape[1:], shape.dtype) for shape in shapes]
    sizes = {name: FREE_EXAMPLE + FREE_STEP * position for position, name in enumerate(_free(cut))}
    if not _takes(copy.deepcopy(module).to("meta"), cut, sizes, 3):
        return None
    return " ".join(f"--input {f'{shape.name}:' if len(cut) > 1 else ''}{shape}" for shape in cut)


def _free(shapes: Sequence[InputShape]) -> list[str]:
    return list(dict.fromkeys(size for shape in shapes for size in shape.shape if isinstance(size, str)))


def _check_free(module: nn.Module, shapes: Sequence[InputShape], rows: int) -> str | None:
    """A note for the user if free sizes must be multiples of a number. They are tried on tensors without values.

    Refuses free sizes that must be equal, and a multiple that does not divide the size of the proof.
    """
    free = _free(shapes)
    if not free:
        return None
    empty = copy.deepcopy(module).to("meta")
    for multiple in MULTIPLES:
        steps = -(-FREE_EXAMPLE // multiple) | 1  # odd, so that the sizes are multiples of nothing larger
        sizes = {name: multiple * (steps + 2 * position) for position, name in enumerate(free)}
        if _takes(empty, shapes, sizes, rows):
            if multiple == 1:
                return None
            many = f"{' and '.join(free)} must be {'multiples' if len(free) > 1 else 'a multiple'} of {multiple}"
            if FREE_SIZES[0] % multiple:
                raise BnfoldError(f"--input: {many} for this network; give fixed sizes")
            return f"{many} for this network; a run with another size fails"
    if len(free) > 1 and _takes(empty, shapes, dict.fromkeys(free, FREE_EXAMPLE + 1), rows):
        raise BnfoldError(f"--input: {' and '.join(free)} must be equal for this network; use the same letter for all")
    return None


def _fixed_batch(module: nn.Module, shapes: Sequence[InputShape]) -> int | None:
    """The batch of at most 64 rows that the code of a module fixes, tried on tensors without values; None if none."""
    empty = copy.deepcopy(module).to("meta")
    sizes = {name: FREE_EXAMPLE + FREE_STEP * position for position, name in enumerate(_free(shapes))}
    if _takes(empty, shapes, sizes, 65):
        return None
    return next((batch for batch in range(1, 65) if _takes(empty, shapes, sizes, batch)), None)


def _takes(module: nn.Module, shapes: Sequence[InputShape], sizes: dict[str, int], rows: int) -> bool:
    inputs = [
        torch.empty(rows, *(sizes[size] if isinstance(size, str) else size for size in shape.shape), dtype=shape.dtype,
                    device="meta")
        for shape in shapes
    ]  # fmt: skip
    try:
        with silenced(), torch.no_grad():
            module(*inputs)
    except Exception:  # whatever the model's own code raises; also where it needs values
        return False
    return True


def _try_free(program: ExportedProgram, shapes: Sequence[InputShape], rows: int) -> None:
    """Run the program once at the sizes of the proof."""
    free = _free(shapes)
    if not free:
        return
    size = FREE_SIZES[0]
    inputs = [
        torch.zeros(rows, *(size if isinstance(one, str) else one for one in shape.shape), dtype=shape.dtype)
        for shape in shapes
    ]
    try:
        with silenced(), torch.no_grad():
            program.module(check_guards=False)(*inputs)
    except Exception as error:  # whatever the model's own code raises
        raise BnfoldError(
            f"--input: the network does not take {' and '.join(free)} of {size}, the size that the proof uses: "
            f"{first_line(error)}; give fixed sizes"
        ) from error
