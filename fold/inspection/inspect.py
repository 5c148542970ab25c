"""Inspects every BatchNorm of a graph: its statistics, where it would be folded, and how that changes the weights.

A copy of the graph is folded with exact weights and compared with the original. Nothing is judged here; `suspicions`
does that.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import onnx_ir as ir
from onnx_ir.passes import common

from fold.engine import Affines, Folded, Kept, batchnorm_nodes, fold_graph
from fold.graph import constant, correct_shapes, display_name, float64, infer_shapes, is_batchnorm, is_float
from fold.inspection.batchnorm import BatchNorm
from fold.inspection.detail import Detail, detail
from fold.inspection.folded_weights import FoldedTensor, HalfPrecision, folded_tensors, half_precision, merged_half
from fold.inspection.neighbourhood import Surroundings
from fold.inspection.placement import placement
from fold.inspection.statistics import Span, statistics
from fold.inspection.suspicions import Suspicion, suspicions


@dataclass(frozen=True)
class Inspection:
    """The suspicions, all BatchNorms in graph order, the weights that would absorb them, and what is no BatchNorm.
    `details` is in the order of the BatchNorms; the JSON leaves it out."""

    suspicions: tuple[Suspicion, ...]
    batchnorms: tuple[BatchNorm, ...]
    weights: tuple[FoldedTensor, ...]
    open_activations: bool
    affines: tuple[Affines, ...] = ()
    details: tuple[Detail, ...] = ()

    @property
    def folded(self) -> int:
        return sum(one.into is not None for one in self.batchnorms)

    def to_dict(self) -> dict[str, Any]:
        """The JSON of `bnfold inspect --json`, without the keys about the source (docs/formats.md)."""
        return {
            "suspicions": [asdict(one) for one in self.suspicions],
            "batchnorms": [one.to_dict() for one in self.batchnorms],
            "weights": [one.to_dict() for one in self.weights],
            "affines": [asdict(one) for one in self.affines],
            "open_activations": self.open_activations,
        }


def inspect_graph(
    model: ir.Model,
    batches_seen: Mapping[str, int] | None = None,
    *,
    moving_average: bool = True,
    open_activations: bool = False,
) -> Inspection:
    """Inspect an unfolded graph; `model` is not changed.

    `batches_seen` is the number of batches that training counted, by a BatchNorm's name (fold.sources.Unfolded).
    `moving_average` is false for recalibrated statistics, in which the initial values have no share.
    `open_activations` is the argument of `fold.fold_model`; it changes which BatchNorms are folded.
    """
    model = _prepared(model)
    folding = fold_graph(model, open_activations=open_activations, exact=True)
    entries: list[Folded | Kept] = [*folding.report.folded, *folding.report.kept]
    entry_of = {(entry.name, entry.node): entry for entry in entries}
    tensors = folded_tensors(model, folding.model, [name for entry in folding.report.folded for name in entry.into])
    by_name = {node.name: node for node in folding.model.graph.all_nodes()}
    surroundings = Surroundings(model, folding.model)
    counts = batches_seen or {}
    found, details = [], []
    for nodes, _ in batchnorm_nodes(model):
        last = nodes[-1]
        name, node = display_name(last), last.name or ""
        entry = entry_of[name, node]
        into = entry.into if isinstance(entry, Folded) else None
        remaining = [by_name.get(node, last)] if is_batchnorm(last) else nodes
        absorbing = [tensors[each] for each in into or () if each in tensors]
        found.append(
            BatchNorm(
                name=name,
                node=node,
                channels=entry.channels,
                placement=placement(nodes),
                statistics=statistics(nodes, counts.get(name), moving_average=moving_average),
                into=into,
                why=entry.why if isinstance(entry, Kept) else None,
                stretch=Span.around([one.stretch for one in absorbing]),
                float16=merged_half([one.float16 for one in absorbing] if into is not None else _halves(remaining)),
            )
        )
        details.append(detail(nodes, surroundings, into or ()))
    weights = tuple(one for one in tensors.values() if one.layer)
    return Inspection(
        suspicions(found), tuple(found), weights, open_activations, folding.report.affines, tuple(details)
    )


def _prepared(model: ir.Model) -> ir.Model:
    """A copy with inferred shapes, without BatchNorms in functions, and with a unique name for each node: that of its
    first output where it has none."""
    model = correct_shapes(model).clone()
    if any(is_batchnorm(node) for function in model.functions.values() for node in function):
        common.InlinePass()(model)
    infer_shapes(model)
    taken = set[str]()
    for node in model.graph.all_nodes():
        name = node.name or (node.outputs[0].name if node.outputs else None) or node.op_type
        while name in taken:
            name = f"{name}_"
        node.name = name
        taken.add(name)
    return model


def _halves(nodes: Sequence[ir.Node]) -> list[HalfPrecision]:
    """The effects of float16 on the parameters of a BatchNorm that would be kept."""
    constants = [constant(value) for node in nodes for value in node.inputs if is_float(value)]
    return [half_precision(float64(tensor)) for tensor in constants if tensor is not None]
