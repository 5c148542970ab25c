"""Measures a conversion: `bnfold fold` by steps, beside plain exports and onnxsim on the same network.

    python -m benchmarks.converting [--networks resnet18 resnet50 resnet152] [--sizes 64 224 448] [--threads 0]

Each is measured in a process of its own: seconds, CPU-seconds (other load of the machine changes these little), and the
peak of all resident memory; the command with its imports, all others after theirs. A plain export is
`torch.onnx.export(dynamo=True)`, with and without its optimiser, and `dynamo=False`; onnxsim, where it is installed,
simplifies our unfolded graph. None of these proves anything. One network at all sizes, and all networks at one size,
show how the time grows. A result is written when it is there; a run that was stopped goes on.
"""

import argparse
import contextlib
import importlib.util
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

import onnx_ir as ir
import torch
from torch import nn

import fold
from benchmarks import networks
from benchmarks.folding import machine, markdown, randomise
from benchmarks.rows import append, read
from benchmarks.scaling import resident
from fold.convert import Target, convert
from fold.runtime import stop_spinning
from fold.sources import Source, silenced

NETWORKS, SIZES = ("resnet18", "resnet50", "resnet152"), (64, 224, 448)
SAMPLES = 16
"""Of the proof, as `bnfold fold` draws by default."""


@dataclass
class Cost:
    """What one way took: seconds, CPU-seconds, and the peak of resident memory of its process.

    `steps` has the CPU-seconds of each step that `bnfold fold` announces.
    """

    network: str
    size: int
    way: str
    threads: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_megabytes: float = 0.0
    steps: dict[str, float] = field(default_factory=dict)
    failed: str | None = None


def build(network: str) -> nn.Module:
    torch.manual_seed(0)
    return randomise(getattr(networks, network)())


def command(network: str, size: int, cost: Cost) -> None:
    """`bnfold fold` of a checkpoint, as a user runs it."""
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint = Path(scratch) / "net.pt"
        torch.save(build(network).state_dict(), checkpoint)
        words = ["fold", checkpoint, "--arch", f"benchmarks.networks:{network}", "--input", f"3,{size},{size}"]
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "fold", *words, "--out", Path(scratch) / "repository", "--device", "cpu"],
            capture_output=True,
            text=True,
            check=False,
        )
        cost.seconds = time.perf_counter() - began
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        cost.cpu_seconds, cost.peak_megabytes = used.ru_utime + used.ru_stime, used.ru_maxrss * 1024 / 1e6
        if done.returncode:
            cost.failed = done.stderr.strip().splitlines()[-1]


def ours(network: str, size: int, cost: Cost) -> None:
    """The same within this process, by steps."""
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint = Path(scratch) / "net.pt"
        torch.save(build(network).state_dict(), checkpoint)
        source = Source(checkpoint, arch=f"benchmarks.networks:{network}", inputs=(f"3,{size},{size}",))
        current, since = "", time.process_time()

        def announce(step: str) -> None:
            nonlocal current, since
            now = time.process_time()
            cost.steps[current] = cost.steps.get(current, 0.0) + now - since
            current, since = step.replace(str(checkpoint), "the checkpoint"), now

        with measured(cost):
            made = convert(source, Target(Path(scratch), "net"), samples=SAMPLES, provider="cpu", announce=announce)
            announce("")
        cost.steps.pop("")
        if made.path is None:
            cost.failed = made.certificate.message


def exported(network: str, size: int, cost: Cost, **options: bool) -> None:
    """A plain export of the module to a file."""
    module, example = build(network), torch.zeros(3, 3, size, size)
    dynamic = {"dynamic_shapes": ({0: torch.export.Dim("batch")},)}
    if not options["dynamo"]:
        dynamic = {"dynamic_axes": {"x": {0: "batch"}}, "input_names": ["x"]}
    with tempfile.TemporaryDirectory() as scratch, measured(cost), silenced():
        torch.onnx.export(module, (example,), Path(scratch) / "net.onnx", **dynamic, **options)


def exported_by_us(network: str, size: int, cost: Cost) -> None:
    """The unfolded graph alone, written to a file."""
    module, example = build(network), torch.zeros(3, 3, size, size)
    with tempfile.TemporaryDirectory() as scratch, measured(cost):
        ir.save(fold.export_module(module, example), Path(scratch) / "net.onnx")


