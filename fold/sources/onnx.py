"""The unfolded graph of an `.onnx`: a file of a user, or `unfolded.onnx` of a model directory."""

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes import common

from fold.errors import BnfoldError, first_line, root_cause, short
from fold.graph import (
    RUNTIME_OPSET,
    GraphFile,
    Lifted,
    close_initializers,
    correct_shapes,
    dims,
    lift,
    read_graph,
    save_graph,
)
from fold.inputs import FREE_SIZES, InputScaling, ResolvedScaling
from fold.limits import limit
from fold.runtime import CannotLoadError, Trial, TrialKind
from fold.sources.given_shapes import fix_sizes
from fold.sources.scaling.graph import scale_graph

OF_PARAMETERS = frozenset({"Cast", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
"""Exporters put these between parameters and their consumers. They are folded at any size: none enlarges a tensor."""
NUM_OUTPUTS_OPSET = 18
"""Split has had `num_outputs` since this opset. onnxscript writes it at any opset in place of an even SplitToSequence;
before, a Split without sizes is even."""


ELEMENTS_SETTING = "BNFOLD_MAX_INPUT_ELEMENTS"
"""Environment variable with the most elements that one row of an input may have."""
MOST_ELEMENTS = 1 << 27
"""Without the setting: 1 GB in float64. A volume of 512 × 512 × 512 voxels has so many."""


INFERRED = "a stored shape of an intermediate tensor is wrong, so all of them are inferred anew"


@dataclass(frozen=True)
class OnnxSource:
    """An `.onnx` that was read: the file (`given`), the graph lifted to a newer opset, and the graph to fold (`model`).

    `input_scaling` is what was inserted behind an input, in all three. `overridable` are the inputs with stored values
    that stay inputs, and `constants` counts those that do not.
    """

    given: GraphFile
    lifted: Lifted
    model: ir.Model
    input_scaling: ResolvedScaling | None = None
    overridable: tuple[str, ...] = ()
    constants: int = 0

    @property
    def notes(self) -> list[str]:
        """What was changed, one line for each kind of change."""
        closed = f"{self.constants} inputs with stored values are constants; if callers override them: --overridable"
        return [*self.given.notes, *self.lifted.notes, *([closed] if self.constants else [])]


def read_onnx(
    path: Path,
    input_scaling: InputScaling | None = None,
    inputs: Sequence[str] = (),
    batch: int | None = None,
    *,
    overridable: bool = True,
    trial: TrialKind | None = None,
) -> OnnxSource:
    """Read an `.onnx` of any opset. `inputs` and `batch` fix sizes that the file leaves free.

    With `overridable`, initializers that are inputs as well stay inputs; without, they are constants. With a `trial`,
    the file is first loaded, or loaded and run once, in a process of its own. Raises `BnfoldError` that names the file
    if it cannot be folded.
    """
    # 1. Read it, with the sizes that the user gave.
    given, resolved, constants = read_graph(path), None, 0
    try:
        if inputs or batch is not None:
            given = replace(given, model=fix_sizes(given.model, inputs, batch), as_read=False)
        # 2. See whether ONNX Runtime takes it. Everything behind relies on that.
        runs = given.model.opset_imports.get("", 1) >= RUNTIME_OPSET
        given = _corrected(given, trial if runs else None)
        # 3. Insert what the user wants in front, and lift it.
        if input_scaling is not None:
            changed, resolved = scale_graph(given.model, input_scaling)
            given = replace(given, model=changed, as_read=False)
        lifted = lift(given.model)
        model = lifted.model.clone()
        if trial is not None and not runs:
            _try(replace(given, model=model, as_read=False), trial)
    except BnfoldError as error:
        raise BnfoldError(f"{path}: {error}") from error
    # 4. Make constants of inputs with values, and fold what exporters put between parameters and their consumers.
    if not overridable:
        constants = close_initializers(model)
    from onnxscript import optimizer  # noqa: PLC0415  # takes most of a second to import

    optimizer.fold_constants(model, should_fold=lambda node: node.op_type in OF_PARAMETERS or None)
    if lifted.model.opset_imports.get("", 1) < NUM_OUTPUTS_OPSET:
        for node in ir.traversal.RecursiveGraphIterator(model.graph):
            if node.op_type == "Split":
                node.attributes.pop("num_outputs", None)
    common.RemoveUnusedNodesPass()(model)
    kept = tuple(value.name or "" for value in model.graph.inputs if value.is_initializer())
    return OnnxSource(given, lifted, model, resolved, kept, constants)


def _corrected(given: GraphFile, trial: TrialKind | None) -> GraphFile:
    """A graph that ONNX Runtime takes, with inferred shapes where stored ones are wrong."""
    failure = None
    if trial is not None:
        try:
            _try(given, trial)
        except CannotLoadError as error:
            failure = error
    try:
        corrected = correct_shapes(given.model)
    except Exception as error:
        if failure is None and trial is not None:
            raise
        # ONNX Runtime did not take it either, or is not asked: it runs no graph of so old an opset.
        raise failure or BnfoldError(f"is no graph that onnx can read: {first_line(root_cause(error))}") from error
    if corrected is not given.model:
        given = replace(given, model=corrected, as_read=False, notes=(*given.notes, INFERRED))
        if failure is not None and trial is not None:
            _try(given, trial)
    elif failure is not None:
        raise failure
    return given


def _try(given: GraphFile, kind: TrialKind) -> None:
    """Load a graph in a process of its own, or also run it once. Raises `BnfoldError` if that fails."""
    shapes = {value.name or "": dims(value) or () for value in given.model.graph.inputs if not value.is_initializer()}
    most = limit(ELEMENTS_SETTING, MOST_ELEMENTS, "elements")
    for one, shape in shapes.items():
        elements = math.prod(size if isinstance(size, int) else FREE_SIZES[0] for size in shape[1:])
        elements *= shape[0] if shape and isinstance(shape[0], int) else 1
        if elements > most:
            raise BnfoldError(
                f"input {short(one)!r} has {elements:,} elements, more than the limit of {most:,}; to fold it, "
                f"set {ELEMENTS_SETTING}={elements}"
            )
    with tempfile.TemporaryDirectory() as folder:
        path = given.path
        if not given.as_read:
            path = Path(folder) / "model.onnx"
            save_graph(given.model, path)
        trial = Trial(path, shapes, kind)
        try:
            from onnxscript import optimizer  # noqa: F401, PLC0415  # meanwhile: it takes most of a second to import

            trial.check()
        finally:
            trial.close()
