"""The unfolded model in the reduced precision in which the folded graph is served."""

from functools import partial

import onnx_ir as ir

from fold.arrays import Arrays, Run
from fold.artifact import ModelVersion
from fold.engine import round_weights
from fold.precision import FORMATS, Precision, decide, lower, prepared, ranged
from fold.proof.unfolded import load_unfolded
from fold.runtime import CudaOptions, Provider, open_graph, run


def run_unfolded(
    version: ModelVersion,
    provider: Provider,
    *,
    unfolded: ir.Model | None = None,
    seed: int = 0,
    given: Arrays | None = None,
) -> Run:
    """U: the unfolded graph in the precision of the stored one, in the same runtime. What stays in float32 there stays
    so here, where it exists, beside what is out of range here."""
    manifest = version.manifest
    assert manifest.precision != "fp32"
    unfolded = load_unfolded(version) if unfolded is None else unfolded
    if manifest.precision == "tf32":
        return partial(run, open_graph(unfolded, provider=provider, cuda=CudaOptions(tf32=True)))
    graph = prepared(unfolded, manifest.precision)
    own = decide(graph, FORMATS[manifest.precision], ranged(manifest, seed, given), provider)
    kept = Precision.of(manifest).tensors | {entry.tensor for entry in own}
    lowered = lower(unfolded, manifest.precision, kept)
    round_weights(lowered.graph)
    return partial(run, open_graph(lowered, provider=provider))
