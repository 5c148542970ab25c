"""Measures the cost of folding: seconds by BatchNorms and by channels, seconds beside the export, peak memory.

    python -m benchmarks.scaling [--repeats 3]

The curves are of residual chains (Conv, BatchNorm, ReLU; an Add behind every second one) that are built as graphs, with
random weights and statistics. The comparison with the export uses architectures of models/ with about 200 BatchNorms.
Memory is measured in a process of its own: see `peak_memory`.
"""

import argparse
import importlib
import json
import multiprocessing
import re
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from torch import nn

import fold
from benchmarks.folding import machine, markdown, randomise

BATCHNORMS = (10, 20, 50, 100, 200, 500, 1000, 2000)
CURVE_CHANNELS = 16
CHANNELS = (8, 16, 32, 64, 128, 256)
CURVE_BATCHNORMS = 50
TWO_HUNDRED: dict[str, dict[str, object]] = {
    "resnet": {"depth": 33},
    "preact_resnet": {"depth": 33},
    "densenet": {"depth": 66, "blocks": 3, "growth": 4},
    "repvgg": {"channels": (16, 32, 64), "depth": 23},
}
"""Arguments of each architecture that give it about 200 BatchNorms."""
HEAVY = (53, 512)
"""BatchNorms and channels of the chain for the memory: 0.5 GB of weights."""


@dataclass(frozen=True)
class Point:
    """The median seconds of `fold_model` on one chain; `weights` counts its numbers."""

    batchnorms: int
    channels: int
    weights: int
    seconds: float


@dataclass(frozen=True)
class Export:
    """Seconds of export and of folding, for one architecture."""

    architecture: str
    batchnorms: int
    kept: int
    export_seconds: float
    fold_seconds: float


@dataclass(frozen=True)
class Memory:
    """Bytes: the weights, the process before they were made, and the largest process (all resident)."""

    weights: int
    before: int
    peak: int

    @property
    def ratio(self) -> float:
        """The memory of the process as a multiple of the weights; the source's own weights count as 1."""
        return (self.peak - self.before) / self.weights


def chain(batchnorms: int, channels: int) -> ir.Model:
    """Conv 3x3, BatchNorm, ReLU, repeated; the second of each pair adds the input of the pair."""
    random = np.random.default_rng(0)
    initializers: list[ir.Value] = []
    nodes: list[ir.Node] = []

    def constant(name: str, array: np.ndarray) -> ir.Value:
        tensor = ir.tensor(array)
        shape, type_ = ir.Shape(array.shape), ir.TensorType(ir.DataType.FLOAT)
        initializers.append(ir.Value(name=name, shape=shape, type=type_, const_value=tensor))
        return initializers[-1]

    def add(op_type: str, inputs: Sequence[ir.Value], **attributes: ir.Attr) -> ir.Value:
        name = f"{op_type}_{len(nodes)}"
        output = ir.Value(name=f"{name}_out", shape=x.shape, type=x.type)
        nodes.append(ir.Node("", op_type, inputs, tuple(attributes.values()), outputs=[output], name=name))
        return output

    shape = ir.Shape(["batch", channels, 8, 8])
    x = ir.Value(name="x", shape=shape, type=ir.TensorType(ir.DataType.FLOAT))
    value = shortcut = x
    for index in range(batchnorms):
        weight = np.empty((channels, channels, 3, 3), np.float32)  # filled in place: no second copy for the peak
        random.standard_normal(out=weight, dtype=np.float32)
        weight *= 1 / np.sqrt(9 * channels)
        pads = ir.Attr("pads", ir.AttributeType.INTS, [1, 1, 1, 1])
        value = add("Conv", [value, constant(f"{index}.conv", weight)], pads=pads)
        drawn = {
            "scale": random.uniform(0.3, 2, channels),
            "bias": random.standard_normal(channels),
            "mean": random.standard_normal(channels),
            "var": random.uniform(0.2, 2, channels),
        }
        statistics = [constant(f"{index}.{name}", array.astype(np.float32)) for name, array in drawn.items()]
        value = add("BatchNormalization", [value, *statistics])
        if index % 2:
            value = shortcut = add("Relu", [add("Add", [value, shortcut])])
        else:
            value = add("Relu", [value])
    graph = ir.Graph([x], [value], nodes=nodes, initializers=initializers, opset_imports={"": 20}, name="chain")
    return ir.Model(graph, ir_version=10)


def numbers(model: ir.Model) -> int:
    return sum(value.const_value.size for value in model.graph.initializers.values() if value.const_value is not None)


def point(batchnorms: int, channels: int, repeats: int) -> Point:
    model = chain(batchnorms, channels)
    taken = []
    for _ in range(repeats):
        started = time.perf_counter()
        _, report = fold.fold_model(model)
        taken.append(time.perf_counter() - started)
    if report.kept or len(report.folded) != batchnorms:
        raise SystemExit(f"a chain of {batchnorms} BatchNorms: {len(report.folded)} folded")
    return Point(batchnorms, channels, numbers(model), float(np.median(taken)))


