"""Folds and proves the architectures of public zoos: timm, torchvision and pytorchcv, as far as they are installed.

    make zoo                                                  an environment with the zoos, and a run of an hour
    python -m benchmarks.zoo run [--seed 0] [--minutes 60]    goes on where the last run with this seed stopped
    python -m benchmarks.zoo page > docs/zoo.md               what was found so far

Names are taken in a random order. Each network gets random weights; the statistics of its BatchNorms come from a random
batch and are then moved at random, and so are γ and β. It is exported, folded with closed and with opened activations,
proven and published as by `bnfold fold`, and timed beside its unfolded graph. Each runs in a process of its own, with
limits of time and memory, that is forked from one that has imported everything.
"""

import argparse
import contextlib
import importlib.util
import json
import multiprocessing
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from benchmarks.folding import machine, markdown
from fold.bench import speed_ratio
from fold.bench.measure import interleaved
from fold.convert import Target, convert
from fold.engine import fold_graph
from fold.errors import first_line
from fold.runtime import open_graph
from fold.sources import Source
from fold.sources.export import export_program, save_program

ZOOS = ("timm", "torchvision", "pytorchcv")
SIZES = (64, 96, 128, 224, 256, 299, 331)
"""Heights and widths that are tried, the smallest first."""
FRAMES = 8
ROWS = 4
SAMPLES = 4
ROUNDS = 15
MOST_PARAMETERS = 100_000_000
OUT = Path("build/benchmarks/zoo.jsonl")
NOTES = {
    "pytorchcv/deeplabv3_resnetd152b_voc": "it takes 480×480 alone, which was not tried when it was drawn",
    "pytorchcv/quartznet15x5_it": "it reads audio with a package that is not installed",
    "pytorchcv/simplepose_mobile_mobilenet_w1_coco": "its code looks for maxima, which `torch.export` cannot trace",
    "timm/lamhalobotnet50ts_256": "stopped by hand after 4 CPU-minutes in the solver of shifts. Since then it folds in "
    "5 CPU-seconds: 53 of 59 BatchNorms, 6 stay; the proof was not run again",
}
"""What was found out about networks that failed."""


@dataclass
class Row:
    """The result for one name. `failed` says at which step and why; `message` is the certificate's."""

    name: str
    batchnorms: int = 0
    parameters: int = 0
    shape: tuple[int, ...] = ()
    kept_closed: int | None = None
    kept_opened: int | None = None
    reasons: dict[str, int] = field(default_factory=dict)
    retraced: str | None = None
    certified: bool | None = None
    message: str = ""
    seconds: dict[str, float] = field(default_factory=dict)
    cpu_seconds: float = 0.0
    peak_megabytes: int = 0
    speed: float | None = None
    speed_low: float | None = None
    speed_high: float | None = None
    noise: float | None = None
    failed: str | None = None


class Steps:
    """Seconds of each step; a step ends where the next one begins."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.now = ""
        self._since = time.perf_counter()

    def __call__(self, step: str) -> None:
        self._end()
        self.now = step

    def close(self) -> dict[str, float]:
        self._end()
        return {step: round(seconds, 2) for step, seconds in self.seconds.items() if step}

    def _end(self) -> None:
        now = time.perf_counter()
        self.seconds[self.now] = self.seconds.get(self.now, 0.0) + now - self._since
        self._since = now


def names() -> list[str]:
    """Every name of the zoos that are installed, as zoo/name."""
    found = []
    if importlib.util.find_spec("torchvision"):  # which timm imports as well
        import tests.frameworks.torchvision_schemas  # noqa: F401, PLC0415
    if importlib.util.find_spec("timm"):
        import timm  # noqa: PLC0415

        found += [f"timm/{name}" for name in timm.list_models()]
    if importlib.util.find_spec("torchvision"):
        from torchvision import models  # noqa: PLC0415

        # Detection needs compiled operators, and quantized networks have no BatchNorm in eval mode.
        for module in (models, models.segmentation, models.video):
            found += [f"torchvision/{name}" for name in models.list_models(module=module)]
    if importlib.util.find_spec("pytorchcv"):
        from pytorchcv import model_provider  # noqa: PLC0415

        found += [f"pytorchcv/{name}" for name in model_provider._models]
    return found


def build(name: str) -> nn.Module:
    zoo, _, model = name.partition("/")
    if zoo == "timm":
        import timm  # noqa: PLC0415

        return timm.create_model(model)
    if zoo == "torchvision":
        from torchvision import models  # noqa: PLC0415

        plain = {"weights_backbone": None} if model in models.list_models(module=models.segmentation) else {}
        return models.get_model(model, weights=None, **plain)
    from pytorchcv.model_provider import get_model  # noqa: PLC0415

    return get_model(model, pretrained=False)


def batchnorms(module: nn.Module) -> list[_BatchNorm]:
    return [part for part in module.modules() if isinstance(part, _BatchNorm)]


def shapes(module: nn.Module) -> Iterator[tuple[int, ...]]:
    """Shapes of an input without the batch, from small ones to the network's own."""
    own = (getattr(module, "in_channels", 3), *getattr(module, "in_size", ()))  # of pytorchcv
    own = (getattr(module, "default_cfg", None) or {}).get("input_size", own)  # of timm
    video = (FRAMES,) if type(module).__module__.startswith("torchvision.models.video") else ()
    for size in SIZES:
        yield (own[0], *video, size, size)
    yield tuple(own)


