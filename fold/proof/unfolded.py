"""The unfolded graph of a published version, made again from its reference."""

import onnx_ir as ir

from fold.artifact import ModelVersion
from fold.sources import read_onnx


def load_unfolded(version: ModelVersion) -> ir.Model:
    """The graph that `version` was folded from, made again from its reference. Imports PyTorch for a `.pt2`."""
    if version.manifest.reference == "unfolded.onnx":
        return read_onnx(version.reference_file).model
    from fold.sources import export_graph, load_program  # noqa: PLC0415

    return export_graph(load_program(version.reference_file))
