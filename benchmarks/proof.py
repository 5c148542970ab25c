"""What each part of a certificate catches: plants faults of growing size in folds of random models.

    python -m benchmarks.proof [--models 300] [--seed 0] [--only densenet dpn] [--sizes 1e-5 1e-3] [--onnxsim 10]
    python -m benchmarks.proof --networks [--side 64]
    python -m benchmarks.proof --spread [--models 300]

The models are those of benchmarks.random_models. A fault multiplies one channel of one folded weight by 1 + size. As a
fault of folding it is in the exact graph, too, and A must see it; as a fault of the file it is in the stored graph
alone, and B must see it. The served graph is the same, so parts C and D and fixed tolerances, which compare outputs,
see the same of both. Size 0 is the right fold: a part that catches it raises a false alarm. With `--onnxsim SECONDS`
onnxsim's `certify` gets the same pairs, and at most so long for each.

`--networks` compares the effect of rounding with its bound, over depth. `--spread` runs the unfolded model in several
ways in float32, and compares the spread of their errors with the error of the folded graph.
"""

import argparse
import random
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import torch
from rich.console import Console
from rich.progress import track

import fold as bnfold
from benchmarks import folding
from benchmarks.networks import resnet18, resnet50
from benchmarks.published import densenet121, mobilenetv2
from benchmarks.random_models import QUANTILES, Drawn, Fold, draw, fold_drawn
from fold.arrays import Arrays, in_chunks
from fold.artifact import tensor_specs
from fold.engine import fold_graph, nearest
from fold.evaluate import Evaluator, rounded_weights
from fold.proof import check_algebra, check_rounding, compare, find_answers, find_truth
from fold.runtime import open_graph, run
from fold.runtime.session import FAULTY_OPTIMIZERS
from tests.support.folding import ARCHITECTURES

