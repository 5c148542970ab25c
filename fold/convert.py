"""The whole conversion: read a source, export, fold, prove, and publish the model directory if the proof holds."""

import gc
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from fold.artifact import (
    Manifest,
    ModelVersion,
    PrecisionName,
    Preprocessing,
    new_version,
    next_version,
    refuse_version,
    tensor_specs,
    write_canary,
    write_manifest,
    write_triton_config,
)
from fold.bench import Opening, compare_opening
from fold.engine import Folding, FoldReport, Gauge, fold_graph, round_weights
from fold.errors import BnfoldError
from fold.graph import read_graph, refuse_not_finite, save_graph
from fold.inputs import drawn_inputs, read_preprocessing, refuse_misfit, unscaled, working_sizes
from fold.inspection import OBSERVED_ROWS
from fold.precision import FORMATS, Precision, lower, range_inputs, reduce, refuse_tf32
from fold.proof import Certificate, Verdict, certify
from fold.reports import observe_layers, write_html
from fold.runtime import CudaOptions, Provider, ProviderUnavailableError, release_memory, tool_versions
from fold.sources import Source, Unfolded, read_source

if TYPE_CHECKING:
    import onnx_ir as ir


COPIES = {
    "model.onnx": "the folded graph",
    "unfolded.onnx": "the unfolded graph",
    "reference.pt2": "the unfolded model",
}
"""What errors call the files of a version that is not published yet."""


SAMPLES, UNCHANGED_SAMPLES = 16, 2
"""Rows that a proof draws. A graph that is equal to its source by the letter needs no more than a few, which also show
that it runs."""


@dataclass(frozen=True)
class Target:
    """Where to publish, and what belongs to the model in addition to its weights."""

    repository: Path
    name: str | None = None
    version: int | None = None
    labels: Path | None = None
    preprocessing: Path | None = None


