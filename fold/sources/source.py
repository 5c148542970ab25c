"""Reads SOURCE: the unfolded graph, its reference, and the defaults that the file brings."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fold.errors import BnfoldError

if TYPE_CHECKING:
    import onnx_ir as ir
    from torch import nn
    from torch.export import ExportedProgram

    from fold.inputs import InputScaling, ResolvedScaling
    from fold.sources.checkpoint.checkpoint import Checkpoint


@dataclass(frozen=True)
class Source:
    """What to read: a checkpoint with its architecture and input shapes, a `.pt2`, or an `.onnx`."""

    path: Path
    arch: str | None = None
    arch_args: Sequence[str] = ()
    inputs: Sequence[str] = ()
    trust: bool = False
    key: str | None = None
    ema: bool = False
    input_scaling: "InputScaling | None" = None


@dataclass(frozen=True)
class Loaded:
    """A checkpoint loaded into its module, in eval mode. `described` is its entry in a manifest."""

    checkpoint: "Checkpoint"
    module: "nn.Module"
    described: dict[str, Any]


@dataclass(frozen=True)
class Unfolded:
    """The unfolded graph of a source, how to write its reference, and defaults that the file brought.

    `batches_seen` are the batches that training counted, by the name of a BatchNorm in the checkpoint. A BatchNorm
    without a count, such as any in an `.onnx`, has no entry.
    """

    model: "ir.Model"
    reference: Literal["reference.pt2", "unfolded.onnx"]
    write_reference: Callable[[Path], None]
    described: dict[str, Any]
    metadata: dict[str, Any] = field(default_factory=dict)
    batches_seen: dict[str, int] = field(default_factory=dict)
    input_scaling: "ResolvedScaling | None" = None


def read_source(source: Source, announce: Callable[[str], None] = lambda step: None) -> Unfolded:
    """Read a source and export it. `announce` is called with each step before it begins.

    Raises `BnfoldError` if the file cannot be read, or cannot be read without running its code.
    """
    if not source.path.is_file():
        raise BnfoldError(f"{source.path}: no such file; expected a checkpoint, a .pt2 or an .onnx")
    if source.path.suffix in (".onnx", ".pt2") and (source.key is not None or source.ema):
        raise BnfoldError(f"{source.path}: holds one network; --key and --ema are for checkpoints, leave them out")
    if source.path.suffix == ".onnx":
        return _read_onnx(source)
    # PyTorch takes seconds to import, and an .onnx needs none of it.
    from fold.sources import export  # noqa: PLC0415

    program, sizes, described, metadata = _read_program(source, announce)
    resolved = None
    if source.input_scaling is not None:
        from fold.sources.scale_program import scale_program, sizes_as_sent  # noqa: PLC0415

        program, resolved = scale_program(program, source.input_scaling, metadata)
        sizes = sizes_as_sent(program, sizes, resolved)
    counts = {
        name.removesuffix(".num_batches_tracked"): int(buffer)
        for name, buffer in program.named_buffers()
        if name.endswith("num_batches_tracked")
    }
    model = export.export_graph(program, sizes)
    return Unfolded(
        model, "reference.pt2", lambda path: export.save_program(program, path), described, metadata, counts, resolved
    )


def load_module(source: Source) -> Loaded:
    """Load a checkpoint into the architecture that the user names; the module is returned in eval mode.

    A file that holds a whole module needs no architecture, and is opened only with `trust`. Raises `BnfoldError` for a
    file without weights, and if weights and architecture do not fit.
    """
    from fold.sources.checkpoint import architecture, checkpoint  # noqa: PLC0415

    loaded = checkpoint.load_checkpoint(source.path, key=source.key, ema=source.ema, trust=source.trust)
    chosen = {name: value for name, value in (("key", source.key), ("ema", source.ema)) if value}
    if source.arch is None:
        module = architecture.whole_module(loaded)
        return Loaded(loaded, module, {"kind": "module", **chosen, "changes": loaded.notes})
    given = loaded.metadata.get("arch_args")
    arguments = {**(given if isinstance(given, dict) else {}), **architecture.parse_arch_args(source.arch_args)}
    module, loaded = architecture.build_module(loaded, source.arch, arguments)
    described = {"kind": "state_dict", "arch": source.arch, "arch_args": arguments, **chosen, "changes": loaded.notes}
    return Loaded(loaded, module, described)


def _read_program(
    source: Source, announce: Callable[[str], None]
) -> "tuple[ExportedProgram, list[Sequence[int | str]], dict[str, Any], dict[str, Any]]":
    """The exported program, the shapes of its inputs without the batch, its entry in the manifest, and its metadata."""
    from fold.sources import outputs as trees  # noqa: PLC0415
    from fold.sources import tracing  # noqa: PLC0415
    from fold.sources.archive import load as archive  # noqa: PLC0415

    if source.path.suffix == ".pt2":
        program = trees.with_plain_outputs(archive.load_program(source.path, trust=source.trust))
        return program, [], {"kind": "pt2"}, {}
    loaded = load_module(source)
    metadata = loaded.checkpoint.metadata
    own = metadata.get("inputs")
    given = source.inputs or ([str(text) for text in own] if isinstance(own, list | tuple) else [])
    announce("exporting")
    program, shapes, note = tracing.trace(loaded.module, source.path, given)
    described = {**loaded.described, "inputs": [str(shape) for shape in shapes]}
    if note:
        described["changes"] = (*described["changes"], note)
    return program, [shape.shape for shape in shapes], described, metadata


def _read_onnx(source: Source) -> Unfolded:
    from fold.artifact import sha256  # noqa: PLC0415
    from fold.sources.onnx import read_onnx  # noqa: PLC0415

    read, folder = read_onnx(source.path, source.input_scaling), source.path.absolute().parent
    described = {
        "kind": "onnx",
        "opset": read.lifted.opset,
        "ir_version": read.given.model.ir_version,
        "changes": read.lifted.notes,
        "external_data": {str(file.relative_to(folder)): sha256(file) for file in read.given.external_files},
    }
    return Unfolded(read.model, "unfolded.onnx", read.given.copy_to, described, input_scaling=read.input_scaling)