def settle(module: nn.Module, seed: int) -> tuple[int, ...]:
    """Draw statistics and affine parameters, on the first shape that the network takes. Returns the shape."""
    generator = torch.Generator().manual_seed(seed)
    module.eval()
    norms = batchnorms(module)
    reason: Exception | None = None
    for shape in shapes(module):
        try:
            for norm in norms:
                norm.train()
                norm.momentum = 1.0
                norm.reset_running_stats()
            with torch.no_grad():
                module(torch.randn(ROWS, *shape, generator=generator))
        except Exception as error:  # whatever the network's own code raises
            reason = error
            continue
        finally:
            module.eval()
        with torch.no_grad():
            for norm in norms:
                _draw(norm, generator)
        return shape
    raise ValueError(f"takes none of the shapes: {first_line(reason) if reason else ''}")


def _draw(norm: _BatchNorm, generator: torch.Generator) -> None:
    """Move the statistics of a BatchNorm, and draw γ, one in twenty negative, and β."""
    size = (norm.num_features,)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean += norm.running_var.sqrt() * torch.randn(size, generator=generator) / 2
    norm.running_var *= torch.rand(size, generator=generator) * 1.5 + 0.5
    norm.running_var += 1e-3
    if norm.affine:
        sign = torch.where(torch.rand(size, generator=generator) < 0.05, -1.0, 1.0)
        norm.weight.copy_(sign * (torch.rand(size, generator=generator) * 1.2 + 0.3))
        norm.bias.copy_(torch.randn(size, generator=generator) / 3)


def examine(name: str, seed: int, row: Row, steps: Steps) -> None:
    """Fold and prove one network, and write down what is found in `row`."""
    # 1. Count before anything large is made.
    steps("building")
    with torch.device("meta"), contextlib.suppress(Exception):  # some need values while they are built
        empty = build(name)
        row.batchnorms = len(batchnorms(empty))
        row.parameters = sum(parameter.numel() for parameter in empty.parameters())
        if not row.batchnorms:
            return
        if row.parameters > MOST_PARAMETERS:
            row.failed = f"left out: more than {MOST_PARAMETERS:,} parameters"
            return
    torch.manual_seed(seed)
    module = build(name)
    row.batchnorms = len(batchnorms(module))
    row.parameters = sum(parameter.numel() for parameter in module.parameters())
    if not row.batchnorms:
        return
    row.shape = settle(module, seed)
    # 2. Export, fold, prove and publish, without the report, which takes the last graphs and inputs.
    steps("tracing")
    program = export_program(module, torch.zeros(1, *row.shape))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        save_program(program, folder / "net.pt2")
        del program, module
        steps("exporting")
        with mock.patch("fold.convert.write_html"), mock.patch("fold.convert.observe_layers") as observe:
            conversion = convert(
                Source(folder / "net.pt2", trust=True),
                Target(folder / "repository", "net"),
                samples=SAMPLES,
                provider="cpu",
                announce=lambda step: steps("exporting" if step.startswith("reading /") else step),
            )
        row.retraced = conversion.retraced
        row.kept_closed = len(conversion.report.kept)
        row.reasons = dict(Counter(kept.code for kept in conversion.report.kept))
        row.certified, row.message = bool(conversion.certificate), conversion.certificate.message
        if conversion.path is None:
            return
    # 3. Count what opened activations leave, and time the published graph beside the unfolded one.
    unfolded, folded, *_, inputs = observe.call_args.args
    steps("folding, opened")
    row.kept_opened = len(fold_graph(unfolded, open_activations=True).report.kept) if row.kept_closed else 0
    steps("timing")
    one = {name: array[:1] for name, array in inputs.items()}
    graphs = {"first": unfolded, "again": unfolded, "second": folded}
    found = speed_ratio(
        **interleaved({which: partial(open_graph(graph).run, None, one) for which, graph in graphs.items()}, ROUNDS)
    )
    row.speed, row.speed_low, row.speed_high, row.noise = found.ratio, found.low, found.high, found.noise


