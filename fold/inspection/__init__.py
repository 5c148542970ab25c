"""Inspection: each BatchNorm of a graph, its statistics, the weights that would absorb it, and what is suspicious.

And the error of each layer."""

from fold.inspection.batchnorm import BatchNorm
from fold.inspection.folded_weights import FoldedTensor, HalfPrecision
from fold.inspection.inspect import Inspection, inspect_graph
from fold.inspection.layers import (
    OBSERVED_ROWS,
    Layer,
    LayerErrors,
    LayerSampler,
    Sampled,
    Samples,
    evenly,
    first_free,
    layer_errors,
    sample,
)
from fold.inspection.placement import listed
from fold.inspection.statistics import Span
from fold.inspection.suspicions import Suspicion

__all__ = [
    "OBSERVED_ROWS",
    "BatchNorm",
    "FoldedTensor",
    "HalfPrecision",
    "Inspection",
    "Layer",
    "LayerErrors",
    "LayerSampler",
    "Sampled",
    "Samples",
    "Span",
    "Suspicion",
    "evenly",
    "first_free",
    "inspect_graph",
    "layer_errors",
    "listed",
    "sample",
]
