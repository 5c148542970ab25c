"""Folding: which BatchNorms are removed, into which weights, and why the others stay. Only arithmetic and graphs."""

from fold.engine.affine import Array, Gauge
from fold.engine.fold import Folding, batchnorm_nodes, fold_graph, fold_model
from fold.engine.laws import affine_step, scale_and_shift, written_out
from fold.engine.reasons import Code, Reason, reason_json
from fold.engine.report import Affines, Folded, FoldReport, Kept, TensorSize
from fold.engine.rewrite import nearest, round_weights, rounded_when_read

__all__ = [
    "Affines",
    "Array",
    "Code",
    "FoldReport",
    "Folded",
    "Folding",
    "Gauge",
    "Kept",
    "Reason",
    "TensorSize",
    "affine_step",
    "batchnorm_nodes",
    "fold_graph",
    "fold_model",
    "nearest",
    "reason_json",
    "round_weights",
    "rounded_when_read",
    "scale_and_shift",
    "written_out",
]