SIZES = (0.0, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
POLYGRAPHY_TOLERANCE, TORCH_ONNX_TOLERANCE = 1e-5, 5e-3
"""Defaults: a number fails Polygraphy's comparison beyond both the absolute and the relative tolerance; the PyTorch
exporter warns of an absolute difference of as much."""
POLYGRAPHY, TORCH_ONNX = "Polygraphy 1e-5", "torch.onnx 5e-3"
JUDGES = ("A", "B, weights", "B, effect", "C", "D", POLYGRAPHY, TORCH_ONNX)
NETWORKS: dict[str, Callable[[], torch.nn.Module]] = {
    "ResNet-18": resnet18,
    "MobileNet-V2": mobilenetv2,
    "ResNet-50": resnet50,
    "DenseNet-121": densenet121,
}
BOX = (-3.0, 3.0)
"""The range of inputs for which onnxsim proves."""
LEVELS = onnxruntime.GraphOptimizationLevel


@dataclass
class Judged:
    """How often each judge caught a fault of one size, and its effect in float64 on each model, relative to the largest
    output."""

    models: int = 0
    caught: Counter[str] = field(default_factory=Counter)
    effects: list[float] = field(default_factory=list)


class Known:
    """A reference whose answers are computed once for all faults of a model."""

    def __init__(self, fold: Fold) -> None:
        reference = fold.reference
        self._exact, self._unfolded = reference.exact(fold.inputs), reference.unfolded(fold.inputs)
        self.noisy, self.mixed = reference.noisy, reference.mixed

    def exact(self, inputs: Arrays) -> Arrays:
        return self._exact

    def unfolded(self, inputs: Arrays) -> Arrays:
        return self._unfolded


def plant(fold: Fold, size: float, chance: random.Random) -> tuple[ir.Model, ir.Model] | None:
    """Copies of the exact and the stored graph with a fault of one size; None if no weight was folded."""
    names = sorted(rounded_weights(fold.exact))
    arrays = {name: fold.exact.graph.initializers[name].const_value.numpy() for name in names}  # type: ignore[union-attr]
    names = [name for name in names if arrays[name].ndim and arrays[name].any()]
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
    return exact, stored


@contextmanager
def timed(seconds: Counter[str], name: str) -> Iterator[None]:
    """Count the CPU seconds of what is done here."""
    started = time.process_time()
    yield
    seconds[name] += time.process_time() - started


def judge(fold: Fold, known: Known, exact: ir.Model, stored: ir.Model, seconds: Counter[str]) -> tuple[set[str], float]:
    """The judges that catch a fault, and its effect."""
    with timed(seconds, "A"):
        algebra = check_algebra(fold.truth, find_answers(Evaluator(exact), fold.truth.inputs), lambda: fold.unfolded)
    with timed(seconds, "B"):
        rounding = check_rounding(fold.exact, lambda: stored, fold.answers)
    with timed(seconds, "C, D"):
        served = run(open_graph(stored), fold.inputs)
        verdict = compare(known, served, fold.inputs)
    pairs = [(served[name], each) for name, each in known.unfolded(fold.inputs).items()]
    passed = {
        "A": bool(algebra),
        "B, weights": not rounding.faults,
        "B, effect": all(rounding.outputs),
        "C": all(output.equivalent for output in verdict.outputs),
        "D": all(verdict.decisions),
        POLYGRAPHY: all(map(passes_polygraphy, pairs)),
        TORCH_ONNX: all(np.abs(f - u).max(initial=0) < TORCH_ONNX_TOLERANCE for f, u in pairs),
    }
    return {name for name, right in passed.items() if not right}, algebra.worst.difference


def passes_polygraphy(pair: tuple[np.ndarray, np.ndarray]) -> bool:
    found, expected = (each.astype(np.float64) for each in pair)
    difference = np.abs(found - expected)
    relative = difference / np.where(expected == 0, np.finfo(np.float64).eps, np.abs(expected))
    return not ((difference > POLYGRAPHY_TOLERANCE) & (relative > POLYGRAPHY_TOLERANCE)).any()


def ask_onnxsim(unfolded: ir.Model, stored: ir.Model, seconds: float) -> str:
    """What onnxsim's `certify` says of a pair with one row: proved, refuted or skipped."""
    from onnxsim.certify import certify  # noqa: PLC0415  # of the extra `benchmarks`

    pair = [with_one_row(model) for model in (unfolded, stored)]
    box = {each.name: BOX for each in pair[0].graph.input}
    report = certify(*pair, input_ranges=box, timeout_ms=int(1000 * seconds), total_timeout_ms=int(1000 * seconds))
    said = {status.partition("-")[0] for status in report.outputs.values()}
    return "refuted" if "refuted" in said else "skipped" if "skipped" in said else "proved"


def with_one_row(model: ir.Model) -> onnx.ModelProto:
    proto = ir.to_proto(model)
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    return proto


def examine(drawn: Drawn, sizes: Sequence[float], onnxsim: float, seconds: Counter[str]) -> dict[float, Judged]:
    """Plant a fault of each size in one random model."""
    fold, chance, found = fold_drawn(drawn), random.Random(drawn.seed), {}
    known = Known(fold)
    for size in sizes:
        planted = plant(fold, size, chance)
        if planted is None:
            return {}
        caught, effect = judge(fold, known, *planted, seconds)
        if onnxsim:
            with timed(seconds, "onnxsim"):
                caught.add(f"onnxsim {ask_onnxsim(fold.unfolded, planted[1], onnxsim)}")
        found[size] = Judged(1, Counter(caught), [effect])
    return found


def faults(models: Sequence[Drawn], sizes: Sequence[float], onnxsim: float) -> str:
    """The table of what was caught, and the seconds of each judge for one model."""
    total: defaultdict[float, Judged] = defaultdict(Judged)
    seconds: Counter[str] = Counter()
    for drawn in track(models, "planting faults", console=Console(stderr=True)):
        for size, one in examine(drawn, sizes, onnxsim, seconds).items():
            total[size].models += one.models
            total[size].caught += one.caught
            total[size].effects += one.effects
    said = [f"onnxsim {word}" for word in ("proved", "refuted", "skipped")] if onnxsim else []
    judges = [*JUDGES, *said]
    rows = [
        [f"{size:g}", f"{np.median(one.effects):.1e}", str(one.models), *(str(one.caught[name]) for name in judges)]
        for size, one in total.items()
    ]
    cost = ", ".join(
        f"{name} {spent / sum(each.models for each in total.values()):.2f}" for name, spent in seconds.items()
    )
    return folding.markdown(["size", "effect", "models", *judges], rows) + f"\n\nCPU seconds for each: {cost}"


def networks(names: Sequence[str], side: int) -> str:
    """The effect of rounding and its bound, for networks of growing depth."""
    rows = []
    for name in names:
        torch.manual_seed(0)
        module = folding.randomise(NETWORKS[name]())
        unfolded = bnfold.export_module(module, torch.zeros(2, 3, side, side))
        exact, stored = fold_graph(unfolded, exact=True).model, fold_graph(unfolded).model
        seconds: Counter[str] = Counter()
        with timed(seconds, "A"):
            truth = find_truth(unfolded, tensor_specs(unfolded.graph.inputs), 0)
            answers = find_answers(Evaluator(exact), truth.inputs)
        with timed(seconds, "B"):
            rounding = check_rounding(exact, lambda stored=stored: stored, answers)  # type: ignore[misc]
        worst = max(rounding.outputs, key=lambda output: output.ratio or 0)
        numbers = [worst.difference, worst.bound or 0, worst.ratio or 0]
        rows.append([
            name, str(truth.depth), *(f"{number:.2g}" for number in numbers), worst.family, str(rounding.draws),
            *(f"{spent:.1f}" for spent in seconds.values()),
        ])  # fmt: skip
    header = ["network", "layers", "measured", "bound", "ratio", "inputs", "draws", "A: CPU s", "B: CPU s"]
    return folding.markdown(header, rows)


def spread(models: Sequence[Drawn]) -> str:
    """Quantiles over models: the largest float32 error of the unfolded model, run in several ways, over the smallest,
    and the error of the folded graph over that of the unfolded model."""
    shares: defaultdict[str, list[float]] = defaultdict(list)
    for drawn in track(models, "running", console=Console(stderr=True)):
        fold = fold_drawn(drawn)
        exact = fold.reference.exact(fold.inputs)

        def error(answers: Arrays, exact: Arrays = exact) -> float:
            return max(float(np.abs(answers[name] - truth).max(initial=0)) for name, truth in exact.items())

        errors = [error(answers) for answers in ways(fold)]
        folded = error(run(open_graph(fold.stored), fold.inputs))
        pytorch = error(fold.reference.unfolded(fold.inputs))
        if min(errors) > 0 and pytorch > 0:
            shares["ONNX Runtime, largest / smallest"].append(max(errors) / min(errors))
            shares["folded / PyTorch"].append(folded / pytorch)
            shares["folded / largest of all"].append(folded / max(*errors, pytorch))
    rows = [[name, *(f"{x:.2f}" for x in np.quantile(found, QUANTILES))] for name, found in shares.items()]
    return folding.markdown(["", *map(str, QUANTILES)], rows)


def ways(fold: Fold) -> Iterator[Arrays]:
    """What the unfolded graph answers in float32, with each level of optimisation, on one and two threads, on all rows
    and on one at a time."""
    proto = ir.to_proto(fold.unfolded).SerializeToString()
    for level in (LEVELS.ORT_DISABLE_ALL, LEVELS.ORT_ENABLE_BASIC, LEVELS.ORT_ENABLE_EXTENDED, LEVELS.ORT_ENABLE_ALL):
        for threads in (1, 2):
            options = onnxruntime.SessionOptions()
            options.log_severity_level, options.graph_optimization_level = 3, level
            options.intra_op_num_threads = threads
            session = onnxruntime.InferenceSession(
                proto, options, providers=["CPUExecutionProvider"], disabled_optimizers=FAULTY_OPTIMIZERS
            )
            for rows in (0, 1):
                yield in_chunks(partial(run, session), fold.inputs, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=ARCHITECTURES, default=list(ARCHITECTURES), metavar="NAME")
    parser.add_argument("--sizes", nargs="+", type=float, default=SIZES, metavar="SIZE")
    parser.add_argument("--onnxsim", type=float, default=0, metavar="SECONDS", help="ask its certify, too")
    parser.add_argument("--networks", nargs="*", choices=NETWORKS, metavar="NAME", help="the bound of B over depth")
    parser.add_argument("--side", type=int, default=64, help="of the pictures for --networks")
    parser.add_argument("--spread", action="store_true", help="float32 errors of the unfolded model")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    print(folding.machine(("torch", "onnxruntime", "numpy")), end="\n\n")
    if asked.networks is not None:
        print(networks(asked.networks or list(NETWORKS), asked.side))
        return
    models = draw(asked.models, asked.seed, asked.only)
    print(spread(models) if asked.spread else faults(models, asked.sizes, asked.onnxsim))


if __name__ == "__main__":
    main()
