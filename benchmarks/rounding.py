"""How large rounding is: its effect and its bounds over depth, and the spread of float32.

    python -m benchmarks.rounding depth [--networks ResNet-18] [--side 64]
    python -m benchmarks.rounding spread [--models 300] [--seed 0] [--only densenet dpn]

`depth` compares the effect of rounded weights with part B's bound, and with onnxsim's bound of all float32 errors.
`spread` runs the unfolded model in several ways in float32, and compares the spread of their errors with the error of
the folded graph.
"""

import argparse
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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
from benchmarks.limited import limited
from benchmarks.networks import resnet18, resnet50
from benchmarks.published import densenet121, mobilenetv2
from benchmarks.random_models import QUANTILES, Drawn, Fold, draw, fold_drawn
from fold.arrays import Arrays, in_chunks
from fold.artifact import tensor_specs
from fold.engine import fold_graph
from fold.evaluate import Evaluator
from fold.proof import check_rounding, find_answers, find_truth
from fold.runtime import open_graph, run
from fold.runtime.session import FAULTY_OPTIMIZERS
from tests.support.folding import ARCHITECTURES

NETWORKS: dict[str, Callable[[], torch.nn.Module]] = {
    "ResNet-18": resnet18,
    "MobileNet-V2": mobilenetv2,
    "ResNet-50": resnet50,
    "DenseNet-121": densenet121,
}
BOX = (-3.0, 3.0)
"""The range of inputs for which onnxsim proves."""
SECONDS, MEGABYTES = 120, 6000
"""The most CPU-seconds and memory of onnxsim for one network."""
LEVELS = onnxruntime.GraphOptimizationLevel


@contextmanager
def timed(seconds: Counter[str], name: str) -> Iterator[None]:
    """Count the CPU seconds of what is done here."""
    started = time.process_time()
    yield
    seconds[name] += time.process_time() - started


def depth(names: Sequence[str], side: int) -> str:
    """The effect of rounded weights and its bounds, for networks of growing depth."""
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
            *(f"{spent:.1f}" for spent in seconds.values()), *onnxsim_bound(stored),
        ])  # fmt: skip
    ours = ["network", "layers", "measured", "bound", "ratio", "inputs", "draws", "A: CPU s", "B: CPU s"]
    return folding.markdown([*ours, "onnxsim", "onnxsim: CPU s"], rows)


def onnxsim_bound(stored: ir.Model) -> list[str]:
    """onnxsim's bound on the float32 error of the stored graph, for one row, and CPU seconds.

    Its bound on the difference of two graphs, `fusion_error_bound`, asks for 32 GiB on a ResNet-18.
    """

    def bound() -> list[str]:
        from onnxsim.fp_error import roundoff_bound  # noqa: PLC0415  # of the extra `benchmarks`

        model, started = with_one_row(stored), time.process_time()
        for node in model.graph.node:  # here all are over space; version 0.8.1 fails where axes are an input
            if node.op_type == "ReduceMean":
                node.op_type = "GlobalAveragePool"
                del node.input[1:], node.attribute[:]
        found = roundoff_bound(model, {value.name: BOX for value in model.graph.input})
        worst = max(float(np.max(output)) for output in found.outputs.values())
        return [f"{worst:.2g}", f"{time.process_time() - started:.1f}"]

    try:
        return limited(bound, SECONDS, MEGABYTES)
    except (TimeoutError, ChildProcessError) as error:
        return [str(error), "-"]


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


def with_one_row(model: ir.Model) -> onnx.ModelProto:
    proto = ir.to_proto(model)
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1
    return proto


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("depth", "spread"))
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS), metavar="NAME")
    parser.add_argument("--side", type=int, default=64, help="of the pictures")
    parser.add_argument("--models", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=ARCHITECTURES, default=list(ARCHITECTURES), metavar="NAME")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    print(folding.machine(("torch", "onnxruntime", "numpy")), end="\n\n")
    if asked.what == "depth":
        print(depth(asked.networks, asked.side))
    else:
        print(spread(draw(asked.models, asked.seed, asked.only)))


if __name__ == "__main__":
    main()
