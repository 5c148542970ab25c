"""Runs the reference and the folded graph for parts C and D, on the same inputs, and compares their outputs.

PyTorch is imported only when a PyTorch reference is loaded (fold.proof.reference).
"""

import copy
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fold.arrays import Arrays, Run, first_rows, in_chunks
from fold.errors import BnfoldError
from fold.evaluate import AMPLITUDE_REDUCED, rounding_limits
from fold.inputs import by_name, check_inputs, draw_inputs
from fold.proof.decisions import FACTOR, FLOORS, Decision, decide
from fold.proof.reference import ModuleReference, Reference
from fold.proof.run_time import Evidence, OutputVerdict, Verdict, judge
from fold.runtime import open_graph

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch
    from torch import nn


EVIDENCE = 8
"""Rows that a verdict keeps for the canary."""
NOISE_DRAWS, MOST_NOISE_DRAWS = 2, 8
"""How often R is computed with noise, on as many rows as are in question: seldom more than one for each output. The
most is for a U that is further from R than the first draws: in an output of one number these may be small by chance."""
CHANGE_DRAWS = 24
"""How often R is computed with `AMPLITUDE_REDUCED` roundings, at most, where integers or texts hang on them. Where two
classes are as near as F takes them for each other, a draw confuses them with a probability of 0.4 or more."""


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
    exact, unfolded = (dict(in_chunks(each, inputs, rows)) for each in (reference.exact, reference.unfolded))
    for name, truth in exact.items():
        if name not in answers or answers[name].shape != truth.shape:
            shape = answers[name].shape if name in answers else "nothing"
            raise BnfoldError(f"output {name!r}: the folded graph gives {shape}, the reference {truth.shape}")
        if precision != "fp32" and np.issubdtype(truth.dtype, np.floating):
            # an overflow of the unfolded model does not excuse one of the folded graph
            overflow = np.isfinite(truth) & ~np.isfinite(unfolded[name])
            unfolded[name] = np.where(overflow, truth, unfolded[name])
    # 2. C and D, by the rounding error of U
    noise = _noise(reference, inputs, exact, unfolded, precision, batched=rows > 0)
    moved = dict(rounding or {})
    if reference.mixed and precision == "fp32":
        moved |= {name: max(moved.get(name, 0.0), gap / AMPLITUDE_REDUCED) for name, gap in noise.items()}
    judged = exact, unfolded, answers, precision, noise
    outputs, decisions = _judged(*judged, moved)

    # 3. U may be right by chance, above all in an output of one number: then by random roundings of each tensor
    refused = {one.name for one in outputs if one.folded_error > one.limit} | {one.name for one in decisions if not one}
    refused -= {one.name for one in outputs if one.doubted}
    floats = {name for name in refused if np.issubdtype(exact[name].dtype, np.floating)}
    if floats:
        found = _by_roundings(reference, inputs, exact, answers, floats, precision, batched=rows > 0)
        moved |= {name: max(moved.get(name, 0.0), found[name]) for name in floats}
    if refused - floats:
        changed = _with_changes(reference, inputs, exact, unfolded, answers, refused - floats, batched=rows > 0)
        unfolded |= changed
        noise |= dict.fromkeys(changed, 1.0)
    if refused:
        outputs, decisions = _judged(*judged, moved)
    seconds = time.perf_counter() - started
    kept = EVIDENCE if rows else samples  # with rows=0 the batch may be fixed
    evidence = Evidence(first_rows(inputs, kept), first_rows(_served_truth(exact, unfolded, answers), kept))
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


def _served_truth(exact: Arrays, unfolded: Arrays, folded: Arrays) -> Arrays:
    """What a right session answers: R, with U's infinities and NaN where U has some; integers and texts as F has them,
    some of which may hang on rounding."""
    floats = {name for name, truth in exact.items() if np.issubdtype(truth.dtype, np.floating)}
    return {
        name: np.where(np.isfinite(unfolded[name]), truth, unfolded[name]) if name in floats else folded[name]
        for name, truth in exact.items()
    }


