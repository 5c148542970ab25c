"""Runs the reference and the folded graph for parts C and D, on the same inputs, and compares their outputs.

PyTorch is imported only when a PyTorch reference is loaded (fold.proof.reference).
"""

import copy
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fold.arrays import Arrays, Run, first_rows, in_chunks
from fold.errors import BnfoldError
from fold.evaluate import AMPLITUDE, AMPLITUDE_REDUCED
from fold.inputs import by_name, check_inputs, draw_inputs
from fold.proof.decisions import FLOORS, Decision, decide
from fold.proof.reference import ModuleReference, Reference
from fold.proof.run_time import Evidence, OutputVerdict, Verdict, judge
from fold.runtime import open_graph

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch
    from torch import nn


EVIDENCE = 8
"""Rows that a verdict keeps for the canary."""
NOISE_DRAWS = 2
"""How often R is computed with noise, on as many rows as are in question: seldom more than one for each output."""


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
    rounding: Mapping[str, float] | None = None,
) -> Verdict:
    """Compare the folded graph with the reference, on at most `rows` rows at a time (0: all at once).

    `folded` runs the graph, or is its outputs. `precision` is that in which the graph is served and in which the
    reference computes U. `seed` is only noted in the verdict. `rounding`, by output, is how far rounding of the types
    that `folded` stores moves it, if these are coarser than the reference's. Raises `BnfoldError` if the outputs do not
    match.
    """
    # 1. R, U and F
    started = time.perf_counter()
    samples = next(iter(inputs.values())).shape[0] if inputs and next(iter(inputs.values())).ndim else 1
    if samples == 0:
        raise BnfoldError("equivalence: no samples were given; expected at least one row")
    answers = folded if isinstance(folded, dict) else in_chunks(folded, inputs, rows)
    exact, unfolded = (in_chunks(each, inputs, rows) for each in (reference.exact, reference.unfolded))
    for name, truth in exact.items():
        if name not in answers or answers[name].shape != truth.shape:
            shape = answers[name].shape if name in answers else "nothing"
            raise BnfoldError(f"output {name!r}: the folded graph gives {shape}, the reference {truth.shape}")
        if precision != "fp32":  # an overflow of the unfolded model does not excuse one of the folded graph
            overflow = np.isfinite(truth) & ~np.isfinite(unfolded[name])
            unfolded[name] = np.where(overflow, truth, unfolded[name])
    # 2. C and D, by the rounding error of U
    noise = _noise(reference, inputs, exact, unfolded, precision, batched=rows > 0)
    moved = dict(rounding or {})
    if reference.mixed and precision == "fp32":
        moved |= {name: max(moved.get(name, 0.0), gap / AMPLITUDE_REDUCED) for name, gap in noise.items()}
    judged = exact, unfolded, answers, precision, noise
    outputs, decisions = _judged(*judged, moved)

    # 3. U may be near R by chance, above all in an output of one number: then by one rounding of each tensor
    refused = {one.name for one in outputs if one.folded_error > one.limit and not one.doubted}
    refused |= {one.name for one in decisions if not one}
    if refused:
        amplitude = AMPLITUDE if precision == "fp32" and not reference.mixed else AMPLITUDE_REDUCED
        truths = {name: exact[name] for name in exact if name in refused}
        own = _noise(reference, inputs, truths, answers, precision, batched=rows > 0)
        moved |= {name: max(moved.get(name, 0.0), gap / amplitude) for name, gap in own.items()}
        outputs, decisions = _judged(*judged, moved)
    seconds = time.perf_counter() - started
    kept = EVIDENCE if rows else samples  # with rows=0 the batch may be fixed
    evidence = Evidence(first_rows(inputs, kept), first_rows(_served_truth(exact, unfolded), kept))
    return Verdict(outputs, decisions, samples, seed, provider, precision, seconds, evidence=evidence)


