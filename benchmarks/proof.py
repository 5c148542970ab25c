"""What each part of a certificate catches: plants faults of growing size in folds of random models.

    python -m benchmarks.proof [--models 300] [--seed 0] [--only densenet dpn] [--sizes 1e-5 1e-3] [--judges A B]

The models are those of benchmarks.random_models. A fault multiplies one channel of one folded weight by 1 + size; all
sizes change the same channel of a model. As a fault of folding it is in the exact graph, too, and A must see it; as a
fault of the file it is in the stored graph alone, and B must see it. The served graph is the same, so parts C and D,
fixed tolerances and onnxsim's `certify`, which do not know the exact graph, see the same of both. Size 0 is the right
fold: a judge that catches it raises a false alarm. Each judge runs in a process of its own, with limits of time and
memory. A row is written when it is there; a run that was stopped goes on.
"""

import argparse
import importlib
import random
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx_ir as ir
import torch
from rich.console import Console
from rich.progress import track

from benchmarks import folding
from benchmarks.limited import limited
from benchmarks.random_models import QUANTILES, Drawn, Fold, draw, fold_drawn
from benchmarks.rounding import BOX, with_one_row
from benchmarks.rows import append, read
from benchmarks.scaling import resident
from fold.artifact import tensor_specs
from fold.engine import nearest
from fold.evaluate import Evaluator, rounded_weights
from fold.proof import check_algebra, check_rounding, compare, find_answers, find_truth
from fold.runtime import open_graph, run
from tests.support.folding import ARCHITECTURES

