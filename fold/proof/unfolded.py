"""The unfolded graph of a published version: read again from its reference, and run in a reduced precision."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import onnx_ir as ir

from fold.arrays import Arrays, Run
from fold.artifact import ModelVersion, check_file
from fold.engine import round_weights
from fold.evaluate import NoisyEvaluator
from fold.precision import FORMATS, Precision, keep_float32, lower, prepare, range_inputs
from fold.runtime import CudaOptions, Provider, open_graph, provider_of, run
from fold.sources import read_onnx


@dataclass(frozen=True)
class Reduced:
    """The unfolded graph in a reduced precision: U, and R with the noise of that precision."""

    unfolded: Run
    noisy: Callable[[Arrays, int, float | None], Arrays]


def load_unfolded(version: ModelVersion) -> ir.Model:
    """The graph that `version` was folded from, made again from its reference. Imports PyTorch for a `.pt2`."""
    check_file(version.path, version.manifest.reference)
    if version.manifest.reference == "unfolded.onnx":
        # Before initializers among the inputs became constants, they stayed inputs, and the manifest did not list them.
        overridable = bool(version.manifest.source.get("overridable", True))
        return read_onnx(version.reference_file, overridable=overridable).model
    from fold.sources import export_graph, load_program  # noqa: PLC0415

    return export_graph(load_program(version.reference_file))


def run_unfolded(
    version: ModelVersion,
    provider: Provider,
    unfolded: ir.Model,
    *,
    seed: int = 0,
    given: Arrays | None = None,
) -> Reduced:
    """The unfolded graph in the reduced precision of the served one, in the same runtime.

    A node stays in float32 if it does so in the served graph, or if the unfolded graph needs it, on inputs drawn from
    `seed` and on `given`.
    """
    manifest, graph = version.manifest, unfolded
    assert manifest.precision != "fp32"
    if manifest.precision != "tf32":
        graph = prepare(unfolded, manifest.precision)
        kept = keep_float32(graph, FORMATS[manifest.precision], range_inputs(manifest, seed, given), provider)
        lower(graph, manifest.precision, Precision.of(manifest).tensors | {entry.tensor for entry in kept})
        round_weights(graph.graph)
    session = open_graph(graph, provider=provider, cuda=CudaOptions(tf32=manifest.tf32))
    return Reduced(partial(run, session), partial(_noisy, graph, provider_of(session) == "cuda"))


def _noisy(graph: ir.Model, tf32: bool, inputs: Arrays, seed: int, roundings: float | None) -> Arrays:
    """Prepared only when it is needed, which is seldom, and not kept."""
    return NoisyEvaluator(graph, tf32=tf32)(inputs, seed, roundings)
