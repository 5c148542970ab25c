"""Right folds must be certified: folds random models and checks parts A to D of the certificate.

    python -m benchmarks.random_models [--models 1000] [--seed 0] [--only densenet dpn]
    python -m benchmarks.random_models --again densenet/pruned/opened/113

A model is an architecture of models/ (small, as in the tests), a seed for its weights and statistics, a kind of γ, and
whether activations may be opened. Statistics and weights are independent, so tensors are often much smaller than their
statistics say; float32 has more difficulty with this than with a trained network. The folds are assumed to be right, so
a refusal is an error of folding or of the certificate. It is named, and the command exits with 1.
"""

import argparse
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import onnx_ir as ir
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fold.arrays import Arrays
from fold.artifact import tensor_specs
from fold.engine import FoldReport, fold_graph
from fold.errors import first_line
from fold.evaluate import Evaluator
from fold.inputs import draw_inputs
from fold.proof import (
    FACTOR,
    Families,
    OutputVerdict,
    Truth,
    check_algebra,
    check_rounding,
    compare,
    find_answers,
    find_truth,
)
from fold.proof.reference import ModuleReference
from fold.runtime import open_graph, run
from models.frozen_resnet import FrozenBatchNorm2d
from tests.support.folding import ARCHITECTURES, architecture, randomise, unfolded_graph

SAMPLES = 16
GAMMAS = ("ordinary", "hostile", "scattered", "pruned")
"""Kinds of γ: positive; both signs, with 0 first and 1e-7 last; both signs, with these anywhere; down to 1e-4 anywhere,
as after training with weight decay."""
SHARE = 0.2
"""The share of channels with such a γ."""
QUANTILES = (0.01, 0.1, 0.5, 0.9, 0.99, 0.999, 1)


class Drawn(NamedTuple):
    """One random model, and how it is to be folded."""

    architecture: str
    gamma: str
    opened: bool
    seed: int

    @property
    def name(self) -> str:
        return "/".join([self.architecture, self.gamma, "opened" if self.opened else "closed", str(self.seed)])

    @classmethod
    def named(cls, name: str) -> "Drawn":
        """The model of a name. Raises `ValueError` for an invalid name."""
        found, gamma, opened, seed = name.split("/")
        if found not in ARCHITECTURES or gamma not in GAMMAS or opened not in ("opened", "closed"):
            raise ValueError(name)
        return cls(found, gamma, opened == "opened", int(seed))


@dataclass(frozen=True)
class Examined:
    """The result of each part of the certificate for one model, and the reason if it is refused.

    `algebra` and `bound` are relative to their limits; `run_time` is the error of the worst output over its limit,
    `factor` what C's factor of 4 would have had to be, `draws` the random roundings of B.
    """

    drawn: Drawn
    folded: int = 0
    batchnorms: int = 0
    algebra: float = 0.0
    bound: float = 0.0
    run_time: float = 0.0
    factor: float = 0.0
    draws: int = 0
    refused: str | None = None


def draw(models: int, seed: int, architectures: Sequence[str]) -> list[Drawn]:
    """Draw models. The same arguments give the same models."""
    chance = random.Random(seed)
    return [
        Drawn(chance.choice(architectures), chance.choice(GAMMAS), chance.random() < 1 / 2, chance.randrange(10**6))
        for _ in range(models)
    ]


def build(drawn: Drawn) -> nn.Module:
    torch.manual_seed(drawn.seed)
    module = randomise(architecture(drawn.architecture), drawn.seed, hostile=drawn.gamma == "hostile")
    generator = torch.Generator().manual_seed(drawn.seed)
    for layer in module.modules():
        if isinstance(layer, _BatchNorm | FrozenBatchNorm2d) and layer.weight is not None:
            with torch.no_grad():
                layer.weight.copy_(_gamma(drawn.gamma, layer.weight, generator))
    return module