def _noise(
    reference: Reference, inputs: Arrays, exact: Arrays, unfolded: Arrays, precision: str, *, batched: bool
) -> dict[str, float]:
    """How far a multiple of rounding moves each output, measured on the row where U is furthest from R.

    Only for outputs where it decides: U within C's floor of R needs no other explanation. For an output of integers or
    texts: 1 if it changes any.
    """
    gaps = {name: float(row_differences(exact[name], unfolded[name]).max(initial=0)) for name in exact}
    floors = {name: FLOORS[precision] * _largest(exact[name], unfolded[name]) for name in exact}
    wanted = [name for name, gap in gaps.items() if reference.mixed or gap > floors[name]]
    if not wanted:
        return {}
    cut, truths = _furthest(reference, inputs, exact, unfolded, wanted, batched=batched)
    noise = dict.fromkeys(wanted, 0.0)
    for seed in range(MOST_NOISE_DRAWS):
        if seed >= NOISE_DRAWS and all(gaps[name] <= max(noise[name], floors[name]) for name in wanted):
            break
        moved = reference.noisy(cut, seed, None)
        for name in wanted:
            noise[name] = max(noise[name], float(row_differences(truths[name], moved[name]).max(initial=0)))
    return noise


def _by_roundings(
    reference: Reference,
    inputs: Arrays,
    exact: Arrays,
    folded: Arrays,
    names: Collection[str],
    precision: str,
    *,
    batched: bool,
) -> dict[str, float]:
    """How far one rounding of each tensor may move each output of `names`, by the σ of random roundings, as in part B.
    Measured on the row where F is furthest from R."""
    cut, truths = _furthest(reference, inputs, exact, folded, names, batched=batched)
    gaps = {}
    for name in names:
        gap = float(row_differences(exact[name], folded[name]).max(initial=0))
        gaps[name] = (gap - FLOORS[precision] * _largest(exact[name], folded[name])) / FACTOR
    limits, _ = rounding_limits(lambda draw: reference.noisy(cut, draw, 1.0), truths, gaps, dict.fromkeys(names, 0.0))
    return limits


def _with_changes(
    reference: Reference,
    inputs: Arrays,
    exact: Arrays,
    unfolded: Arrays,
    folded: Arrays,
    names: Collection[str],
    *,
    batched: bool,
) -> Arrays:
    """U of integers and texts, changed where F alone differs from R and random roundings change R as well."""
    changed = {name: unfolded[name].copy() for name in names}
    alone = {name: np.asarray((folded[name] != exact[name]) & (unfolded[name] == exact[name])) for name in names}
    rows: Any = ...
    if batched:
        rows = np.flatnonzero(np.any([one.reshape(len(one), -1).any(axis=1) for one in alone.values()], axis=0))
    cut = {name: array[rows] for name, array in inputs.items()}
    for draw in range(CHANGE_DRAWS):
        if not any(one.any() for one in alone.values()):
            break
        moved = reference.noisy(cut, draw, AMPLITUDE_REDUCED)
        for name, one in alone.items():
            if moved[name].shape != one[rows].shape:  # roundings decide how many there are
                continue
            other = one[rows] & (moved[name] != exact[name][rows])
            changed[name][rows] = np.where(other, moved[name], changed[name][rows])
            one[rows] &= ~other
    return changed


def _furthest(
    reference: Reference, inputs: Arrays, exact: Arrays, other: Arrays, names: Iterable[str], *, batched: bool
) -> tuple[Arrays, Arrays]:
    """The rows where one of the outputs is furthest from R, and R for them; all rows where the batch is fixed."""
    if not batched:
        return inputs, exact
    gaps = [row_differences(exact[name], other[name]) for name in names]
    rows = sorted({int(gap.argmax()) for gap in gaps if gap.size})
    cut = {name: array[rows] for name, array in inputs.items()}
    return cut, reference.exact(cut)  # a wrong R may depend on the other rows


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
