"""Observes the unfolded and the folded graph for a report: errors, activations, factors on weights, and costs.

R, U and F are those of `fold.inspection.layers`, which samples their tensors. Only what is drawn is kept.
"""

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from fold.arrays import Arrays, Run, row_count
from fold.engine import FoldReport, Gauge, written_out
from fold.errors import BnfoldError
from fold.graph import BATCHNORM, constant, display_name, infer_shapes, is_standard
from fold.inspection import LayerSampler, Sampled, Samples, evenly, first_free, sample
from fold.reports.observations import (
    QUANTILES,
    Activations,
    Cost,
    Errors,
    Observations,
    Range,
    Spread,
    Stretch,
)
from fold.runtime import open_graph, run

BATCHNORMS = 12
"""The most BatchNorms that are drawn; of more, these are chosen at even distances."""
LATENCY_SECONDS = 0.4
ROUNDS = (3, 100)
"""The fewest and the most runs of each graph that are timed."""


class _BatchNorm(NamedTuple):
    """A BatchNorm of the unfolded graph: the names of its input and output, and whether it was folded."""

    number: int
    before: str
    after: str
    folded: bool


def observe_layers(
    unfolded: ir.Model, folded: ir.Model, carried: Mapping[str, Gauge], report: FoldReport, inputs: Arrays
) -> Observations:
    """Run both graphs on the first rows of `inputs` and collect what a report shows. What fails is `missing`.

    `carried` is that of `fold.engine.fold_graph`: the gauges of the folded graph's tensors. No argument is changed.
    """
    # 1. Choose the BatchNorms and tensors to draw, and the rows of input.
    unfolded, folded = unfolded.clone(), folded.clone()
    for model in (unfolded, folded):
        infer_shapes(model)
    batchnorms, numbers = _batchnorms(unfolded.graph, report)
    shown = evenly(batchnorms, BATCHNORMS)
    sampler = LayerSampler(unfolded, {name for one in shown for name in (one.before, one.after)})
    few, one_row = (first_free(inputs, unfolded.graph, count) for count in (sampler.rows, 1))

    # 2. Sample the tensors of R, U and F.
    missing: dict[str, str] = {}
    outputs: Arrays = {}
    R: Samples = {}
    with _note_failure(missing, "errors", "layers"):
        outputs, R = sampler.exact(few)
    U: Samples = {}
    F: Samples = {}
    with _note_failure(missing, "layers", "activations"):
        U, F = sampler.run(unfolded, few), sampler.run(folded, few)
    # 3. Compare outputs and take times, with ONNX Runtime's optimisations on.
    costs = tuple(Cost(_weight_bytes(model), _operators(model)) for model in (unfolded, folded))
    errors, rounds = None, 0
    with _note_failure(missing, "errors", "latency"):
        runs = tuple(partial(run, open_graph(model)) for model in (unfolded, folded))
        errors = _errors(outputs, *(each(few) for each in runs)) if outputs else None
        milliseconds, rounds = _latencies(runs, one_row)
        costs = tuple(replace(cost, latency_ms=ms) for cost, ms in zip(costs, milliseconds, strict=True))
    # 4. Collect what the pictures need.
    return Observations(
        numbers=numbers,
        rows=row_count(few),
        timed_rows=row_count(one_row),
        unfolded=costs[0],
        folded=costs[1],
        rounds=rounds,
        errors=errors,
        layers=tuple(sampler.errors(R, U, F, carried)),
        tensors=sampler.tensors,
        activations=tuple(_activations(shown, U, F)),
        stretches=tuple(_stretches(batchnorms, carried)),
        missing=missing,
    )


@contextmanager
def _note_failure(missing: dict[str, str], *pictures: str) -> Iterator[None]:
    """Turns a `BnfoldError` into the reason why these pictures cannot be made."""
    try:
        yield
    except BnfoldError as error:
        for picture in pictures:
            missing.setdefault(picture, _PLACE.sub("the graph", str(error)))


_PLACE = re.compile(r"\S*/model\.onnx")
"""The temporary path of a graph, which has no meaning for the reader of a report."""


