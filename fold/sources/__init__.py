"""Reads a file on disk as a module, an exported program or a graph. Code in the file runs only with `--trust`."""

from typing import TYPE_CHECKING

from fold.lazy import lazy_names

if TYPE_CHECKING:
    from fold.sources.archive.load import load_program
    from fold.sources.checkpoint.checkpoint import Checkpoint, write_checkpoint
    from fold.sources.export import export_graph, export_module
    from fold.sources.onnx import read_onnx
    from fold.sources.quiet import silenced
    from fold.sources.source import Source, Unfolded, load_module, read_source

__all__ = [
    "Checkpoint",
    "Source",
    "Unfolded",
    "export_graph",
    "export_module",
    "load_module",
    "load_program",
    "read_onnx",
    "read_source",
    "silenced",
    "write_checkpoint",
]

__getattr__ = lazy_names(
    __name__,
    {
        "Checkpoint": "checkpoint.checkpoint",
        "Source": "source",
        "Unfolded": "source",
        "export_graph": "export",
        "export_module": "export",
        "load_module": "source",
        "load_program": "archive.load",
        "silenced": "quiet",
        "read_onnx": "onnx",
        "read_source": "source",
        "write_checkpoint": "checkpoint.checkpoint",
    },
)