def _gamma(kind: str, gamma: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    chosen, turned, size = torch.rand(3, *gamma.shape, generator=generator)
    if kind == "scattered":
        gamma = torch.where(turned < SHARE, -gamma, gamma)
        return torch.where(chosen < SHARE, torch.where(size < 1 / 2, 0.0, 1e-7), gamma)
    return torch.where(chosen < SHARE, gamma * 10 ** (-4 * size), gamma) if kind == "pruned" else gamma


@dataclass(frozen=True)
class Fold:
    """A random model, unfolded and folded, inputs, and what both graphs compute in float64 for part A."""

    module: nn.Module
    unfolded: ir.Model
    stored: ir.Model
    exact: ir.Model
    report: FoldReport
    inputs: Arrays
    truth: Truth
    answers: Families

    @property
    def reference(self) -> ModuleReference:
        graph = self.unfolded.graph
        names = [[value.name or "" for value in values] for values in (graph.inputs, graph.outputs)]
        return ModuleReference(self.module, *names)


def fold_drawn(drawn: Drawn) -> Fold:
    module = build(drawn)
    unfolded = unfolded_graph(drawn.architecture, module)
    specs = tensor_specs(unfolded.graph.inputs)
    folding = fold_graph(unfolded, open_activations=drawn.opened)
    exact = fold_graph(unfolded, open_activations=drawn.opened, exact=True).model
    truth = find_truth(unfolded, specs, drawn.seed)
    answers = find_answers(Evaluator(exact), truth.inputs)
    inputs = draw_inputs(specs, SAMPLES, drawn.seed)
    return Fold(module, unfolded, folding.model, exact, folding.report, inputs, truth, answers)


def examine(drawn: Drawn) -> Examined:
    """Fold a model and check every part of the certificate."""
    fold = fold_drawn(drawn)
    algebra = check_algebra(fold.truth, fold.answers, lambda: fold.unfolded)
    rounding = check_rounding(fold.exact, lambda: fold.stored, fold.answers)
    verdict = compare(fold.reference, partial(run, open_graph(fold.stored)), fold.inputs, seed=drawn.seed)
    refused = [
        *([] if algebra else [f"A: in float64 the graphs differ by {algebra.worst.difference:.3g}"]),
        *([] if rounding else [f"B: {rounding.faults[0].what if rounding.faults else rounding.failure}"]),
        *([] if verdict else [f"C, D: {verdict.message}"]),
    ]
    return Examined(
        drawn,
        len(fold.report.folded),
        fold.report.batchnorms,
        algebra.worst.share,
        max((output.ratio for output in rounding.outputs if output.ratio is not None), default=0.0),
        max(output.folded_error / output.limit for output in verdict.outputs if output.limit),
        max(factor(output) for output in verdict.outputs),
        rounding.draws,
        "; ".join(refused) or None,
    )


def factor(output: OutputVerdict) -> float:
    """The factor that part C would have needed: the error of the folded graph, less the floor of the limit, over that
    of the unfolded model."""
    floor = output.limit - FACTOR * output.unfolded_error
    return max(0.0, output.folded_error - floor) / output.unfolded_error if output.unfolded_error else 0.0


def attempt(drawn: Drawn) -> Examined:
    try:
        return examine(drawn)
    except Exception as error:  # all models of a run are computed, also after one is refused
        return Examined(drawn, refused=f"{type(error).__name__}: {first_line(error)}")


def table(found: Sequence[Examined]) -> Table:
    shown = Table("γ", "ReLUs", "certified", "folded", "A", "B", "C", "factor", "draws", title="Random models")
    for gamma in GAMMAS:
        for opened in (False, True):
            these = [one for one in found if (one.drawn.gamma, one.drawn.opened) == (gamma, opened)]
            if these:
                shown.add_row(gamma, "opened" if opened else "closed", *_cells(these))
    shown.add_section()
    shown.add_row("all", "", *_cells(found))
    shown.caption = (
        "folded: BatchNorms; A, B, C: the worst of each part over its limit; factor: the largest that C would have "
        "needed; draws: the most of B"
    )
    return shown


def _cells(found: Sequence[Examined]) -> Iterable[str]:
    yield f"{sum(one.refused is None for one in found)}/{len(found)}"
    yield f"{sum(one.folded for one in found)}/{sum(one.batchnorms for one in found)}"
    for part in ("algebra", "bound", "run_time", "factor", "draws"):
        yield f"{max(getattr(one, part) for one in found):.2g}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=ARCHITECTURES, default=list(ARCHITECTURES), metavar="NAME")
    parser.add_argument("--again", nargs="+", type=Drawn.named, metavar="ARCHITECTURE/GAMMA/OPENED/SEED")
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(asked.threads)
    drawn = asked.again or draw(asked.models, asked.seed, asked.only)
    found = [attempt(one) for one in track(drawn, "folding and proving", console=Console(stderr=True))]
    Console().print(table(found))
    for part in ("bound", "run_time", "factor"):
        shares = np.quantile([getattr(one, part) for one in found], QUANTILES)
        print(f"{part}: {', '.join(f'{share:.3g}' for share in shares)} (quantiles {QUANTILES})")
    refused = [one for one in found if one.refused is not None]
    for one in refused:
        print(f"{one.drawn.name}: {one.refused}")
    if refused:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