def attempt(name: str, seed: int, megabytes: int, connection: Connection) -> None:
    """The process of one network: sends its row."""
    resource.setrlimit(resource.RLIMIT_DATA, (megabytes << 20, megabytes << 20))
    row, steps = Row(name), Steps()
    try:
        examine(name, seed, row, steps)
    except Exception as error:  # all others are examined, also after one fails
        row.failed = f"{steps.now}: {type(error).__name__}: {first_line(error)}"
    row.seconds = steps.close()
    used = resource.getrusage(resource.RUSAGE_SELF)
    row.cpu_seconds = round(used.ru_utime + used.ru_stime, 1)
    row.peak_megabytes = used.ru_maxrss >> 10
    connection.send(asdict(row))


def limited(name: str, seed: int, seconds: int, megabytes: int) -> dict[str, Any]:
    """The row of one network, from a process of its own."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=attempt, args=(name, seed, megabytes, theirs))
    process.start()
    theirs.close()
    try:
        if ours.poll(seconds):
            answer: dict[str, Any] = ours.recv()
            return answer
        return asdict(Row(name, failed=f"takes more than {seconds} s"))
    except EOFError:
        process.join()
        return asdict(Row(name, failed=f"the process ended with {process.exitcode}"))
    finally:
        process.kill()
        process.join()


def run(arguments: argparse.Namespace) -> None:
    """Examine networks in a random order until the time is over; a row is written when it is done."""
    order = names()
    random.Random(arguments.seed).shuffle(order)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    done = {row["name"] for row in read(arguments.out)}
    end = time.monotonic() + 60 * arguments.minutes
    with arguments.out.open("a", encoding="utf-8") as stream:
        for name in order:
            if name in done or (arguments.only and arguments.only not in name):
                continue
            if time.monotonic() > end:
                break
            row = limited(name, arguments.seed, arguments.seconds, arguments.megabytes)
            stream.write(json.dumps(row) + "\n")
            stream.flush()
            print(name, row["batchnorms"], row["failed"] or row["certified"], row["cpu_seconds"], file=sys.stderr)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


PAGE = """# Networks of public zoos

`make zoo` draws names of the architectures in timm, torchvision and pytorchcv, and folds, proves and publishes each as
`bnfold fold` does. Weights are random. The statistics of BatchNorms come from a random batch and are then moved at
random, and γ and β are drawn; one γ in twenty is negative. The run goes on where it stopped (`MINUTES=60`, `--seed`).

{machine}

Of {names:,} names {drawn} were drawn (seed {seed}). {without} have no BatchNorm, and {large} with more than {most:,}
parameters were left out. Of the {tried} that remain {done} were published.

- **BatchNorms.** Of {total:,} in these {done} networks, closed activations leave {closed:,}, opened ones {opened:,}.
  {closed_clean} networks have none left with closed activations, {opened_clean} with opened ones.
- **Latency** of one row beside the unfolded graph, closed activations, in turns: {faster} faster and {slower} slower
  beyond noise, {same} within it.