def _batchnorms(graph: ir.Graph, report: FoldReport) -> tuple[list[_BatchNorm], dict[tuple[str, str], int]]:
    """The BatchNorms of the graph itself, and the numbers of all. Those in subgraphs and functions have the last
    ones."""
    folded = [(entry.name, entry.node) for entry in report.folded]
    entries = [*folded, *((entry.name, entry.node) for entry in report.kept)]
    found, numbers = [], dict[tuple[str, str], int]()
    for node in graph:
        nodes: tuple[ir.Node, ...] = (node,)
        if not (node.op_type == BATCHNORM and is_standard(node)):
            nodes, _ = written_out(node) or ((), 0)
        key = (display_name(nodes[-1]), nodes[-1].name or "") if nodes else ("", "")
        if nodes and key in entries and key not in numbers:
            numbers[key] = len(numbers) + 1
            before = next((value for value in nodes[0].inputs if value is not None and constant(value) is None), None)
            names = (before.name if before else None) or "", nodes[-1].outputs[0].name or ""
            found.append(_BatchNorm(numbers[key], *names, key in folded))
    for key in entries:
        numbers.setdefault(key, len(numbers) + 1)
    return found, numbers


def _errors(R: Arrays, U: Arrays, F: Arrays) -> Errors:
    distances: list[list[np.ndarray]] = [[], []]
    for name, truth in R.items():
        if not np.issubdtype(truth.dtype, np.floating):
            continue
        right, *others = (sample(arrays[name]).values for arrays in (R, U, F))
        finite = np.all([np.isfinite(each) for each in (right, *others)], axis=0)
        for kept, other in zip(distances, others, strict=True):
            kept.append(np.abs(other - right)[finite])
    return Errors(*(np.concatenate([np.empty(0), *kept]) for kept in distances))


def _activations(shown: Sequence[_BatchNorm], U: Samples, F: Samples) -> Iterator[Activations]:
    for one in shown:
        # A graph output keeps its name; elsewhere the input of a folded BatchNorm replaces both tensors.
        replacement = F.get(one.after) or (F.get(one.before) if one.folded else None)
        before, after = (_spread(U[name]) if name in U else None for name in (one.before, one.after))
        if before is not None and after is not None:
            yield Activations(one.number, before, after, None if replacement is None else _spread(replacement))


def _spread(sampled: Sampled) -> Spread | None:
    finite = sampled.values[np.isfinite(sampled.values)]
    return Spread(*map(float, np.quantile(finite, QUANTILES))) if finite.size else None


def _stretches(batchnorms: Sequence[_BatchNorm], carried: Mapping[str, Gauge]) -> Iterator[Stretch]:
    for one in batchnorms:
        if one.folded and one.before in carried and one.after in carried:
            with np.errstate(divide="ignore"):
                before, behind = _range(carried[one.before].p), _range(1 / carried[one.after].p)
            if before is not None and behind is not None:
                yield Stretch(one.number, before, behind)


def _range(factors: np.ndarray) -> Range | None:
    meant = np.abs(factors[np.isfinite(factors) & (factors != 0)])
    return Range(float(meant.min()), float(np.median(meant)), float(meant.max())) if meant.size else None


def _latencies(runs: Sequence[Run], inputs: Arrays) -> tuple[list[float], int]:
    """The median milliseconds of each graph, and the number of runs of each. Runs alternate for about
    `LATENCY_SECONDS` in all."""
    taken: list[list[float]] = [[] for _ in runs]
    start = time.perf_counter()
    while len(taken[0]) < ROUNDS[0] or (len(taken[0]) < ROUNDS[1] and time.perf_counter() - start < LATENCY_SECONDS):
        for each, seconds in list(zip(runs, taken, strict=True))[:: -1 if len(taken[0]) % 2 else 1]:
            run_start = time.perf_counter()
            each(inputs)
            seconds.append(time.perf_counter() - run_start)
    return [1000 * float(np.median(seconds)) for seconds in taken], len(taken[0])


def _weight_bytes(model: ir.Model) -> int:
    values = (value for graph in model.graphs() for value in graph.initializers.values())
    return sum(value.const_value.nbytes for value in values if value.const_value is not None)


def _operators(model: ir.Model) -> int:
    return sum(node.op_type != "Constant" for node in model.graph.all_nodes())
