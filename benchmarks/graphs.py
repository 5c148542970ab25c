"""Makes the graphs for a GPU, with one process for each network, because the export takes most of the time.

python -m benchmarks.graphs NETWORK FOLDER             unfolded, closed and opened .onnx, and closed in float16
python -m benchmarks.graphs NETWORK FOLDER DEVICE      a model repository, certified on that device; it takes bytes
"""

import sys
from pathlib import Path

import onnx_ir as ir
import torch
from torch import nn

import fold
from benchmarks.folding import randomise
from benchmarks.published import NETWORKS, SMALL, Network
from fold.convert import Target, convert
from fold.engine import round_weights
from fold.graph import save_graph
from fold.precision import lower, prepare
from fold.sources import Source
from fold.sources.export import export_program, save_program
from models.mobileone import MobileOneBlock

GRAPHS = ("unfolded", "closed", "opened", "closed fp16")
MODEL = "net"
"""The name of the model in the repository."""


def network(name: str) -> Network:
    return SMALL if name == "small" else NETWORKS[name]


def build(name: str) -> nn.Module:
    """The network in eval mode, with random weights and statistics that are the same in every process."""
    torch.manual_seed(0)
    module = randomise(network(name).build())
    for block in module.modules():
        if isinstance(block, MobileOneBlock):
            for branch in block.branches.modules():
                if isinstance(branch, nn.BatchNorm2d):  # or the sums of 42 blocks would leave the range of float16
                    branch.weight.data /= len(block.branches) ** 0.3
    return module


class OfBytes(nn.Module):
    """A network behind the normalisation of images, which are bytes: a quarter of float32 to send."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.network((x.to(torch.float32) - 127.5) / 73.5)
        return found


def file_of(folder: Path, graph: str) -> Path:
    return folder / f"{graph.replace(' ', '_')}.onnx"


def write_graphs(name: str, folder: Path) -> None:
    unfolded = fold.export_module(build(name), torch.zeros(2, *network(name).shape))
    closed, _ = fold.fold_model(unfolded)
    graphs: dict[str, ir.Model] = {"unfolded": unfolded, "closed": closed}
    graphs["opened"], _ = fold.fold_model(unfolded, open_activations=True)
    graphs["closed fp16"] = lower(prepare(closed, "fp16"), "fp16", frozenset())
    round_weights(graphs["closed fp16"].graph)
    for graph, model in graphs.items():
        save_graph(model, file_of(folder, graph))


def write_repository(name: str, folder: Path, device: str) -> None:
    """Publish a model repository. Raises `SystemExit` if the folded graph is not certified."""
    images = torch.zeros(2, *network(name).shape, dtype=torch.uint8)
    program = export_program(OfBytes(build(name)).eval(), images)
    save_program(program, folder / f"{MODEL}.pt2")
    published = convert(
        Source(folder / f"{MODEL}.pt2", trust=True), Target(folder / "repository", MODEL), samples=4, provider=device
    )
    if published.path is None:
        raise SystemExit(published.certificate.message)


def main() -> None:
    name, folder, *device = sys.argv[1:]
    if device:
        write_repository(name, Path(folder), *device)
    else:
        write_graphs(name, Path(folder))


if __name__ == "__main__":
    main()