- **Export.** {plain} of {done} programs were exported without tracing them again.

## What failed

{failed}

## Why BatchNorms stayed

With closed activations. The codes are those of [folding.md](folding.md#why-a-batchnorm-is-kept).

{reasons}

## Why programs were traced again

{retraced}

## Every network

Seconds are of one process with one thread, at low priority beside other work: only ratios mean something. *Speed* is
that of the published graph over the unfolded one, the median of {rounds} turns; it is bold if it is beyond noise.

{table}"""


def page(rows: Sequence[dict[str, Any]], seed: int, total: int) -> str:
    """docs/zoo.md."""
    relevant = [row for row in rows if row["batchnorms"] or row["failed"]]
    large = [row for row in relevant if (row["failed"] or "").startswith("left out")]
    tried = [row for row in relevant if row not in large]
    done = [row for row in tried if row["certified"] and not row["failed"]]
    failed = [
        [row["name"], _cell(row["failed"] or row["message"]), NOTES.get(row["name"], "")]
        for row in tried
        if row not in done
    ]
    slower, faster = ([row["name"] for row in done if _beyond(row) == sign] for sign in (-1, 1))
    retraced = Counter(row["retraced"] for row in done if row["retraced"])
    reasons = sum((Counter(row["reasons"]) for row in done), Counter[str]())
    return PAGE.format(
        machine=machine(("torch", "onnxruntime", *filter(importlib.util.find_spec, ZOOS))),
        names=total,
        drawn=len(rows),
        seed=seed,
        without=len(rows) - len(relevant),
        large=len(large),
        most=MOST_PARAMETERS,
        tried=len(tried),
        done=len(done),
        total=sum(row["batchnorms"] for row in done),
        closed=sum(row["kept_closed"] for row in done),
        opened=sum(row["kept_opened"] for row in done),
        closed_clean=sum(not row["kept_closed"] for row in done),
        opened_clean=sum(not row["kept_opened"] for row in done),
        faster=len(faster),
        slower=len(slower),
        same=len(done) - len(faster) - len(slower),
        plain=len(done) - sum(retraced.values()),
        failed=markdown(["network", "why", "reason"], failed) if failed else "Nothing.",
        reasons=markdown(["code", "BatchNorms"], [[f"`{code}`", str(n)] for code, n in reasons.most_common()]),
        retraced=markdown(["reason", "networks"], [[_cell(reason), str(n)] for reason, n in retraced.most_common()])
        if retraced
        else "None was.",
        rounds=ROUNDS,
        table=markdown(
            [
                "network",
                "input",
                "BatchNorms",
                "left",
                "left, opened",
                "traced again",
                "export",
                "fold",
                "proof",
                "speed",
            ],
            [_network(row) for row in sorted(done, key=lambda row: str(row["name"]))],
        ),
    )


def _beyond(row: dict[str, Any]) -> int:
    """1 if the published graph is faster beyond noise, -1 if it is slower."""
    return int(row["speed_low"] > row["noise"]) - int(row["speed_high"] < 1 / row["noise"])


def _network(row: dict[str, Any]) -> list[str]:
    seconds = row["seconds"]
    proof = sum(taken for step, taken in seconds.items() if step.startswith(("part", "running", "folding the graph")))
    export = seconds["tracing"] + seconds["exporting"]
    speed = f"**{row['speed']:.2f}**" if _beyond(row) else f"{row['speed']:.2f}"
    return [
        row["name"],
        "×".join(map(str, row["shape"])),
        *(str(row[key]) for key in ("batchnorms", "kept_closed", "kept_opened")),
        "yes" if row["retraced"] else "",
        *(f"{taken:.1f}" for taken in (export, seconds["folding"], proof)),
        speed,
    ]


def _cell(text: str) -> str:
    return text.replace("|", "\\|")[:300]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "page"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seconds", type=int, default=600, help="the most that one network may take")
    parser.add_argument("--megabytes", type=int, default=6000, help="the most memory of one network")
    parser.add_argument("--only", help="names that hold this text")
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.what == "run":
        run(arguments)
    else:
        print(page(read(arguments.out), arguments.seed, len(names())))


if __name__ == "__main__":
    main()