def _judged(
    exact: Arrays,
    unfolded: Arrays,
    answers: Arrays,
    precision: str,
    noise: Mapping[str, float],
    rounding: Mapping[str, float],
) -> tuple[tuple[OutputVerdict, ...], tuple[Decision, ...]]:
    """C and D for each output."""
    outputs, decisions = [], []
    for name, truth in exact.items():
        compared, moved = (truth, unfolded[name], answers[name], precision), rounding.get(name, 0.0)
        outputs.append(judge(name, *compared, noise=noise.get(name, 0.0), rounding=moved))
        decision = decide(name, *compared, rounding=moved)
        decisions += [] if decision is None else [decision]
    return tuple(outputs), tuple(decisions)


def disagreement(reference: Reference, inputs: Arrays, graph: Arrays) -> str | None:
    """Whether `graph`, what the unfolded graph computes in float64, differs from R by more than rounding explains.

    For a PyTorch reference, whose R and U are computed by the same code: the exported graph, evaluated by other code,
    is an independent witness of R, and R of the float64 evaluator that parts A and B trust.
    """
    exact = reference.exact(inputs)
    names = [name for name in exact if name in graph and graph[name].shape == exact[name].shape]
    if len(names) < len(exact):
        return "the outputs of the exported graph have other shapes than PyTorch's"
    noise = _noise(reference, inputs, exact, graph, "fp32", batched=False)
    for name in names:
        found = judge(name, exact[name], graph[name], graph[name], noise=noise.get(name, 0.0))
        if found.doubted:
            return (
                f"output {name!r} of the exported graph is {found.unfolded_error:.3g} from PyTorch's, both in float64, "
                f"and rounding explains at most {found.unfolded_limit:.3g}"
            )
    return None


def _served_truth(exact: Arrays, unfolded: Arrays) -> Arrays:
    """R, with U's infinities and NaN where U has some: what a right session answers."""
    floats = {name for name, truth in exact.items() if np.issubdtype(truth.dtype, np.floating)}
    return {
        name: np.where(np.isfinite(unfolded[name]), truth, unfolded[name]) if name in floats else truth
        for name, truth in exact.items()
    }


def _noise(
    reference: Reference, inputs: Arrays, exact: Arrays, unfolded: Arrays, precision: str, *, batched: bool
) -> dict[str, float]:
    """How far a multiple of rounding moves each output, measured on the row where U, or F in its place, is furthest
    from R.

    Only for outputs where it decides: U within C's floor of R needs no other explanation. For an output of integers or
    texts: 1 if it changes any.
    """
    gaps = {name: row_differences(exact[name], unfolded[name]) for name in exact}
    floors = {name: FLOORS[precision] * _largest(exact[name], unfolded[name]) for name in exact}
    wanted = [name for name, gap in gaps.items() if reference.mixed or gap.max(initial=0) > floors[name]]
    if not wanted:
        return {}
    cut, truths = inputs, exact
    if batched:
        rows = sorted({int(gaps[name].argmax()) for name in wanted if gaps[name].size})
        cut = {name: array[rows] for name, array in inputs.items()}
        truths = reference.exact(cut)  # a wrong R may depend on the other rows
    noise = dict.fromkeys(wanted, 0.0)
    for seed in range(NOISE_DRAWS):
        moved = reference.noisy(cut, seed)
        for name in wanted:
            noise[name] = max(noise[name], float(row_differences(truths[name], moved[name]).max(initial=0)))
    return noise


def row_differences(exact: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The largest difference within each row, of what is finite in both; 1 for integers or texts that differ. [rows],
    or [1] for a scalar."""
    if np.issubdtype(exact.dtype, np.floating):
        finite = np.isfinite(exact) & np.isfinite(other)
        differences = np.zeros(exact.shape)
        differences[finite] = np.abs(other[finite].astype(np.float64) - exact[finite])
    else:
        differences = (other != exact).astype(np.float64)
    return differences.reshape(len(exact), -1).max(axis=1, initial=0) if exact.ndim else differences.reshape(1)


def _largest(exact: np.ndarray, other: np.ndarray) -> float:
    """The largest magnitude that is finite in both; 0 for integers and texts, which need no floor."""
    if not np.issubdtype(exact.dtype, np.floating):
        return 0.0
    return float(np.abs(exact[np.isfinite(exact) & np.isfinite(other)]).max(initial=0))