SIZES = (0.0, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
POLYGRAPHY_TOLERANCE, TORCH_ONNX_TOLERANCE = 1e-5, 5e-3
"""Defaults: a number fails Polygraphy's comparison beyond both the absolute and the relative tolerance; the PyTorch
exporter warns of an absolute difference of as much."""
ONNXSIM_SECONDS = 20
"""What its `certify` is given, so that it can say what it did not prove."""


class Case(NamedTuple):
    """A fold of a random model, and copies of its exact and its stored graph with a fault of one size."""

    drawn: Drawn
    fold: Fold
    exact: ir.Model
    stored: ir.Model


@dataclass
class Row:
    """What one judge says of one model with a fault of one size, and its cost: CPU seconds, and the growth of resident
    memory. `measured` is, for A, the effect of the fault in float64, relative to the largest output; for B the effect
    of rounding over its bound; for C the error over its limit."""

    name: str
    size: float
    judge: str
    said: list[str] = field(default_factory=list)
    measured: float | None = None
    seconds: float = 0.0
    megabytes: float = 0.0
    failed: str | None = None


def plant(drawn: Drawn, fold: Fold, size: float) -> Case | None:
    """None if no weight was folded."""
    chance = random.Random(drawn.name)
    arrays = {name: fold.exact.graph.initializers[name].const_value.numpy() for name in rounded_weights(fold.exact)}  # type: ignore[union-attr]
    names = sorted(name for name, array in arrays.items() if array.ndim and array.any())
    if not names:
        return None
    name = chance.choice(names)
    wrong = arrays[name].copy()
    wrong[chance.choice(np.flatnonzero(np.abs(wrong.reshape(len(wrong), -1)).max(axis=1)))] *= 1 + size
    exact, stored = fold.exact.clone(), fold.stored.clone()
    exact.graph.initializers[name].const_value = ir.tensor(wrong, name=name)
    kept = stored.graph.initializers[name]
    assert kept.dtype is not None
    if size:
        kept.const_value = ir.tensor(nearest(wrong, kept.dtype), name=name)
    return Case(drawn, fold, exact, stored)


def ask_algebra(case: Case, row: Row) -> None:
    unfolded = case.fold.unfolded
    truth = find_truth(unfolded, tensor_specs(unfolded.graph.inputs), case.drawn.seed)
    algebra = check_algebra(truth, find_answers(Evaluator(case.exact), truth.inputs), lambda: unfolded)
    row.measured = algebra.worst.difference
    row.said = [] if algebra else ["A"]


def ask_rounding(case: Case, row: Row) -> None:
    """In a certificate as here, what the exact graph computes comes from part A."""
    rounding = check_rounding(case.fold.exact, lambda: case.stored, case.fold.answers)
    row.measured = max((output.ratio for output in rounding.outputs if output.ratio is not None), default=None)
    holds = {"B, weights": not rounding.faults, "B, effect": all(rounding.outputs)}
    row.said = [name for name, right in holds.items() if not right]


def ask_run_time(case: Case, row: Row) -> None:
    fold = case.fold
    verdict = compare(fold.reference, partial(run, open_graph(case.stored)), fold.inputs, seed=case.drawn.seed)
    row.measured = verdict.worst.share
    holds = {"C": all(output.equivalent for output in verdict.outputs), "D": all(verdict.decisions)}
    row.said = [name for name, right in holds.items() if not right]


def ask_tolerances(case: Case, row: Row) -> None:
    """The folded graph in ONNX Runtime and the unfolded model in PyTorch, as the exporter and Polygraphy compare."""
    served = run(open_graph(case.stored), case.fold.inputs)
    pairs = [(served[name], each) for name, each in case.fold.reference.unfolded(case.fold.inputs).items()]
    holds = {
        "Polygraphy 1e-5": all(map(passes_polygraphy, pairs)),
        "torch.onnx 5e-3": all(np.abs(f - u).max(initial=0) < TORCH_ONNX_TOLERANCE for f, u in pairs),
    }
    row.said = [name for name, right in holds.items() if not right]


def passes_polygraphy(pair: tuple[np.ndarray, np.ndarray]) -> bool:
    found, expected = (each.astype(np.float64) for each in pair)
    difference = np.abs(found - expected)
    relative = difference / np.where(expected == 0, np.finfo(np.float64).eps, np.abs(expected))
    return not ((difference > POLYGRAPHY_TOLERANCE) & (relative > POLYGRAPHY_TOLERANCE)).any()


def ask_onnxsim(case: Case, row: Row) -> None:
    """`certify` with its own tolerances, for one row in a box."""
    from onnxsim.certify import certify  # noqa: PLC0415  # of the extra `benchmarks`

    unfolded, stored = with_one_row(case.fold.unfolded), with_one_row(case.stored)
    box = {value.name: BOX for value in unfolded.graph.input}
    report = certify(unfolded, stored, input_ranges=box, total_timeout_ms=1000 * ONNXSIM_SECONDS)
    statuses = {status.partition("-")[0] for status in report.outputs.values()}
    row.said = [next(f"onnxsim {status}" for status in ("refuted", "skipped", "proved") if status in statuses)]


class Judge(NamedTuple):
    """`words` are what it may say. `modules` are imported before it is asked: this is no part of its cost."""

    ask: Callable[[Case, Row], None]
    words: tuple[str, ...]
    modules: tuple[str, ...] = ()


JUDGES = {
    "A": Judge(ask_algebra, ("A",)),
    "B": Judge(ask_rounding, ("B, weights", "B, effect")),
    "C, D": Judge(ask_run_time, ("C", "D"), ("torch._dynamo",)),
    "tolerances": Judge(ask_tolerances, ("Polygraphy 1e-5", "torch.onnx 5e-3")),
    "onnxsim": Judge(ask_onnxsim, ("onnxsim proved", "onnxsim refuted", "onnxsim skipped"), ("onnxsim.certify", "z3")),
}


def ask(case: Case, row: Row) -> Row:
    """In a process of its own, whose peak of memory begins where it was forked."""
    before, started = resident("VmRSS"), time.process_time()
    JUDGES[row.judge].ask(case, row)
    row.seconds, row.megabytes = time.process_time() - started, (resident("VmHWM") - before) / 1e6
    return row


def examine(drawn: Drawn, wanted: Sequence[tuple[float, str]], asked: argparse.Namespace) -> None:
    """Ask judges about faults in one random model, and write down what they say."""
    fold = fold_drawn(drawn)
    for size, judge in wanted:
        case, row = plant(drawn, fold, size), Row(drawn.name, size, judge)
        if case is None:
            return
        try:
            row = limited(partial(ask, case, row), asked.seconds, asked.megabytes)
        except (TimeoutError, ChildProcessError) as error:
            row.failed = str(error)
        append(asked.out, asdict(row))


def ask_all(models: Sequence[Drawn], asked: argparse.Namespace) -> None:
    """Ask what was not asked before, while there is time."""
    known = {(row["name"], row["size"], row["judge"]) for row in read(asked.out)}
    end = time.monotonic() + 60 * asked.minutes
    for drawn in track(models, "planting faults", console=Console(stderr=True)):
        pairs = [(size, judge) for size in asked.sizes for judge in asked.judges]
        wanted = [pair for pair in pairs if (drawn.name, *pair) not in known]
        if wanted and time.monotonic() < end:
            examine(drawn, wanted, asked)


def tables(rows: Sequence[Row], sizes: Sequence[float], judges: Sequence[str]) -> str:
    """What was caught, what each judge took, and how far right folds are from what A to C allow."""
    found: defaultdict[tuple[float, str], list[Row]] = defaultdict(list)
    for row in rows:
        found[row.size, row.judge].append(row)
    words = [(judge, word) for judge in judges for word in JUDGES[judge].words]
    caught = []
    for size in sizes:
        effect = np.median(measured(found[size, "A"]) or [np.nan])
        caught.append([f"{size:g}", f"{effect:.1e}", *(said(found[size, judge], word) for judge, word in words)])
    costs = [[judge, *cost([row for size in sizes for row in found[size, judge]])] for judge in judges]
    right = [
        [judge, str(len(numbers)), *(f"{number:.2g}" for number in np.quantile(numbers, QUANTILES))]
        for judge in judges
        if (numbers := measured(found[0.0, judge]))
    ]
    return "\n\n".join([
        folding.markdown(["fault", "effect", *(word for _, word in words)], caught),
        folding.markdown(["judge", "pairs", "no answer", "CPU seconds", "largest", "MB", "largest"], costs),
        folding.markdown(["right folds", "models", *map(str, QUANTILES)], right),
    ])  # fmt: skip


def said(rows: Sequence[Row], word: str) -> str:
    return f"{sum(word in row.said for row in rows)} of {len(rows)}"


def measured(rows: Sequence[Row]) -> list[float]:
    return [row.measured for row in rows if row.measured is not None]


def cost(rows: Sequence[Row]) -> list[str]:
    """How many were asked and gave no answer; medians and the largest of seconds and memory of those that did."""
    done = [row for row in rows if row.failed is None]
    numbers = [
        (np.median(each), max(each)) for each in zip(*((row.seconds, row.megabytes) for row in done), strict=True)
    ]
    shown = [f"{number:.2g}" if kind == 0 else f"{number:.0f}" for kind, pair in enumerate(numbers) for number in pair]
    return [str(len(rows)), str(len(rows) - len(done)), *(shown or ["-"] * 4)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=ARCHITECTURES, default=list(ARCHITECTURES), metavar="NAME")
    parser.add_argument("--sizes", nargs="+", type=float, default=SIZES, metavar="SIZE")
    parser.add_argument("--judges", nargs="+", choices=JUDGES, default=list(JUDGES), metavar="JUDGE")
    parser.add_argument("--seconds", type=int, default=60, help="the most CPU-seconds of a judge for one pair")
    parser.add_argument("--megabytes", type=int, default=6000, help="the most memory of a judge")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="no model is begun later")
    parser.add_argument("--out", type=Path, default=Path("build/benchmarks/proof.jsonl"))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    for module in (module for judge in asked.judges for module in JUDGES[judge].modules):
        importlib.import_module(module)
    models = draw(asked.models, asked.seed, asked.only)
    ask_all(models, asked)
    names = {drawn.name for drawn in models}
    print(folding.machine(("torch", "onnxruntime", "numpy")), end="\n\n")
    print(tables([Row(**row) for row in read(asked.out) if row["name"] in names], asked.sizes, asked.judges))


if __name__ == "__main__":
    main()
