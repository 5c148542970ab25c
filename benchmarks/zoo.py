"""Folds and proves the architectures of public zoos: timm, torchvision and pytorchcv, as far as they are installed.

    make zoo                                                  an environment with the zoos, and a run of an hour
    python -m benchmarks.zoo [--seed 0] [--minutes 60]        goes on where the last run with this seed stopped
    python -m benchmarks.zoo_page > docs/zoo.md               what was found so far

Names are taken in a random order. With `--parameters` larger networks are passed over; a later run with a higher limit
takes them up. Each network gets random weights; the statistics of its BatchNorms come from a random
batch and are then moved at random, and so are γ and β. It is exported, folded with closed and with opened activations,
proven and published as by `bnfold fold`, and timed beside its unfolded graph. Each runs in a process of its own, with
limits of time and memory, that is forked from one that has imported everything.
"""

import argparse
import contextlib
import importlib.util
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from unittest import mock

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from benchmarks.limited import limited
from benchmarks.rows import append, latest
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


@dataclass
class Row:
    """The result for one name. `failed` says at which step and why; `message` is the certificate's.

    A network of more than `limit` parameters is `left_out`.
    """

    name: str
    limit: int = MOST_PARAMETERS
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
    left_out: bool = False
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

    # These look for maxima after their last layer, which `torch.export` cannot trace.
    shown = {"return_heatmap": True} if model.startswith(("simplepose", "alphapose")) else {}
    return get_model(model, pretrained=False, **shown)


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
        row.left_out = row.parameters > row.limit
        if row.left_out:
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


def attempt(row: Row, seed: int) -> Row:
    """Fill the row of one network, in a process of its own."""
    steps = Steps()
    try:
        examine(row.name, seed, row, steps)
    except Exception as error:  # all others are examined, also after one fails
        row.failed = f"{steps.now}: {type(error).__name__}: {first_line(error)}"
    row.seconds = steps.close()
    used = resource.getrusage(resource.RUSAGE_SELF)
    row.cpu_seconds = round(used.ru_utime + used.ru_stime, 1)
    row.peak_megabytes = used.ru_maxrss >> 10
    return row


def run(arguments: argparse.Namespace) -> None:
    """Examine networks in a random order until the time is over; a row is written when it is done.

    With `--only`, also those that were examined before: the last row of a name counts.
    """
    order = names()
    random.Random(arguments.seed).shuffle(order)
    known = () if arguments.only else latest(arguments.out)
    done = {row["name"] for row in known if not row["left_out"] or row["parameters"] > arguments.parameters}
    end = time.monotonic() + 60 * arguments.minutes
    for name in order:
        if name in done or (arguments.only and arguments.only not in name):
            continue
        if time.monotonic() > end:
            break
        row = Row(name, arguments.parameters)
        try:
            row = limited(partial(attempt, row, arguments.seed), arguments.seconds, arguments.megabytes)
        except (TimeoutError, ChildProcessError) as error:
            row.failed = str(error)
        append(arguments.out, asdict(row))
        result = "left out" if row.left_out else row.failed or row.certified
        print(name, row.batchnorms, result, row.cpu_seconds, file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--parameters", type=int, default=MOST_PARAMETERS, help="the most of one network")
    parser.add_argument("--seconds", type=int, default=600, help="the most CPU-seconds of one network")
    parser.add_argument("--megabytes", type=int, default=6000, help="the most memory of one network")
    parser.add_argument("--only", help="names that hold this text")
    parser.add_argument("--out", type=Path, default=OUT)
    torch.set_num_threads(1)
    run(parser.parse_args())


if __name__ == "__main__":
    main()
