"""Compares folding with the tools that people use: BatchNorms and operators left, latency, distance from float64.

    python -m benchmarks.folding [--rounds 30] [--only repvgg resnet]

Each architecture of models/ has a size that a CPU serves in milliseconds, and random statistics (γ > 0, so that every
tool can fold all it knows). ONNX Runtime alone, onnxsim, onnxslim and `fold_model` (closed and opened) get the unfolded
graph; the exporter optimises the module itself. onnxsim and onnxslim run as processes, so that a crash is reported like
any other result. All graphs have a dynamic batch and run in ONNX Runtime on the CPU with all its own optimisations.
Sessions take turns, in a new order each round, and medians are compared. They run in the calling thread alone, and its
CPU time is measured: on an idle machine this is the latency; beside other work it leaves out the waiting for a core.

An answer further than `WRONG` from float64 is reported as wrong, and is not timed. If an answer of ours is wrong, the
command exits with 1 after its tables.
"""

import argparse
import importlib
import json
import os
import platform
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import torch
from rich.console import Console
from rich.progress import track
from torch import nn
from torch.export import Dim
from torch.nn.modules.batchnorm import _BatchNorm

import fold
from fold.arrays import Arrays
from fold.errors import first_line
from fold.proof.reference import ModuleReference
from fold.runtime.session import FAULTY_OPTIMIZERS, open_session, run
from fold.sources import silenced
from models.frozen_resnet import FrozenBatchNorm2d


@dataclass(frozen=True)
class Architecture:
    """`arguments` of the factory in models/, the shape of one input, and how many inputs are run at once.

    `branched` architectures are trained with parallel branches that one convolution can replace.
    """

    arguments: dict[str, object]
    shape: tuple[int, ...]
    batch: int = 1
    branched: bool = False


RGB: dict[str, object] = {"in_channels": 3}
WIDE: dict[str, object] = {"in_channels": 3, "channels": (32, 64, 128, 256), "depth": 2}
ARCHITECTURES: dict[str, Architecture] = {
    "mlp": Architecture({"image_size": 28, "channels": 1024, "depth": 3}, (1, 28, 28), batch=16),
    "cnn": Architecture(RGB | {"channels": (64, 128, 256)}, (3, 64, 64)),
    "vgg_after": Architecture(RGB | {"channels": (64, 128, 256)}, (3, 64, 64)),
    "resnet": Architecture(WIDE, (3, 64, 64)),
    "frozen_resnet": Architecture(WIDE, (3, 64, 64)),
    "senet": Architecture(WIDE | {"reduction": 16}, (3, 64, 64)),
    "ecanet": Architecture(WIDE, (3, 64, 64)),
    "preact_resnet": Architecture(WIDE, (3, 64, 64)),
    "resnetv2": Architecture(RGB | {"stem": 64, "channels": (32, 64, 128)}, (3, 64, 64)),
    "pyramidnet": Architecture(RGB | {"channels": 32, "widening": 16, "depth": 3, "stages": 3}, (3, 48, 48)),
    "densenet": Architecture(RGB | {"channels": 64, "growth": 32, "depth": 6, "blocks": 3}, (3, 32, 32)),
    "dpn": Architecture(
        RGB | {"stem": 64, "channels": (64, 128, 256), "growth": 16, "depth": 3, "groups": 8}, (3, 64, 64)
    ),
    "unet": Architecture(RGB | {"channels": (32, 64, 128)}, (3, 64, 64)),
    "dcgan": Architecture({"latent": 100, "channels": (256, 128, 64), "out_channels": 3}, (100,)),
    "r3d": Architecture(RGB | {"channels": (32, 64, 128)}, (3, 8, 48, 48)),
    "conv1d_tcn": Architecture({"in_channels": 16, "rows": 0, "channels": 128, "depth": 5}, (16, 256)),
    "mobilenet": Architecture(RGB | {"channels": (16, 24, 40, 80, 112), "expansion": 6}, (3, 96, 96)),
    "mixnet": Architecture(RGB | {"channels": (24, 40, 80, 120), "expansion": 4}, (3, 64, 64)),
    "shufflenet": Architecture(RGB | {"stem": 24, "channels": (116, 232, 464), "depth": 4}, (3, 112, 112)),
    "nasnet": Architecture(RGB | {"stem": 32, "channels": 32, "depth": 2, "stages": 3}, (3, 32, 32)),
    "convmixer": Architecture(
        RGB | {"channels": 256, "depth": 8, "kernel": 9, "patch": 8, "activation": "gelu"}, (3, 128, 128)
    ),
    "levit": Architecture(RGB | {"channels": (128, 256, 384), "heads": 4, "key": 16}, (3, 64, 64)),
    "efficientvit": Architecture(RGB | {"channels": (64, 128, 192), "depth": 2, "heads": 4, "key": 16}, (3, 48, 48)),
    "repvgg": Architecture(RGB | {"channels": (48, 96, 192), "depth": 4}, (3, 64, 64), branched=True),
    "mobileone": Architecture(
        RGB | {"channels": (48, 128, 256, 1024), "depths": (2, 8, 10, 1), "branches": 4}, (3, 224, 224), branched=True
    ),
    "fastvit": Architecture(
        RGB | {"channels": (48, 96, 192, 384), "depths": (2, 2, 4, 2)}, (3, 128, 128), branched=True
    ),
    "repvit": Architecture(
        RGB | {"channels": (48, 96, 192, 384), "depths": (3, 3, 15, 2)}, (3, 128, 128), branched=True
    ),
}
"""MobileOne-S0, FastViT-T8 and RepViT-M0.9 have the widths and depths of their papers."""