@dataclass(frozen=True)
class Conversion:
    """The result of a conversion. `path` is None if the proof failed: then nothing was published.

    `changes` says what had to be rewritten in the source before it could be folded, one line each; `precision` what of
    the graph stayed in float32, if another precision was asked for; `opening` how it was chosen whether activations are
    opened, if that was measured; `retraced` why `torch.onnx.export` traced the model again, if it did.
    """

    path: Path | None
    name: str
    version: int
    report: FoldReport
    certificate: Certificate
    changes: tuple[str, ...] = ()
    precision: Precision = field(default_factory=Precision)
    arch_file: Path | None = None
    opening: Opening | None = None
    retraced: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The JSON of `bnfold fold --json`."""
        return {
            **self.report.to_dict(),
            "model": self.name,
            "version": str(self.version),
            "model_dir": None if self.path is None else str(self.path),
            "changes": list(self.changes),
            "arch_file": None if self.arch_file is None else str(self.arch_file),
            "precision": self.precision.to_dict(),
            "opening": None if self.opening is None else self.opening.to_dict(),
            "retraced": self.retraced,
            "verdict": self.certificate.to_dict(),
        }


class _Stored(NamedTuple):
    """A folded graph in the precision that was asked for, its report, and the gauges of its tensors."""

    model: "ir.Model"
    report: FoldReport
    carried: dict[str, Gauge]
    opened: bool
    precision: Precision


class _ProofFailedError(Exception):
    """Leaves the block of `new_version`, so that nothing is published."""


def convert(
    source: Source,
    target: Target,
    *,
    open_activations: bool | Literal["auto"] = False,
    precision: PrecisionName = "fp32",
    samples: int | None = None,
    seed: int = 0,
    provider: Provider = "auto",
    announce: Callable[[str], None] = lambda step: None,
    tell: Callable[[str], None] = lambda line: None,
    collect: Callable[[], object] = gc.collect,
) -> Conversion:
    """Read, export, fold, prove and publish, with `samples` drawn rows: if it is None 16, or 2 for an unchanged graph.

    `announce` is told each step before it is taken, `tell` what the user must know before the proof, and `collect`
    frees reference cycles then. With `open_activations` `auto` the graph that is faster on `provider` is published.
    Raises `BnfoldError` for bad input. A proof that fails is no error: the result says so, and nothing is published.
    """
    # 1. Refuse what could not be published, before minutes are spent on it.
    name = target.name or _name_of(source.path.absolute())
    version = target.version or next_version(target.repository, name)
    refuse_version(target.repository, name, version)
    refuse_tf32(precision, provider, "precision tf32")

    # 2. Read the source and export the unfolded graph.
    announce(f"reading {source.path}")
    unfolded = _read(source, announce)
    told, arch_file = unfolded.described, unfolded.arch_file

    # 3. Fold it; to choose the faster graph, without and with opened activations.
    announce("folding")
    ways = (False, True) if open_activations == "auto" else (open_activations,)
    foldings = {way: fold_graph(unfolded.model, open_activations=way, exact=precision in FORMATS) for way in ways}
    first = foldings[ways[0]]
    samples = samples or (UNCHANGED_SAMPLES if first.unchanged else SAMPLES)
    _tell_without_batchnorm(first.report, source, unfolded, tell)
    manifest = _manifest(source, target, name, version, unfolded, first.model, seed)

    # 4. Convert it to a reduced precision, if one was asked for, and choose the faster graph.
    with _naming(source.path):
        chosen, opening = _choose(foldings, manifest, precision, seed, provider, announce)
    model, report, carried, stored_in = chosen.model, chosen.report, chosen.carried, chosen.precision
    manifest = manifest.model_copy(update={"fold": _described(chosen, opening)})
    del foldings, first, chosen
    path: Path | None = target.repository / name / str(version)
    try:
        with new_version(target.repository, name, version) as folder:
            # 5. Write both graphs.
            announce("writing")
            save_graph(model, folder / "model.onnx")
            unfolded.write_reference(folder / unfolded.reference)
            graph = unfolded.model
            del unfolded, model  # the proof reads what was written, and needs their memory
            collect()  # graphs contain reference cycles

            # 6. Prove what was written.
            with _naming(source.path, folder):
                certificate = certify(
                    ModelVersion(folder, manifest),
                    samples=samples,
                    seed=seed,
                    provider=provider,
                    unfolded=graph,
                    announce=announce,
                )
            if not certificate:
                raise _ProofFailedError

            # 7. Write the rest of the model directory; it is published when the block ends.
            manifest = manifest.model_copy(update={"verdict": certificate.to_dict()})
            announce("drawing the report")
            _write_report(folder, manifest, graph, carried, report, samples, seed)
            _write_rest(folder, manifest, certificate.verdict)
    except _ProofFailedError:
        path = None
    changes = tuple(told.get("changes", ()))
    return Conversion(
        path, name, version, report, certificate, changes, stored_in, arch_file, opening, told.get("retraced")
    )


def _name_of(source: Path) -> str:
    """The name of a model after its directory, or after its file without the suffix of its format."""
    suffix = r"(\.[a-z]+)?\.index\.json$|\.pth\.tar$|(?<=.)\.[^.]*$"
    name = source.name if source.is_dir() else re.sub(suffix, "", source.name)
    return re.sub(r"[^A-Za-z0-9_.-]", "_", name).lstrip(".-") or "model"


def _choose(
    foldings: Mapping[bool, Folding],
    manifest: Manifest,
    precision: PrecisionName,
    seed: int,
    provider: Provider,
    announce: Callable[[str], None],
) -> tuple[_Stored, Opening | None]:
    """The graph to publish, in the precision that was asked for. `foldings` has it by whether activations are opened;
    of two, the closed one first, the faster one is chosen."""
    if precision in FORMATS:
        announce(f"choosing what can be {precision}")
    stored = [_store(folding, way, manifest, precision, seed, provider) for way, folding in foldings.items()]
    if len(stored) == 1:
        return stored[0], None
    announce("timing the graph without and with opened activations")
    cuda = CudaOptions(tf32=precision == "tf32")
    closed, opened = stored
    opening = compare_opening(closed.model, opened.model, manifest, cuda=cuda, provider=provider, seed=seed)
    return (opened if opening.opened else closed), opening


def _store(
    folding: Folding, opened: bool, manifest: Manifest, precision: PrecisionName, seed: int, provider: Provider
) -> _Stored:
    """Convert a folded graph to the precision in which it is published."""
    model, report, kept = folding.model, folding.report, Precision(precision)
    if precision == "fp16" or precision == "bf16":  # noqa: PLR1714  # mypy narrows by these
        model, kept = reduce(model, precision, range_inputs(manifest, seed), provider)
        lower(model, precision, kept.tensors)
        report = replace(report, flushed=round_weights(model.graph))
    return _Stored(model, report, folding.carried, opened, kept)


def _described(stored: _Stored, opening: Opening | None) -> dict[str, Any]:
    """The entry `fold` of a manifest."""
    return {
        **stored.report.to_dict(),
        "open_activations": stored.opened,
        "opening": None if opening is None else opening.to_dict(),
        "precision": stored.precision.to_dict(),
    }


def _read(source: Source, announce: Callable[[str], None]) -> Unfolded:
    unfolded = read_source(source, announce)
    with _naming(source.path):
        refuse_not_finite(unfolded.model)
    return unfolded


@contextmanager
def _naming(source: Path, folder: Path | None = None) -> Iterator[None]:
    """Errors name the file of the user, and not the graphs in `folder`, which nobody can look at later."""
    try:
        yield
    except ProviderUnavailableError:
        raise
    except BnfoldError as error:
        text = str(error)
        if folder is not None:
            for name, graph in COPIES.items():
                text = text.replace(str(folder / name), graph)
        raise BnfoldError(text if str(source) in text else f"{source}: {text}") from error


def _tell_without_batchnorm(
    report: FoldReport, source: Source, unfolded: Unfolded, tell: Callable[[str], None]
) -> None:
    """Say first why a graph has no BatchNorm to fold, and what to do about it."""
    if report.batchnorms:
        return
    tell(f"{source.path}: has no BatchNorm to fold; {unfolded.keep_batchnorm or 'it is proven and published'}")


def _manifest(
    source: Source, target: Target, name: str, version: int, unfolded: Unfolded, folded: "ir.Model", seed: int
) -> Manifest:
    """The manifest as far as it is known before the proof."""
    scaling = {} if unfolded.input_scaling is None else {"normalize": unfolded.input_scaling.to_dict()}
    manifest = Manifest(
        name=name,
        version=str(version),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        source={"file": source.path.absolute().name, **unfolded.described, **scaling},
        reference=unfolded.reference,
        inputs=tensor_specs(folded.graph.inputs),
        outputs=tensor_specs(folded.graph.outputs),
        preprocessing=_preprocessing(target, unfolded),
        labels=_labels(target, unfolded.metadata),
        fold={},
        verdict={},
        versions=tool_versions(),
    )
    with _naming(source.path):
        sizes = working_sizes(unfolded.model, manifest.required_inputs, seed)
    return manifest.model_copy(update={"free_sizes": sizes})


def _write_report(
    folder: Path,
    manifest: Manifest,
    unfolded: "ir.Model",
    carried: Mapping[str, Gauge],
    report: FoldReport,
    samples: int,
    seed: int,
) -> None:
    release_memory()  # of the proof
    inputs = drawn_inputs(manifest, min(samples, OBSERVED_ROWS), seed)
    observed = observe_layers(unfolded, read_graph(folder / "model.onnx").model, carried, report, inputs)
    write_html(folder / "report.html", manifest, report, observed)


def _write_rest(folder: Path, manifest: Manifest, verdict: Verdict) -> None:
    """The canary, the labels, the manifest, which comes last in the folder, and Triton's configuration above it."""
    if verdict.evidence is not None:
        limits = {output.name: output.limit for output in verdict.outputs}
        write_canary(folder, verdict.evidence.inputs, verdict.evidence.exact, limits)
    if manifest.labels:
        (folder / "labels.txt").write_text("\n".join(manifest.labels) + "\n", encoding="utf-8")
    write_manifest(folder, manifest)
    write_triton_config(folder.parent, manifest)


def _labels(target: Target, metadata: dict[str, Any]) -> tuple[str, ...] | None:
    if target.labels is None:
        return tuple(str(label) for label in metadata.get("labels") or ()) or None
    try:
        lines = target.labels.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BnfoldError(f"{target.labels}: cannot be read ({error}); expected one label a line") from error
    return tuple(line.strip() for line in lines if line.strip()) or None


def _preprocessing(target: Target, unfolded: Unfolded) -> Preprocessing | None:
    """How images become an input; if the graph itself scales that input, only how they become bytes."""
    specs = {spec.name: spec for spec in tensor_specs(unfolded.model.graph.inputs)}
    found = read_preprocessing(target.preprocessing, unfolded.metadata, list(specs))
    if found is None:
        return None
    resolved, where = unfolded.input_scaling, target.preprocessing or "the checkpoint's preprocessing"
    if resolved is not None and found.input == resolved.input:
        found = unscaled(found, resolved)
    refuse_misfit(found, specs[found.input], str(where))
    return found