def simplified(network: str, size: int, cost: Cost) -> None:
    import onnxsim  # noqa: PLC0415

    model = ir.to_proto(fold.export_module(build(network), torch.zeros(3, 3, size, size)))
    with measured(cost):
        onnxsim.simplify(model)


WAYS: dict[str, Callable[[str, int, Cost], None]] = {
    "bnfold fold": command,
    "bnfold fold, by steps": ours,
    "bnfold, export alone": exported_by_us,
    "torch.onnx.export": lambda *given: exported(*given, dynamo=True),
    "torch.onnx.export, optimize=False": lambda *given: exported(*given, dynamo=True, optimize=False),
    "torch.onnx.export, dynamo=False": lambda *given: exported(*given, dynamo=False),
    "onnxsim": simplified,
}


@contextlib.contextmanager
def measured(cost: Cost) -> Iterator[None]:
    wall, cpu = time.perf_counter(), time.process_time()
    yield
    cost.seconds, cost.cpu_seconds = time.perf_counter() - wall, time.process_time() - cpu
    cost.peak_megabytes = resident("VmHWM") / 1e6


def measure(network: str, size: int, way: str, threads: int) -> Cost:
    """In this process. It must be new, because the peak of memory only grows."""
    cost = Cost(network, size, way, threads)
    try:
        WAYS[way](network, size, cost)
    except Exception as error:  # the other ways are measured also after one fails
        cost.failed = f"{type(error).__name__}: {error}".splitlines()[0]
    return cost


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=NETWORKS, choices=NETWORKS)
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES)
    parser.add_argument("--threads", type=int, default=0, help="of each library; 0: as bnfold fold chooses")
    parser.add_argument("--out", type=Path, default=Path("build/benchmarks/converting.jsonl"))
    arguments = parser.parse_args()
    if arguments.threads:
        os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(arguments.threads)))
    stop_spinning()  # as the command does; the processes of the measurements inherit it
    base = arguments.networks[len(arguments.networks) // 2], arguments.sizes[len(arguments.sizes) // 2]
    pairs = dict.fromkeys(
        [*((network, base[1]) for network in arguments.networks), *((base[0], size) for size in arguments.sizes)]
    )
    ways = [way for way in WAYS if way != "onnxsim" or importlib.util.find_spec("onnxsim")]
    wanted = [(network, size, way, arguments.threads) for network, size in pairs for way in ways]
    found = {key(cost): cost for cost in (Cost(**row) for row in read(arguments.out))}
    for one in wanted:
        if one not in found:
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
                found[one] = pool.submit(measure, *one).result()
            append(arguments.out, asdict(found[one]))
    costs = [found[one] for one in wanted]
    print(machine(("torch", "onnx", "onnx-ir", "onnxruntime", "numpy")))
    print()
    print(tables(costs))
    if any(cost.failed for cost in costs):
        raise SystemExit("\n".join(f"{cost.network} {cost.way}: {cost.failed}" for cost in costs if cost.failed))


def key(cost: Cost) -> tuple[str, int, str, int]:
    return cost.network, cost.size, cost.way, cost.threads


def tables(costs: list[Cost]) -> str:
    header = ["network", "input", "way", "seconds", "CPU-seconds", "peak MB"]
    rows = [
        [cost.network, f"3×{cost.size}×{cost.size}", cost.way, f"{cost.seconds:.1f}", f"{cost.cpu_seconds:.1f}",
         f"{cost.peak_megabytes:.0f}"]
        for cost in costs
    ]  # fmt: skip
    folded = [cost for cost in costs if cost.steps]
    steps = list(dict.fromkeys(step for cost in folded for step in cost.steps))
    stages = [[step, *(f"{cost.steps.get(step, 0.0):.1f}" for cost in folded)] for step in steps]
    names = [f"{cost.network} {cost.size}" for cost in folded]
    return f"{markdown(header, rows)}\n\nCPU-seconds of each step\n\n{markdown(['step', *names], stages)}"


if __name__ == "__main__":
    main()
