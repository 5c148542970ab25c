"""The unfolded graph: of an `.onnx` as it was given, or of a model directory, as it was when the model was folded."""

from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes import common

from fold.errors import BnfoldError
from fold.graph import GraphFile, Lifted, lift, read_graph
from fold.inputs import InputScaling, ResolvedScaling
from fold.sources.scale_graph import normalise_graph

OF_PARAMETERS = frozenset({"Cast", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
"""Behind these exporters hide parameters; they are evaluated whatever their size, as they make nothing larger."""


@dataclass(frozen=True)
class OnnxSource:
    """An `.onnx` that was read: the file, how it was lifted, and the graph that folding takes. `normalised` tells what
    was put in front of its input, in all three."""

    given: GraphFile
    lifted: Lifted
    model: ir.Model
    normalised: ResolvedScaling | None = None


def read_onnx(path: Path, normalise: InputScaling | None = None) -> OnnxSource:
    """Read an `.onnx` of any opset. Raises `BnfoldError` that names the file if it cannot be folded."""
    from onnxscript import optimizer  # noqa: PLC0415  # takes most of a second, which the first line need not wait for

    given, settled = read_graph(path), None
    try:
        if normalise is not None:
            changed, settled = normalise_graph(given.model, normalise)
            given = replace(given, model=changed, as_read=False)
        lifted = lift(given.model)
    except BnfoldError as error:
        raise BnfoldError(f"{path}: {error}") from error
    model = lifted.model.clone()
    optimizer.fold_constants(model, should_fold=lambda node: node.op_type in OF_PARAMETERS or None)
    common.RemoveUnusedNodesPass()(model)
    return OnnxSource(given, lifted, model, settled)
