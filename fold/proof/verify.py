"""Parts C and D: runs the reference and the folded graph on the same inputs and compares their outputs.

PyTorch is imported only when a PyTorch reference is loaded (fold.proof.reference).
"""

import copy
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fold.arrays import Arrays, Run, first_rows, in_chunks
from fold.errors import BnfoldError
from fold.inputs import by_name, check_inputs, draw_inputs
from fold.proof.decisions import decide
from fold.proof.reference import ModuleReference, Reference
from fold.proof.run_time import Evidence, Verdict, judge
from fold.runtime import open_graph

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch
    from torch import nn


EVIDENCE = 8
"""Rows that a verdict keeps for the canary."""


def verify_model(
    module: "nn.Module",
    model: "ir.Model",
    inputs: "Mapping[str, Any] | Sequence[Any] | np.ndarray | torch.Tensor | None" = None,
    *,
    samples: int = 16,
    seed: int = 0,
) -> Verdict:
    """Whether `model`, folded, computes in ONNX Runtime on the CPU what `module` computes in eval mode.

    `inputs` are arrays or tensors, batch first: by the graph's input names, in the order of its inputs, or one for a
    graph with one input. Without them, `samples` rows are drawn from `seed`. No argument is modified. Raises
    `BnfoldError` for inputs that do not fit.
    """
    from fold.artifact import tensor_specs  # noqa: PLC0415
    from fold.runtime import run  # noqa: PLC0415

    session = open_graph(model)
    specs, output_specs = tensor_specs(model.graph.inputs), tensor_specs(model.graph.outputs)
    reference = ModuleReference(
        copy.deepcopy(module).eval(), [spec.name for spec in specs], [spec.name for spec in output_specs]
    )
    given = draw_inputs(specs, samples, seed) if inputs is None else check_inputs(specs, by_name(specs, inputs))
    return compare(reference, lambda arrays: run(session, arrays), given, seed=seed if inputs is None else None)


def compare(
    reference: Reference,
    folded: Run | Arrays,
    inputs: Arrays,
    *,
    seed: int | None = None,
    provider: str = "cpu",
    precision: str = "fp32",
    rows: int = 0,
) -> Verdict:
    """Compare the folded graph with the reference, on at most `rows` rows at a time (0: all at once).

    `folded` runs the graph, or is its outputs. `precision` is that in which the graph is served and in which the
    reference computes U. `seed` is only noted in the verdict. Raises `BnfoldError` if the outputs do not match.
    """
    started = time.perf_counter()
    samples = next(iter(inputs.values())).shape[0] if inputs and next(iter(inputs.values())).ndim else 1
    if samples == 0:
        raise BnfoldError("equivalence: no samples were given; expected at least one row")
    answers = folded if isinstance(folded, dict) else in_chunks(folded, inputs, rows)
    exact, unfolded = (in_chunks(each, inputs, rows) for each in (reference.exact, reference.unfolded))
    outputs, decisions = [], []
    for name, truth in exact.items():
        if name not in answers or answers[name].shape != truth.shape:
            shape = answers[name].shape if name in answers else "nothing"
            raise BnfoldError(f"output {name!r}: the folded graph gives {shape}, the reference {truth.shape}")
        rounded = unfolded[name]
        if precision != "fp32":  # an overflow of the unfolded model does not excuse one of the folded graph
            rounded = np.where(np.isfinite(truth) & ~np.isfinite(rounded), truth, rounded)
        outputs.append(judge(name, truth, rounded, answers[name], precision))
        decision = decide(name, truth, rounded, answers[name], precision)
        decisions += [] if decision is None else [decision]
    seconds = time.perf_counter() - started
    kept = EVIDENCE if rows else samples  # with rows=0 the batch may be fixed
    evidence = Evidence(first_rows(inputs, kept), first_rows(exact, kept))
    return Verdict(tuple(outputs), tuple(decisions), samples, seed, provider, precision, seconds, evidence)
