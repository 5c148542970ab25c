"""Reads SOURCE: the unfolded graph, its reference, and the defaults that the file brings."""

import hashlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fold.artifact import sha256
from fold.errors import BnfoldError
from fold.sources.checkpoint.directory import Found, find

if TYPE_CHECKING:
    import onnx_ir as ir
    from torch import nn
    from torch.export import ExportedProgram

    from fold.inputs import InputScaling, ResolvedScaling
    from fold.runtime import TrialKind
    from fold.sources.checkpoint.checkpoint import Checkpoint


@dataclass(frozen=True)
class Source:
    """What to read: a checkpoint with its architecture and input shapes, a `.pt2`, or an `.onnx`.

    `path` may be a directory that holds one of them. With `overridable`, callers may override stored values of an
    `.onnx`. `trial`: see `read_onnx`.
    """

    path: Path
    arch: str | None = None
    arch_args: Sequence[str] = ()
    inputs: Sequence[str] = ()
    trust: bool = False
    key: str | None = None
    ema: bool = False
    input_scaling: "InputScaling | None" = None
    batch: int | None = None
    overridable: bool = False
    trial: "TrialKind | None" = "run"


@dataclass(frozen=True)
class Loaded:
    """A checkpoint loaded into its module, in eval mode.

    `described` is its entry in a manifest, and `arch_file` the file with the code of its architecture.
    """

    checkpoint: "Checkpoint"
    module: "nn.Module"
    described: dict[str, Any]
    arch_file: Path | None = None


@dataclass(frozen=True)
class Unfolded:
    """The unfolded graph of a source, how to write its reference, and defaults that the file brought.

    `batches_seen` are the batches that training counted, by the name of a BatchNorm in the checkpoint. A BatchNorm
    without a count, such as any in an `.onnx`, has no entry. `arch_file` is the file with the code of the architecture.
    """

    model: "ir.Model"
    reference: Literal["reference.pt2", "unfolded.onnx"]
    write_reference: Callable[[Path], None]
    described: dict[str, Any]
    metadata: dict[str, Any] = field(default_factory=dict)
    batches_seen: dict[str, int] = field(default_factory=dict)
    input_scaling: "ResolvedScaling | None" = None
    arch_file: Path | None = None

    @property
    def keep_batchnorm(self) -> str | None:
        """How to get a graph with BatchNorm, where an exporter may have folded it."""
        if self.described["kind"] != "onnx":
            return None
        return (
            "exporters fold it in eval mode. To fold and prove it here, give the checkpoint with --arch, or export "
            "with torch.onnx.export(…, dynamo=True, optimize=False)"
        )


def read_source(source: Source, announce: Callable[[str], None] = lambda step: None) -> Unfolded:
    """Read a source and export it. `announce` is called with each step before it begins.

    Raises `BnfoldError` if the file cannot be read, or cannot be read without running its code.
    """
    found = find(source.path)
    source = replace(source, path=found.path)
    _refuse_unread(source)
    unfolded = _read_onnx(source) if source.path.suffix == ".onnx" else _read_module(source, found, announce)
    described = {**_digests(found), **unfolded.described}
    if found.notes:
        described["changes"] = (*found.notes, *described.get("changes", ()))
    return replace(unfolded, described=described)


def _digests(found: Found) -> dict[str, Any]:
    """For a manifest: the SHA-256 of a file. For several, of the lines that `sha256sum` prints of them, and of each."""
    if len(found.files) == 1:
        return {"sha256": sha256(found.files[0])}
    digests = {file.name: sha256(file) for file in found.files}
    lines = "".join(f"{digest}  {name}\n" for name, digest in digests.items())
    return {"sha256": hashlib.sha256(lines.encode()).hexdigest(), "files": digests}


def _read_module(source: Source, found: Found, announce: Callable[[str], None]) -> Unfolded:
    """Read a checkpoint or a `.pt2`, and export it."""
    # PyTorch takes seconds to import, and an .onnx needs none of it.
    from fold.sources import export  # noqa: PLC0415
    from fold.sources.given_shapes import fix_sizes  # noqa: PLC0415

    read = _read_program(source, found, announce)
    program, sizes, resolved = read.program, read.sizes, None
    if source.input_scaling is not None:
        from fold.sources.scaling.program import scale_program, sizes_as_sent  # noqa: PLC0415

        program, resolved = scale_program(program, source.input_scaling, read.metadata)
        sizes = sizes_as_sent(program, sizes, resolved)
    counts = {
        name.removesuffix(".num_batches_tracked"): int(buffer)
        for name, buffer in program.named_buffers()
        if name.endswith("num_batches_tracked") and buffer.numel() == 1
    }
    if source.path.suffix == ".pt2":
        from fold.sources.archive.ranges import check_ranges  # noqa: PLC0415

        check_ranges(program, source.inputs, source.batch)
    retraced: list[str] = []
    model = export.export_graph(program, sizes, note=retraced.append)
    if source.path.suffix == ".pt2":
        model = fix_sizes(model, source.inputs, source.batch)
    return Unfolded(
        model,
        "reference.pt2",
        lambda path: export.save_program(program, path),
        read.described | ({"retraced": retraced[0]} if retraced else {}),
        read.metadata,
        counts,
        resolved,
        read.arch_file,
    )


