"""The unfolded graph of an `.onnx`: a file of a user, or `unfolded.onnx` of a model directory."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes import common

from fold.errors import BnfoldError
from fold.graph import GraphFile, Lifted, correct_shapes, lift, read_graph
from fold.inputs import InputScaling, ResolvedScaling
from fold.sources.scale_graph import scale_graph
from fold.sources.sizes import fix_sizes

OF_PARAMETERS = frozenset({"Cast", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
"""Exporters put these between parameters and their consumers. They are folded at any size: none enlarges a tensor."""
NUM_OUTPUTS_OPSET = 18
"""Split has had `num_outputs` since this opset. onnxscript writes it at any opset in place of an even SplitToSequence;
before, a Split without sizes is even."""


@dataclass(frozen=True)
class OnnxSource:
    """An `.onnx` that was read: the file (`given`), the graph lifted to a newer opset, and the graph to fold (`model`).

    `input_scaling` is what was inserted behind an input, in all three.
    """

    given: GraphFile
    lifted: Lifted
    model: ir.Model
    input_scaling: ResolvedScaling | None = None


def read_onnx(
    path: Path, input_scaling: InputScaling | None = None, inputs: Sequence[str] = (), batch: int | None = None
) -> OnnxSource:
    """Read an `.onnx` of any opset. `inputs` and `batch` fix sizes that the file leaves free.

    Raises `BnfoldError` that names the file if it cannot be folded.
    """
    from onnxscript import optimizer  # noqa: PLC0415  # takes most of a second to import

    given, resolved = read_graph(path), None
    corrected = correct_shapes(given.model)
    if corrected is not given.model:
        given = replace(given, model=corrected, as_read=False)
    try:
        if inputs or batch is not None:
            given = replace(given, model=fix_sizes(given.model, inputs, batch), as_read=False)
        if input_scaling is not None:
            changed, resolved = scale_graph(given.model, input_scaling)
            given = replace(given, model=changed, as_read=False)
        lifted = lift(given.model)
    except BnfoldError as error:
        raise BnfoldError(f"{path}: {error}") from error
    model = lifted.model.clone()
    optimizer.fold_constants(model, should_fold=lambda node: node.op_type in OF_PARAMETERS or None)
    if lifted.model.opset_imports.get("", 1) < NUM_OUTPUTS_OPSET:
        for node in ir.traversal.RecursiveGraphIterator(model.graph):
            if node.op_type == "Split":
                node.attributes.pop("num_outputs", None)
    common.RemoveUnusedNodesPass()(model)
    return OnnxSource(given, lifted, model, resolved)
