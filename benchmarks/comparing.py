"""What `bnfold compare` says of graphs that other tools wrote, and of faults in them.

    python -m benchmarks.comparing [--only repvgg resnet] [--sizes 1e-3 1e-2 1e-1]

Each architecture of models/ is small, as in the tests, and has random statistics (γ > 0, so that every tool folds all
it can). Its unfolded graph is compared with what onnxsim, onnxslim and the exporter's optimiser make of it, and with
the same graphs with a fault: the numbers of one channel of one weight are off by this share of the largest. A row is
written when it is there; a run that was stopped goes on.
"""

import argparse
import random
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import torch
from rich.console import Console
from rich.progress import track

import fold
from benchmarks.folding import command, machine, markdown, serialised
from benchmarks.rows import append, read
from fold.errors import first_line
from fold.graph import described
from fold.sources import Source, silenced
from tests.support.folding import ARCHITECTURES, unfolded

SIZES = (1e-3, 1e-2, 1e-1)


@dataclass
class Row:
    """What was said of one tool's graph with a fault of one size; 0 is the graph as the tool wrote it. `share` is the
    difference in float64 over its limit. `named`: the layer that parts reads the wrong weight."""

    architecture: str
    tool: str
    size: float
    same: bool | None = None
    share: float | None = None
    named: bool | None = None
    message: str = ""


def exporter(model: ir.Model) -> bytes:
    """What the passes of `torch.onnx.export(…, optimize=True)` make of the unfolded graph."""
    program = torch.onnx.ONNXProgram(model.clone(), None)
    with silenced():
        program.optimize()
    return serialised(program.model)


TOOLS: dict[str, Callable[[ir.Model], bytes]] = {
    "exporter": exporter,
    "onnxsim": lambda model: command("onnxsim", serialised(model)),
    "onnxslim": lambda model: command("onnxslim", serialised(model)),
}


def plant(model: ir.Model, size: float, chance: random.Random) -> list[str]:
    """Change one channel of a weight in place. Returns the nodes that read it."""
    weights = model.graph.initializers
    arrays = {name: value.const_value.numpy() for name, value in weights.items() if value.const_value is not None}
    many = (name for name, array in arrays.items() if array.ndim > 1 and array.dtype == np.float32 and array.any())
    name = chance.choice(sorted(many))
    wrong = arrays[name].copy()
    wrong[chance.randrange(len(wrong))] += np.float32(size) * np.abs(wrong).max()
    weights[name].const_value = ir.tensor(wrong, name=name)
    return [described(node) for node, _ in weights[name].uses()]


def examine(architecture: str, tool: str, sizes: Sequence[float], out: Path) -> None:
    """Compare the unfolded graph with that of a tool, and with faults of these sizes in it."""
    model = unfolded(architecture)
    try:
        made = TOOLS[tool](model)
    except RuntimeError as error:
        for size in sizes:
            append(out, asdict(Row(architecture, tool, size, message=f"the tool failed: {first_line(error)}")))
        return
    with tempfile.TemporaryDirectory() as scratch:
        a, b = Path(scratch) / "a.onnx", Path(scratch) / "b.onnx"
        a.write_bytes(serialised(model))
        for size in sizes:
            theirs = ir.from_proto(onnx.load_from_string(made))
            readers = plant(theirs, size, random.Random(f"{architecture} {tool}")) if size else []
            ir.save(theirs, b)
            found = fold.compare(Source(a, trial=None), Source(b, trial=None), samples=4)
            row = Row(architecture, tool, size, bool(found), max(each.share for each in found.algebra))
            row.message = found.message
            if found.parting is not None:
                row.named = found.parting.counterpart in readers
            append(out, asdict(row))


def table(rows: Sequence[Row], sizes: Sequence[float]) -> str:
    lines = []
    for tool in TOOLS:
        for size in sizes:
            these = [row for row in rows if (row.tool, row.size) == (tool, size)]
            compared = [row for row in these if row.same is not None]
            shares = [row.share for row in compared if row.share is not None]
            lines.append([
                tool, f"{size:g}", f"{len(compared)} of {len(these)}", str(sum(row.same is True for row in compared)),
                str(sum(row.named is True for row in compared)) if size else "",
                f"{min(shares):.2g}, {np.median(shares):.2g}, {max(shares):.2g}" if shares else "-",
            ])  # fmt: skip
    return markdown(["tool", "fault", "graphs", "the same", "layer named", "share of A's limit"], lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=ARCHITECTURES, default=list(ARCHITECTURES), metavar="NAME")
    parser.add_argument("--sizes", nargs="+", type=float, default=SIZES, metavar="SIZE")
    parser.add_argument("--out", type=Path, default=Path("build/benchmarks/comparing.jsonl"))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    sizes = [0.0, *asked.sizes]
    known = {(row["architecture"], row["tool"], row["size"]) for row in read(asked.out)}
    for architecture in track(asked.only, "comparing", console=Console(stderr=True)):
        for tool in TOOLS:
            if wanted := [size for size in sizes if (architecture, tool, size) not in known]:
                examine(architecture, tool, wanted, asked.out)
    rows = [row for row in (Row(**each) for each in read(asked.out)) if row.architecture in asked.only]
    print(machine(("torch", "onnxsim", "onnxslim", "onnxruntime")), table(rows, sizes), sep="\n\n")
    for row in rows:
        if row.same is not (row.size == 0):
            print(f"- {row.architecture}, {row.tool}, {row.size:g}: {row.message}")


if __name__ == "__main__":
    main()