def fit(x: Sequence[float], y: Sequence[float]) -> str:
    """Least squares of seconds y = slope·x + offset, and the exponent p of y ~ x^p between the last two points.

    R² hardly shows a curve that bends upwards; the exponent does: 1 is linear, 2 is quadratic.
    """
    measured = np.asarray(y)
    slope, offset = np.polyfit(x, measured, 1)
    rest = measured - (slope * np.asarray(x) + offset)
    determined = 1 - (rest**2).sum() / ((measured - measured.mean()) ** 2).sum()
    exponent = np.log(y[-1] / y[-2]) / np.log(x[-1] / x[-2])
    return (
        f"Linear fit: {1e6 * slope:.3g} µs each {1000 * offset:+.0f} ms, R² {determined:.4f}; "
        f"exponent at the end {exponent:.2f}"
    )


def beside_export(name: str) -> Export:
    """Export and fold once each, as a user does. Only Python's imports and the exporter's tables are warm."""
    torch.manual_seed(0)
    module: nn.Module = randomise(getattr(importlib.import_module(f"models.{name}"), name)(**TWO_HUNDRED[name]))
    started = time.perf_counter()
    model = fold.export_module(module, torch.randn(3, 1, 16, 16))
    exported = time.perf_counter()
    _, report = fold.fold_model(model)
    folded = time.perf_counter()
    return Export(name, report.batchnorms, len(report.kept), exported - started, folded - exported)


def resident(field: str, pid: int | str = "self") -> int:
    """Resident bytes of a process as Linux counts them: `VmRSS` now, `VmHWM` the largest since its start."""
    found = re.search(rf"^{field}:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found is not None
    return 1024 * int(found.group(1))


def peak_memory(batchnorms: int, channels: int) -> Memory:
    """Fold a large chain in this process. It must be new, because the peak of memory only grows.

    The result is all resident memory above the interpreter with its imports: the source's weights, the folded model,
    and what folding needs meanwhile. The source stays in memory, because `fold_model` does not change it. A small chain
    is folded first, so that memory for imports and caches is in `before`.
    """
    fold.fold_model(chain(4, 8))
    before = resident("VmRSS")
    model = chain(batchnorms, channels)
    folded, _ = fold.fold_model(model)
    peak = resident("VmHWM")
    assert numbers(folded) <= numbers(model)
    return Memory(4 * numbers(model), before, peak)


def tables(by_count: Sequence[Point], by_width: Sequence[Point], exports: Sequence[Export], memory: Memory) -> str:
    parts = [
        f"`fold_model` by BatchNorms ({CURVE_CHANNELS} channels)",
        markdown(
            ["BatchNorms", "seconds", "ms a BatchNorm"],
            ([str(p.batchnorms), f"{p.seconds:.3f}", f"{1000 * p.seconds / p.batchnorms:.2f}"] for p in by_count),
        ),
        fit([p.batchnorms for p in by_count], [p.seconds for p in by_count]),
        f"`fold_model` by channels ({CURVE_BATCHNORMS} BatchNorms)",
        markdown(
            ["channels", "weights", "seconds"],
            ([str(p.channels), f"{p.weights:,}", f"{p.seconds:.3f}"] for p in by_width),
        ),
        fit([p.weights for p in by_width], [p.seconds for p in by_width]),
        "`fold_model` beside `export_module`",
        markdown(
            ["architecture", "BatchNorms", "kept", "export s", "fold s", "fold / export"],
            (
                [e.architecture, str(e.batchnorms), str(e.kept), f"{e.export_seconds:.2f}", f"{e.fold_seconds:.3f}",
                 f"{e.fold_seconds / e.export_seconds:.3f}"]
                for e in exports
            ),
        ),
        f"Memory: {memory.weights / 1e6:.0f} MB of weights, at most {(memory.peak - memory.before) / 1e6:.0f} MB "
        f"resident for them, their folded copy and the work: {memory.ratio:.2f} times the weights",
    ]  # fmt: skip
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("build/benchmarks/scaling.json"))
    arguments = parser.parse_args()
    described = machine(("torch", "onnxscript", "onnx", "onnx-ir", "numpy"))
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as fresh:
        memory = fresh.submit(peak_memory, *HEAVY).result()
    by_count = [point(count, CURVE_CHANNELS, arguments.repeats) for count in BATCHNORMS]
    by_width = [point(CURVE_BATCHNORMS, width, arguments.repeats) for width in CHANNELS]
    fold.export_module(nn.Linear(2, 2), torch.zeros(3, 2))  # the first export builds tables for all later ones
    exports = [beside_export(name) for name in TWO_HUNDRED]
    print(described, tables(by_count, by_width, exports, memory), sep="\n\n")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "machine": described,
        "by_batchnorms": [asdict(p) for p in by_count],
        "by_channels": [asdict(p) for p in by_width],
        "exports": [asdict(e) for e in exports],
        "memory": asdict(memory),
    }
    arguments.out.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