RUNTIME, CLOSED, OPENED = "ONNX Runtime", "bnfold", "bnfold, opened"
OURS = (CLOSED, OPENED)
AGAIN = "bnfold, once more"
"""A second session of the same graph. The difference between the two is the noise of the measurement."""
WRONG = 1e-4
"""The largest error, relative to the largest output, that float32 rounding can explain."""
PACKAGES = ("torch", "onnxscript", "onnx", "onnxruntime", "onnxsim", "onnxslim")
TOOL_SECONDS = 600


@dataclass
class Outcome:
    """The result of one tool for one architecture. Counts are of its file, then of the file after ONNX Runtime (basic).

    `seconds` is the time that the tool took, `error` the distance from float64 relative to the largest output.
    `failure` says why there is no right answer; then there is no latency.
    """

    seconds: float = 0.0
    batchnorms: tuple[int, int] | None = None
    operators: tuple[int, int] | None = None
    error: float | None = None
    milliseconds: float | None = None
    failure: str | None = None


@dataclass
class Row:
    """One architecture: its BatchNorms, the seconds of its export, and every tool's outcome.

    `noise` is the latency of the second session of our graph over that of the first.
    """

    name: str
    batchnorms: int
    export_seconds: float
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    noise: float = 1.0

    def best_other(self) -> float:
        """Milliseconds of the fastest right answer of another tool."""
        return min(o.milliseconds for tool, o in self.outcomes.items() if tool not in OURS and o.milliseconds)

    def ratio(self, tool: str) -> float | None:
        """Latency of the best other tool over that of `tool`: above 1 `tool` is faster."""
        own = self.outcomes[tool].milliseconds
        return None if own is None else self.best_other() / own


