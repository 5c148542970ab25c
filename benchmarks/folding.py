"""Folding beside the exporter's own optimiser: BatchNorms and operators left, latency, distance from float64.

    python -m benchmarks.folding [--rounds 30]

Each architecture of models/ gets random statistics (γ > 0, so that every tool may fold all it knows), is folded by
`fold_model` and by `torch.onnx.export(optimize=True)`, and runs in ONNX Runtime on the CPU with all its own
optimisations on. The two sessions and the unfolded one take turns; medians are compared.
"""

import argparse
import importlib
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import nn

import fold
from fold.export import quiet
from fold.runtime import open_session, run
from fold.verify import ModuleReference

ARCHITECTURES = (
    "mlp", "cnn", "vgg_after", "resnet", "preact_resnet", "mobilenet", "densenet", "unet", "repvgg", "conv1d_tcn",
)  # fmt: skip
BATCH = 32


def randomise(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            layer.running_mean.normal_(generator=generator)  # type: ignore[union-attr]
            layer.running_var.uniform_(0.2, 2, generator=generator)  # type: ignore[union-attr]
            nn.init.uniform_(layer.weight, 0.3, 2, generator=generator)
            nn.init.normal_(layer.bias, generator=generator)
    return module.eval()


def batchnorms(model: ir.Model) -> int:
    return sum(node.op_type == "BatchNormalization" for node in model.graph)


def interleaved(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median milliseconds of each call; they take turns, so that what else the machine does falls on all alike."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 3):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            if turn >= 3:
                taken[name].append(time.perf_counter() - started)
    return {name: 1000 * float(np.median(times)) for name, times in taken.items()}


def measure(name: str, rounds: int) -> dict[str, object]:
    torch.manual_seed(0)
    module = randomise(getattr(importlib.import_module(f"models.{name}"), name)())
    x = torch.randn(BATCH, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    started = time.perf_counter()
    unfolded = fold.export_module(module, x)
    export_seconds = time.perf_counter() - started
    folded, report = fold.fold_model(unfolded)
    with quiet():
        optimised = torch.onnx.export(module, (x,), dynamo=True, optimize=True, verbose=False)
    assert optimised is not None
    graphs = {"unfolded": unfolded, "exporter": optimised.model, "bnfold": folded}
    sessions = {key: open_session(ir.to_proto(g).SerializeToString(), provider="cpu") for key, g in graphs.items()}
    inputs = {"x": x.numpy()}
    truth = ModuleReference(module, ["x"], ["output"]).exact(inputs)["output"]
    answers = {key: next(iter(run(session, inputs).values())) for key, session in sessions.items()}
    errors = {key: float(np.abs(answer - truth).max() / np.abs(truth).max()) for key, answer in answers.items()}
    if max(errors.values()) > 1e-4:
        raise SystemExit(f"{name}: wrong answers, {errors}")
    latency = interleaved(
        {key: lambda session=session: run(session, inputs) for key, session in sessions.items()},  # type: ignore[misc]
        rounds,
    )
    return {
        "architecture": name,
        "batchnorms": {key: batchnorms(graph) for key, graph in graphs.items()},
        "operators": {key: len(graph.graph) for key, graph in graphs.items()},
        "error": errors,
        "milliseconds": latency,
        "export_seconds": export_seconds,
        "fold_seconds": report.seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--out", type=Path, default=Path("build/benchmarks/folding.json"))
    arguments = parser.parse_args()
    rows = [measure(name, arguments.rounds) for name in track(ARCHITECTURES, "measuring", console=Console(stderr=True))]
    table = Table(
        "Architecture", "BN", "left exporter", "left bnfold", "Nodes exporter", "Nodes bnfold",
        "Error unfolded", "Error bnfold", "ms unfolded", "exporter/bnfold", "fold s",
        title=f"batch {BATCH}, ONNX Runtime {onnxruntime.__version__}, torch {torch.__version__}",
    )  # fmt: skip
    for row in rows:
        bn, nodes, error, ms = row["batchnorms"], row["operators"], row["error"], row["milliseconds"]
        table.add_row(
            str(row["architecture"]), str(bn["unfolded"]), str(bn["exporter"]), str(bn["bnfold"]),  # type: ignore[index]
            str(nodes["exporter"]), str(nodes["bnfold"]), f"{error['unfolded']:.1e}", f"{error['bnfold']:.1e}",  # type: ignore[index]
            f"{ms['unfolded']:.3f}", f"{ms['exporter'] / ms['bnfold']:.2f}", f"{row['fold_seconds']:.3f}",  # type: ignore[index]
        )  # fmt: skip
    Console(width=160).print(table)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
