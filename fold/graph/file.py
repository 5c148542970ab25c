"""Reads and writes ONNX files with external data.

A protobuf holds at most 2 GB. For larger models ONNX keeps weights in a second file, named relative to the first.
"""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir as ir

from fold.errors import BnfoldError, first_line, root_cause
from fold.graph.checks import check_model, check_places
from fold.graph.reading import FLOATS
from fold.graph.spellings import respell

INLINE_LIMIT = (1 << 31) - (1 << 26)
"""Bytes of weights up to which one file is written; the rest of protobuf's 2 GB is for the graph."""
SMALL = 1024
"""Bytes of a tensor that is always loaded: axes, scales, pads."""


@dataclass(frozen=True)
class GraphFile:
    """A file that was read. `external_files` hold tensors of it, in its folder or below; `as_read` is false if `model`
    differs from the file, and `notes` say what was rewritten to read it, one line each."""

    path: Path
    model: ir.Model
    external_files: tuple[Path, ...]
    as_read: bool = True
    notes: tuple[str, ...] = ()

    def copy_to(self, path: Path) -> None:
        """Copy the file byte for byte; if it has external data or `model` was changed, write `model` as a new file."""
        if self.external_files or not self.as_read:
            save_graph(self.model, path)
        else:
            shutil.copyfile(self.path, path)


def read_graph(path: Path) -> GraphFile:
    """Read a graph with its external data; above `INLINE_LIMIT` weights are memory-mapped, not loaded.

    Raises `BnfoldError` if the file or a tensor cannot be read.
    """
    try:
        folder = str(path.absolute().parent)
        proto = onnx.load(path, load_external_data=False)
        check_places(proto)
        notes = respell(proto, folder)
        model = ir.from_proto(proto)
        ir.external_data.set_base_dir(model.graph, folder)  # and data is only read from there
    except BnfoldError as error:
        raise BnfoldError(f"{path}: {error}") from error
    except OSError as error:
        raise BnfoldError(f"{path}: cannot be read ({error.strerror})") from error
    except Exception as error:  # protobuf's and onnx_ir's errors share no base
        raise BnfoldError(f"{path}: is no ONNX model: {first_line(root_cause(error))}") from error
    if not len(model.graph.outputs):
        raise BnfoldError(f"{path}: is no ONNX model: its graph has no output")
    try:
        check_model(model)
    except BnfoldError as error:
        raise BnfoldError(f"{path}: {error}") from error
    mapped = _weight_bytes(model) > INLINE_LIMIT
    external_files = set()
    for place, tensor in _external_tensors(model):
        try:
            _check_external(tensor)
            array = tensor.numpy()  # checks where the file lies and how long it is
        except (OSError, ValueError, TypeError) as error:
            raise BnfoldError(
                f"{path}: the data of tensor {tensor.name!r} cannot be read: {first_line(error)}; "
                f"{tensor.location} must lie whole beside the model, as a file and not as a link"
            ) from error
        external_files.add(Path(tensor.path))
        if isinstance(place, ir.Value):
            if not mapped or tensor.dtype not in FLOATS or tensor.nbytes <= SMALL:
                place.const_value = ir.tensor(array.copy(), dtype=tensor.dtype, name=tensor.name)
        else:
            loaded = ir.tensor(array.copy(), dtype=tensor.dtype, name=tensor.name)
            place.attributes["value"] = ir.AttrTensor("value", loaded)
    return GraphFile(path, model, tuple(sorted(external_files)), as_read=not notes, notes=notes)


def _check_external(tensor: ir.ExternalTensor) -> None:
    """Raise `ValueError` for data that is no file, such as a pipe, which would never end, or of another length."""
    file, end = Path(tensor.path), (tensor.offset or 0) + tensor.nbytes
    if file.exists() and not file.is_file():
        raise ValueError("it is no file")
    if tensor.length is not None and tensor.length != tensor.nbytes:
        raise ValueError(f"its length is {tensor.length:,} bytes, and its shape and type need {tensor.nbytes:,}")
    if file.is_file() and end > file.stat().st_size:
        raise ValueError(f"it ends at byte {end:,}, and the file has {file.stat().st_size:,}")


def save_graph(model: ir.Model, path: Path, *, apart: bool = False) -> None:
    """Write a graph as one file; above `INLINE_LIMIT`, its weights go to `path` + `.data`. With `apart` they always do,
    unless there are texts among them, which ONNX keeps in the graph's file."""
    apart = apart and all(tensor.dtype != ir.DataType.STRING for tensor in _weights(model))
    data = f"{path.name}.data" if apart or _weight_bytes(model) > INLINE_LIMIT else None
    ir.save(model, path, external_data=data)


def _weights(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None:
                yield value.const_value


def _weight_bytes(model: ir.Model) -> int:
    return sum(tensor.nbytes for tensor in _weights(model))


def _external_tensors(model: ir.Model) -> Iterator[tuple[ir.Value | ir.Node, ir.ExternalTensor]]:
    """External tensors, with the initializer or the Constant node that holds them."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                yield value, value.const_value
        for node in graph:
            attribute = node.attributes.get("value")
            if attribute is not None and attribute.type == ir.AttributeType.TENSOR:
                tensor = attribute.as_tensor()
                if isinstance(tensor, ir.ExternalTensor):
                    yield node, tensor