def _refuse_unread(source: Source) -> None:
    """Raise `BnfoldError` for options that a source of this kind does not read: none is ignored."""
    suffix = source.path.suffix
    chosen = {
        "--arch": source.arch is not None,
        "--arch-arg": bool(source.arch_args),
        "--key": source.key is not None,
        "--ema": source.ema,
    }
    unread = [option for option, given in chosen.items() if given]
    if suffix in (".onnx", ".pt2") and unread:
        verb, them = ("are", "them") if len(unread) > 1 else ("is", "it")
        raise BnfoldError(
            f"{source.path}: {' and '.join(unread)} {verb} for checkpoints, not for {suffix}; leave {them} out"
        )
    if suffix in (".onnx", ".safetensors") and source.trust:
        raise BnfoldError(f"{source.path}: --trust is for files that can run code, not for {suffix}; leave it out")
    if suffix != ".onnx" and source.overridable:
        raise BnfoldError(f"{source.path}: --overridable is for the inputs of an .onnx, not for {suffix}; leave it out")
    if source.arch_args and source.arch is None:
        raise BnfoldError(f"{source.path}: --arch-arg is an argument of --arch; give --arch, or leave it out")


def load_module(source: Source) -> Loaded:
    """Load a checkpoint into the architecture that the user names; the module is returned in eval mode.

    A file that holds a whole module needs no architecture, and is opened only with `trust`. Raises `BnfoldError` for a
    file without weights, and if weights and architecture do not fit.
    """
    found = find(source.path)
    source = replace(source, path=found.path)
    _refuse_unread(source)
    loaded = _load(source, found)
    changes = (*found.notes, *loaded.described["changes"])
    return replace(loaded, described={**loaded.described, "changes": changes})


def _load(source: Source, found: Found) -> Loaded:
    from fold.sources.architecture import build  # noqa: PLC0415
    from fold.sources.checkpoint import checkpoint  # noqa: PLC0415

    loaded = checkpoint.load_checkpoint(source.path, key=source.key, ema=source.ema, trust=source.trust)
    chosen = {name: value for name, value in (("key", source.key), ("ema", source.ema)) if value}
    if source.arch is None:
        module = build.whole_module(loaded, found.config)
        return Loaded(loaded, module, {"kind": "module", **chosen, "changes": loaded.notes})
    built = build.build_module(loaded, source.arch, source.arch_args, found.config)
    described = {
        "kind": "state_dict",
        "arch": source.arch,
        "arch_args": built.arguments,
        **chosen,
        "changes": built.checkpoint.notes,
    }
    if built.file is not None:
        described |= {"arch_file": _where_found(built.file), "arch_sha256": sha256(built.file)}
    return Loaded(built.checkpoint, built.module, described, built.file)


def _where_found(file: Path) -> str:
    """The path of a module's file below the entry of `sys.path` that it was found in, which names no user."""
    above = [Path(entry).absolute() for entry in sys.path if file.is_relative_to(Path(entry).absolute())]
    return file.relative_to(max(above, key=lambda entry: len(entry.parts))).as_posix() if above else file.name


@dataclass(frozen=True)
class _Program:
    """An exported program, the shapes of its inputs without the batch, its entry in a manifest, and its metadata."""

    program: "ExportedProgram"
    sizes: "list[Sequence[int | str]]"
    described: dict[str, Any]
    metadata: dict[str, Any]
    arch_file: Path | None = None


def _read_program(source: Source, found: Found, announce: Callable[[str], None]) -> _Program:
    from fold.sources import outputs as trees  # noqa: PLC0415
    from fold.sources import tracing  # noqa: PLC0415
    from fold.sources.archive import load as archive  # noqa: PLC0415

    if source.path.suffix == ".pt2":
        program = trees.with_plain_outputs(archive.load_program(source.path, trust=source.trust))
        return _Program(program, [], {"kind": "pt2", **_sizes_given(source)}, {})
    loaded = _load(source, found)
    metadata = loaded.checkpoint.metadata
    own = metadata.get("inputs")
    given = source.inputs or ([str(text) for text in own] if isinstance(own, list | tuple) else [])
    announce("exporting")
    program, shapes, note = tracing.trace(loaded.module, source.path, given, source.batch)
    described = {**loaded.described, **_sizes_given(source), "inputs": [str(shape) for shape in shapes]}
    if note:
        described["changes"] = (*described["changes"], note)
    return _Program(program, [shape.shape for shape in shapes], described, metadata, loaded.arch_file)


def _sizes_given(source: Source) -> dict[str, Any]:
    """What `--input` and `--batch` fixed, for a manifest."""
    return {name: value for name, value in (("inputs", list(source.inputs)), ("batch", source.batch)) if value}


def _read_onnx(source: Source) -> Unfolded:
    from fold.sources.onnx import read_onnx  # noqa: PLC0415

    read = read_onnx(
        source.path,
        source.input_scaling,
        source.inputs,
        source.batch,
        overridable=source.overridable,
        trial=source.trial,
    )
    folder = source.path.absolute().parent
    described = {
        "kind": "onnx",
        **_sizes_given(source),
        "opset": read.lifted.opset,
        "ir_version": read.given.model.ir_version,
        "changes": read.notes,
        "overridable": list(read.overridable),
        "external_data": {str(file.relative_to(folder)): sha256(file) for file in read.given.external_files},
    }
    return Unfolded(read.model, "unfolded.onnx", read.given.copy_to, described, input_scaling=read.input_scaling)
