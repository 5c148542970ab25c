"""Inspection: each BatchNorm of a graph, its statistics, the weights that would absorb it, and what is suspicious."""

from fold.inspection.batchnorm import BatchNorm
from fold.inspection.folded_weights import FoldedTensor, HalfPrecision
from fold.inspection.inspect import Inspection, inspect_graph
from fold.inspection.placement import listed
from fold.inspection.statistics import Span
from fold.inspection.suspicions import Suspicion

__all__ = ["BatchNorm", "FoldedTensor", "HalfPrecision", "Inspection", "Span", "Suspicion", "inspect_graph", "listed"]
