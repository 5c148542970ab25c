"""Every BatchNorm of a graph: what it is, how healthy its statistics are, where it would be folded, and what that does
to the weights.

Nothing is judged here (suspicions does), and nothing is changed: a copy is folded with exact weights, and looked
at.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import onnx_ir as ir
from onnx_ir.passes import common

from fold.engine import Folded, Kept, batchnorm_nodes, fold_graph
from fold.graph import constant, display_name, float64, infer_shapes, is_batchnorm, is_float
from fold.inspection.batchnorm import BatchNorm
from fold.inspection.folded_weights import FoldedTensor, HalfPrecision, half_precision, look_at, merged_half
from fold.inspection.placement import placement
from fold.inspection.statistics import Span, statistics
from fold.inspection.suspicions import Suspicion, suspicions


@dataclass(frozen=True)
class Inspection:
    """All BatchNorms in graph order, the weights that would take them up, and first what is suspicious."""

    suspicions: tuple[Suspicion, ...]
    batchnorms: tuple[BatchNorm, ...]
    weights: tuple[FoldedTensor, ...]
    open_activations: bool

    @property
    def folded(self) -> int:
        return sum(one.into is not None for one in self.batchnorms)

    def to_dict(self) -> dict[str, Any]:
        """The JSON of `bnfold inspect --json` but for what is said of the source (docs/formats.md)."""
        return {
            "suspicions": [asdict(one) for one in self.suspicions],
            "batchnorms": [one.to_dict() for one in self.batchnorms],
            "weights": [one.to_dict() for one in self.weights],
            "open_activations": self.open_activations,
        }


def inspect_graph(
    model: ir.Model,
    batches_seen: Mapping[str, int] | None = None,
    *,
    moving_average: bool = True,
    open_activations: bool = False,
) -> Inspection:
    """Inspect an unfolded graph; `model` is not touched.

    `batches_seen` has the batches that training counted, by a BatchNorm's name (fold.sources.source.Unfolded). The
    statistics are the `moving_average` that training keeps, unless they were recalibrated: then the initial ones have
    no share in them.
    `open_activations` is that of `fold.fold_model`: where a BatchNorm goes depends on it.
    """
    model = _prepared(model)
    folding = fold_graph(model, open_activations=open_activations, exact=True)
    entries: list[Folded | Kept] = [*folding.report.folded, *folding.report.kept]
    fates = {(entry.name, entry.node): entry for entry in entries}
    tensors = look_at(model, folding.model, [name for entry in folding.report.folded for name in entry.into])
    by_name = {node.name: node for node in folding.model.graph.all_nodes()}
    counts = batches_seen or {}
    found = []
    for nodes, _ in batchnorm_nodes(model):
        last = nodes[-1]
        name, node = display_name(last), last.name or ""
        fate = fates[name, node]
        into = fate.into if isinstance(fate, Folded) else None
        left = [by_name.get(node, last)] if is_batchnorm(last) else nodes
        held = [tensors[each] for each in into or () if each in tensors]
        found.append(
            BatchNorm(
                name=name,
                node=node,
                channels=fate.channels,
                placement=placement(nodes),
                statistics=statistics(nodes, counts.get(name), moving_average=moving_average),
                into=into,
                why=fate.why if isinstance(fate, Kept) else None,
                stretch=Span.around([one.stretch for one in held]),
                float16=merged_half([one.float16 for one in held] if into is not None else _halves(left)),
            )
        )
    weights = tuple(one for one in tensors.values() if one.layer)
    return Inspection(suspicions(found), tuple(found), weights, open_activations)


def _prepared(model: ir.Model) -> ir.Model:
    """A copy with shapes, in which no function has a BatchNorm, and each node has a name of its own: that of its first
    output where it has none."""
    model = model.clone()
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
    """The parameters of a BatchNorm that stays, in float16."""
    constants = [constant(value) for node in nodes for value in node.inputs if is_float(value)]
    return [half_precision(float64(tensor)) for tensor in constants if tensor is not None]
