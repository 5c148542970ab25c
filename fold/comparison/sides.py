"""One of the two models that are compared, and how the inputs and outputs of both are matched."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from fold.arrays import Arrays, Run
from fold.artifact import DATATYPES, TensorSpec, published_version, read_version, tensor_specs
from fold.errors import BnfoldError
from fold.graph import RUNTIME_OPSET
from fold.proof import GraphReference, ProgramReference, Reference
from fold.runtime import open_graph, open_session, run
from fold.sources import Source, load_program, read_source

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True)
class Side:
    """A model to compare. `model` is its graph, which of a checkpoint is exported.

    `exact`, `plain` and `served` compute the outputs: in float64; in the stored types, node by node as written; and in
    the stored types as ONNX Runtime's defaults serve it. `noisy` is `exact` with noise (fold.evaluate.NoisyEvaluator).
    `mixed` is true if the model stores tensors in types coarser than float32. `from_pytorch` is true if PyTorch
    computes all.
    """

    path: Path
    model: "ir.Model"
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    exact: Run
    plain: Run
    served: Run
    noisy: Callable[[Arrays, int, float | None], Arrays]
    mixed: bool
    from_pytorch: bool

    def unfolded(self, inputs: Arrays) -> Arrays:
        """U of this side, as a `fold.proof.Reference`."""
        return self.plain(inputs)


def read_side(source: Source, folder: Path, announce: Callable[[str], None]) -> Side:
    """Read a checkpoint (a file or a directory), a `.pt2`, an `.onnx` or the served graph of a model directory.

    `folder` takes the files that it is run from; they are needed as long as the side. Raises `BnfoldError` for what
    cannot be read.
    """
    announce(f"reading {source.path}")
    if (version := published_version(source.path)) is not None:
        source = replace(source, path=read_version(version).model_file)
    unfolded = read_source(source, announce)
    file = folder / unfolded.reference
    unfolded.write_reference(file)
    inputs, outputs = tensor_specs(unfolded.model.graph.inputs), tensor_specs(unfolded.model.graph.outputs)
    reference: Reference
    if unfolded.reference == "reference.pt2":
        names = [spec.name for spec in inputs], [spec.name for spec in outputs]
        reference = ProgramReference(load_program(file), *names)
        plain = served = reference.unfolded
    else:
        reference = GraphReference(file, unfolded.model)
        plain = partial(run, open_graph(unfolded.model, optimised=False))
        old = int(unfolded.described.get("opset") or RUNTIME_OPSET) < RUNTIME_OPSET
        served = partial(
            run, open_graph(unfolded.model) if old else open_session(file, provider="cpu", as_shipped=True)
        )
    return Side(
        source.path,
        unfolded.model,
        inputs,
        outputs,
        reference.exact,
        plain,
        served,
        reference.noisy,
        reference.mixed,
        unfolded.reference == "reference.pt2",
    )


@dataclass(frozen=True)
class Match:
    """How A and B correspond: B's name of each input and output of A, and the inputs that both take, in A's names.

    `notes` says what was not matched by its name.
    """

    specs: tuple[TensorSpec, ...]
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    types: Mapping[str, str]
    notes: tuple[str, ...]

    def feed(self, inputs: Arrays, *, cast: bool = True) -> Arrays:
        """Inputs of A as inputs of B, in B's types unless they are for an evaluation in float64."""
        return {
            self.inputs[name]: array.astype(DATATYPES[self.types[name]]) if cast else array
            for name, array in inputs.items()
        }

    def common(self, inputs: Arrays) -> Arrays:
        """Inputs of A with values that B's types hold as well, so that both compute on the same numbers."""
        return {name: array.astype(DATATYPES[self.types[name]]).astype(array.dtype) for name, array in inputs.items()}

    def run(self, compute: Run, *, cast: bool = True) -> Run:
        """What B computes, from A's inputs to A's names of the outputs. `cast` is as for `feed`."""

        def renamed(inputs: Arrays) -> Arrays:
            found = compute(self.feed(inputs, cast=cast))
            return {name: found[other] for name, other in self.outputs.items()}

        return renamed


def match(a: Side, b: Side) -> Match:
    """Match inputs and outputs by name, else by order and shape. Raises `BnfoldError` where they do not correspond."""
    inputs, outputs = _pair("input", a, b, a.inputs, b.inputs), _pair("output", a, b, a.outputs, b.outputs)
    specs = tuple(
        spec.model_copy(
            update={"shape": tuple(y if x < 0 else x for x, y in zip(spec.shape, other.shape, strict=True))}
        )
        for spec, other in inputs
    )
    renamed = [
        f"{kind} {spec.name!r} of A is {other.name!r} of B, by its place"
        for kind, pairs in (("input", inputs), ("output", outputs))
        for spec, other in pairs
        if spec.name != other.name
    ]
    taken = {other.name for _, other in outputs}
    unmatched = [f"output {spec.name!r} of B is not compared: A has none like it" for spec in b.outputs]
    return Match(
        specs,
        {spec.name: other.name for spec, other in inputs},
        {spec.name: other.name for spec, other in outputs},
        {spec.name: other.datatype for spec, other in inputs},
        (*renamed, *(note for note, spec in zip(unmatched, b.outputs, strict=True) if spec.name not in taken)),
    )


def _pair(
    kind: str, a: Side, b: Side, ours: Sequence[TensorSpec], theirs: Sequence[TensorSpec]
) -> list[tuple[TensorSpec, TensorSpec]]:
    by_name = {spec.name: spec for spec in theirs}
    if all(spec.name in by_name for spec in ours) and (kind == "output" or len(ours) == len(theirs)):
        pairs = [(spec, by_name[spec.name]) for spec in ours]
    elif len(ours) == len(theirs):
        pairs = list(zip(ours, theirs, strict=True))
    else:
        listed = [", ".join(spec.name for spec in specs) for specs in (ours, theirs)]
        raise BnfoldError(
            f"{b.path}: its {kind}s {listed[1]} do not correspond to {a.path}'s {listed[0]}; expected the same names, "
            "or the same number in the same order"
        )
    for spec, other in pairs:
        if not _same_kind(spec, other):
            raise BnfoldError(
                f"{b.path}: {kind} {other.name!r} is {other.datatype} {list(other.shape)}, but {spec.name!r} of "
                f"{a.path} is {spec.datatype} {list(spec.shape)}; give models with the same signature"
            )
    return pairs


def _same_kind(spec: TensorSpec, other: TensorSpec) -> bool:
    floats = all(each.datatype in ("FP16", "BF16", "FP32", "FP64") for each in (spec, other))
    same = len(spec.shape) == len(other.shape) and all(
        x == y or min(x, y) < 0 for x, y in zip(spec.shape, other.shape, strict=True)
    )
    return same and (floats or spec.datatype == other.datatype)
