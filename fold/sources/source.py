"""What a user names as SOURCE, read: the unfolded graph, its reference, and what the file says of itself."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fold.errors import BnfoldError

if TYPE_CHECKING:
    import onnx_ir as ir
    from torch import nn

    from fold.sources.checkpoint import Checkpoint


@dataclass(frozen=True)
class Source:
    """What to read: a checkpoint with its architecture and input shapes, a `.pt2`, or an `.onnx`."""

    path: Path
    arch: str | None = None
    arch_args: Sequence[str] = ()
    inputs: Sequence[str] = ()
    trust: bool = False


@dataclass(frozen=True)
class Loaded:
    """A checkpoint in the module that it belongs to, in eval mode. `described` says how, for a manifest."""

    checkpoint: "Checkpoint"
    module: "nn.Module"
    described: dict[str, Any]


@dataclass(frozen=True)
class Unfolded:
    """The unfolded graph of a source, how to write its reference, and defaults that the file brought.

    `batches_seen` has what training counted, by a BatchNorm's name in the checkpoint; where nothing was counted, as
    in an `.onnx`, it has no entry.
    """

    model: "ir.Model"
    reference: Literal["reference.pt2", "unfolded.onnx"]
    write_reference: Callable[[Path], None]
    described: dict[str, Any]
    metadata: dict[str, Any] = field(default_factory=dict)
    batches_seen: dict[str, int] = field(default_factory=dict)


def read_source(source: Source, announce: Callable[[str], None] = lambda step: None) -> Unfolded:
    """Read a source and export it. `announce` is told each step before it is taken.

    Raises `BnfoldError` for what cannot be read, or would have to run code to be read.
    """
    if not source.path.is_file():
        raise BnfoldError(f"{source.path}: no such file; expected a checkpoint, a .pt2 or an .onnx")
    if source.path.suffix == ".onnx":
        return _read_onnx(source)
    # PyTorch takes seconds to import, and an .onnx needs none of it.
    from fold import export  # noqa: PLC0415
    from fold.sources import archive, shapes  # noqa: PLC0415

    metadata: dict[str, Any] = {}
    if source.path.suffix == ".pt2":
        if not source.trust:
            raise BnfoldError(
                f"{source.path}: opening a .pt2 can run code; pass --trust if you know where the file comes from"
            )
        program = archive.load_program(source.path, trust=True)
        described: dict[str, Any] = {"kind": "pt2"}
    else:
        loaded = load_module(source)
        metadata, described = loaded.checkpoint.metadata, loaded.described
        given = [shapes.parse_input(text) for text in source.inputs or metadata.get("inputs", ())]
        if not given:
            raise BnfoldError(
                f"{source.path}: give the shape of one input without the batch, such as --input 3,224,224"
            )
        announce("exporting")
        program = export.export_program(loaded.module, shapes.example_inputs(loaded.module, given))
        del loaded  # the program has a copy of its weights
    counts = {
        name.removesuffix(".num_batches_tracked"): int(buffer)
        for name, buffer in program.named_buffers()
        if name.endswith("num_batches_tracked")
    }
    model = export.export_graph(program)
    return Unfolded(
        model, "reference.pt2", lambda path: export.save_program(program, path), described, metadata, counts
    )


def load_module(source: Source) -> Loaded:
    """Load a checkpoint into the architecture that the user names; the module comes back in eval mode.

    Raises `BnfoldError` for a file that holds no weights, and where the two do not fit.
    """
    from fold.sources import architecture, checkpoint  # noqa: PLC0415

    loaded = checkpoint.load_checkpoint(source.path)
    if source.arch is None:
        raise BnfoldError(f"{source.path}: holds weights alone; name their architecture with --arch module:callable")
    given = loaded.metadata.get("arch_args")
    arguments = {**(given if isinstance(given, dict) else {}), **architecture.parse_arch_args(source.arch_args)}
    module = architecture.build_module(loaded, source.arch, arguments)
    return Loaded(loaded, module, {"kind": "state_dict", "arch": source.arch, "arch_args": arguments})


def _read_onnx(source: Source) -> Unfolded:
    from fold.artifact import sha256  # noqa: PLC0415
    from fold.unfolded import read_onnx  # noqa: PLC0415

    read, folder = read_onnx(source.path), source.path.absolute().parent
    described = {
        "kind": "onnx",
        "opset": read.lifted.opset,
        "ir_version": read.given.model.ir_version,
        "changes": read.lifted.notes,
        "external_data": {str(file.relative_to(folder)): sha256(file) for file in read.given.beside},
    }
    return Unfolded(read.model, "unfolded.onnx", read.given.copy_to, described)