def randomise(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for layer in module.modules():
        if isinstance(layer, _BatchNorm | FrozenBatchNorm2d):
            layer.running_mean.normal_(generator=generator)  # type: ignore[union-attr]
            layer.running_var.uniform_(0.2, 2, generator=generator)  # type: ignore[union-attr]
            nn.init.uniform_(layer.weight, 0.3, 2, generator=generator)
            nn.init.normal_(layer.bias, generator=generator)
    return module.eval()


def build(name: str) -> nn.Module:
    """The architecture `name` at the size of the benchmark, in eval mode with random statistics."""
    torch.manual_seed(0)
    factory: Callable[..., nn.Module] = getattr(importlib.import_module(f"models.{name}"), name)
    return randomise(factory(**ARCHITECTURES[name].arguments))


def exporter(module: nn.Module, example: torch.Tensor) -> bytes:
    """The graph of `torch.onnx.export` with its defaults and a free batch."""
    with silenced():
        program = torch.onnx.export(
            module, (example,), dynamo=True, optimize=True, dynamic_shapes=({0: Dim("batch")},), verbose=False
        )
    assert program is not None
    return serialised(program.model)


def command(tool: str, unfolded: bytes) -> bytes:
    """The graph of `python -m tool unfolded.onnx out.onnx`. Raises `RuntimeError` with the tool's last line."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "unfolded.onnx", Path(folder) / "out.onnx"
        source.write_bytes(unfolded)
        done = subprocess.run(
            [sys.executable, "-m", tool, str(source), str(target)],
            check=False, capture_output=True, text=True, timeout=TOOL_SECONDS,
        )  # fmt: skip
        if done.returncode or not target.exists():
            said = re.sub(r"\x1b\[[0-9;]*m", "", done.stderr + done.stdout).split("\n")
            words = next((line.strip() for line in reversed(said) if line.strip()), "no word")
            raise RuntimeError(f"exit {done.returncode}: {words}")
        return target.read_bytes()


def serialised(model: ir.Model) -> bytes:
    written: bytes = ir.to_proto(model).SerializeToString()
    return written


def counts(model: bytes) -> tuple[int, int]:
    """BatchNorms and operators of a graph and its subgraphs. Constants are not counted."""
    graph = ir.from_proto(onnx.load_from_string(model)).graph
    types = [node.op_type for node in ir.traversal.RecursiveGraphIterator(graph) if node.op_type != "Constant"]
    return types.count("BatchNormalization"), len(types)


def basic(model: bytes) -> bytes:
    """The graph as ONNX Runtime rewrites it at its basic level, before kernels are fused and layouts chosen."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = f"{folder}/basic.onnx"
        onnxruntime.InferenceSession(
            model, options, providers=["CPUExecutionProvider"], disabled_optimizers=FAULTY_OPTIMIZERS
        )
        return Path(options.optimized_model_filepath).read_bytes()


def interleaved(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median milliseconds of CPU time for each call. Calls take turns, so that a disturbance affects all."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    order, shuffle = list(calls), random.Random(0)
    for turn in range(rounds + 3):
        shuffle.shuffle(order)
        for name in order:
            started = time.thread_time()
            calls[name]()
            if turn >= 3:
                taken[name].append(time.thread_time() - started)
    return {name: 1000 * float(np.median(times)) for name, times in taken.items()}


def attempt(
    tool: str, make: Callable[[], bytes], inputs: Arrays, truth: np.ndarray
) -> tuple[Outcome, onnxruntime.InferenceSession | None]:
    """Run a tool and check its answer. Any error of the tool is recorded as its failure."""
    outcome = Outcome()
    session = None
    started = time.perf_counter()
    try:
        graph = make()
        outcome.seconds = time.perf_counter() - started
        (file_norms, file_operators), (run_norms, run_operators) = counts(graph), counts(basic(graph))
        outcome.batchnorms, outcome.operators = (file_norms, run_norms), (file_operators, run_operators)
        session = open_session(graph, provider="cpu", threads=1)
        answer = next(iter(run(session, inputs).values()))
        outcome.error = float(np.abs(answer - truth).max() / np.abs(truth).max())
    except Exception as error:
        outcome.failure = f"failed: {type(error).__name__}: {first_line(error)}"
        return outcome, None
    if not outcome.error <= WRONG:  # NaN is wrong too
        outcome.failure = f"wrong: {outcome.error:.1e} from float64"
        return outcome, None
    return outcome, session


def measure(name: str, rounds: int) -> Row:
    architecture = ARCHITECTURES[name]
    module = build(name)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(architecture.batch, *architecture.shape, generator=generator)
    example = torch.randn(3, *architecture.shape, generator=generator)
    inputs = {"x": x.numpy()}
    truth = ModuleReference(module, ["x"], ["output"]).exact(inputs)["output"]
    started = time.perf_counter()
    model = fold.export_module(module, example)
    export_seconds = time.perf_counter() - started
    unfolded = serialised(model)
    makers: dict[str, Callable[[], bytes]] = {
        RUNTIME: lambda: unfolded,
        "exporter": lambda: exporter(module, example),
        "onnxsim": lambda: command("onnxsim", unfolded),
        "onnxslim": lambda: command("onnxslim", unfolded),
        CLOSED: lambda: serialised(fold.fold_model(model)[0]),
        OPENED: lambda: serialised(fold.fold_model(model, open_activations=True)[0]),
    }
    makers[AGAIN] = makers[CLOSED]
    row = Row(name, counts(unfolded)[0], export_seconds)
    calls: dict[str, Callable[[], object]] = {}
    for tool, make in makers.items():
        row.outcomes[tool], session = attempt(tool, make, inputs, truth)
        if session is not None:
            calls[tool] = lambda session=session: run(session, inputs)  # type: ignore[misc]
    for tool, milliseconds in interleaved(calls, rounds).items():
        row.outcomes[tool].milliseconds = milliseconds
    again = row.outcomes.pop(AGAIN).milliseconds
    if again is not None:
        row.noise = again / (row.outcomes[CLOSED].milliseconds or again)
    return row


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def machine(packages: Sequence[str]) -> str:
    """Date, machine, its load and versions, in one line."""
    cpu = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return ", ".join([
        f"{datetime.now(UTC):%Y-%m-%d}", cpu.group(1) if cpu else platform.processor(), f"{os.cpu_count()} cores",
        f"{memory:.0f} GB", f"load {os.getloadavg()[0]:.1f}", f"Python {platform.python_version()}",
        *(f"{package} {version(package)}" for package in packages),
    ])  # fmt: skip


def _cells(row: Row, show: Callable[[Outcome], str]) -> list[str]:
    """A cell for each tool. A tool without a right answer has its failure there."""
    return [o.failure.split(":")[0] if o.failure else show(o) for o in row.outcomes.values()]


def _counted(pair: tuple[int, int] | None) -> str:
    assert pair is not None
    return str(pair[0]) if pair[0] == pair[1] else f"{pair[0]} → {pair[1]}"


def _ratios(row: Row) -> list[str]:
    return ["-" if ratio is None else f"{ratio:.2f}" for ratio in map(row.ratio, OURS)]


def tables(rows: Sequence[Row]) -> str:
    tools = list(rows[0].outcomes)
    parts = [
        "BatchNorms left in the file → after ONNX Runtime's basic optimisations",
        markdown(
            ["architecture", "BatchNorms", *tools],
            ([row.name, str(row.batchnorms), *_cells(row, lambda o: _counted(o.batchnorms))] for row in rows),
        ),
        "Operators in the file → after ONNX Runtime's basic optimisations",
        markdown(
            ["architecture", *tools],
            ([row.name, *_cells(row, lambda o: _counted(o.operators))] for row in rows),
        ),
        "Median latency in one thread, in ms, and the best other tool's over ours (above 1 ours is faster)",
        markdown(
            ["architecture", "input", *tools, *(f"best other / {tool}" for tool in OURS)],
            (
                [
                    row.name,
                    "×".join(map(str, (ARCHITECTURES[row.name].batch, *ARCHITECTURES[row.name].shape))),
                    *_cells(row, lambda o: f"{o.milliseconds:.2f}"),
                    *_ratios(row),
                ]
                for row in rows
            ),
        ),
        "Distance from float64, relative to the largest output, and seconds",
        markdown(
            ["architecture", *tools, "export s", "fold s"],
            (
                [
                    row.name,
                    *_cells(row, lambda o: f"{o.error:.1e}"),
                    f"{row.export_seconds:.1f}",
                    f"{row.outcomes[CLOSED].seconds:.3f}",
                ]
                for row in rows
            ),
        ),
    ]
    return "\n\n".join(parts)


def summary(rows: Sequence[Row]) -> str:
    lines = []
    for tool in OURS:
        ratios = {row.name: ratio for row in rows if (ratio := row.ratio(tool)) is not None}
        branched = [ratio for name, ratio in ratios.items() if ARCHITECTURES[name].branched]
        if branched:
            mean = float(np.exp(np.mean(np.log(branched))))
            lines.append(f"- {tool}, {len(branched)} branched architectures: {mean:.2f} times as fast (geometric mean)")
        if ratios:
            slowest = min(ratios, key=lambda name: ratios[name])
            lines.append(f"- {tool}, slowest beside the best other: {ratios[slowest]:.2f} ({slowest})")
    noises = sorted((row.noise, row.name) for row in rows)
    (least, quick), (most, slow) = noises[0], noises[-1]
    lines.append(f"- noise, one graph in two sessions: {least:.2f} ({quick}) to {most:.2f} ({slow})")
    for row in rows:
        lines += [f"- {tool} on {row.name} {o.failure}" for tool, o in row.outcomes.items() if o.failure]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--only", nargs="+", choices=ARCHITECTURES, default=list(ARCHITECTURES), metavar="NAME")
    parser.add_argument("--out", type=Path, default=Path("build/benchmarks/folding.json"))
    arguments = parser.parse_args()
    try:
        described = machine(PACKAGES)
    except PackageNotFoundError as error:
        raise SystemExit(f"{error.name} is not installed: pip install -c constraints.txt -e '.[benchmarks]'") from None
    rows = [
        measure(name, arguments.rounds) for name in track(arguments.only, "measuring", console=Console(stderr=True))
    ]
    print(described, tables(rows), summary(rows), sep="\n\n")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    content = {"machine": described, "rounds": arguments.rounds, "rows": [asdict(row) for row in rows]}
    arguments.out.write_text(json.dumps(content, indent=2) + "\n")
    if any(row.outcomes[tool].failure for row in rows for tool in OURS):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
