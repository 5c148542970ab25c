"""What the tests of a GPU share: where they run, and models that were folded, proven and published there.

BNFOLD_GPU_TEST_PROVIDER=cpu takes the same steps on the CPU, for a few architectures, to see that they work before a
GPU is at hand. BNFOLD_GPU_TEST_UNTIL, in seconds since 1970, is when no further test begins.
"""

import functools
import os
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
import torch

from fold.artifact.manifest import PrecisionName
from fold.convert import Conversion, Target, convert
from fold.sources.source import Source, Unfolded, read_source
from support.folding import ARCHITECTURES, architecture, randomise

PROVIDER = os.environ.get("BNFOLD_GPU_TEST_PROVIDER", "cuda")
ON_GPU = PROVIDER != "cpu"
UNTIL = float(os.environ.get("BNFOLD_GPU_TEST_UNTIL", "inf"))
PRECISIONS: tuple[PrecisionName, ...] = ("fp32", "tf32", "fp16") if ON_GPU else ("fp32", "fp16")
"""A CPU has no TF32."""
NAMES = tuple(ARCHITECTURES) if ON_GPU else ("cnn", "preact_resnet", "repvgg")
LIMITS = {"fp32": 1e-4, "tf32": 0.03, "fp16": 0.03}
"""How far an answer may be from float64, of the largest number; certificates hold tighter ones."""

needs_gpu = pytest.mark.skipif(not ON_GPU, reason="has no meaning on a CPU")


def every(*precisions: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A test of each architecture in these precisions. Those of one architecture share an export, so they run in one
    process."""
    return pytest.mark.parametrize(
        ("name", "precision"),
        [
            pytest.param(name, precision, id=f"{name}-{precision}", marks=pytest.mark.xdist_group(name))
            for name in NAMES
            for precision in precisions
        ],
    )


@functools.cache
def published(name: str, precision: PrecisionName, *, shape: tuple[int, ...] = ()) -> Conversion:
    """An architecture with random statistics, folded, and certified on the device; `shape` is another row's than the
    tests of folding take."""
    source, unfolded = _exported(name, shape or ARCHITECTURES[name])
    target = Target(_folder() / f"{name}-{precision}-{len(shape)}", name)
    # Exporting is what takes the time, and is the same for every precision.
    with mock.patch("fold.convert.read_source", return_value=replace(unfolded, model=unfolded.model.clone())):
        return convert(source, target, precision=precision, provider=PROVIDER)


@functools.cache
def _exported(name: str, shape: tuple[int, ...]) -> tuple[Source, Unfolded]:
    torch.manual_seed(0)
    checkpoint = _folder() / f"{name}-{len(shape)}.pt"
    torch.save(randomise(architecture(name), seed=1, hostile=False).state_dict(), checkpoint)
    source = Source(checkpoint, f"models.{name}:{name}", (), [",".join(map(str, shape))])
    return source, read_source(source)


@functools.cache
def _folder() -> Path:
    folder = tempfile.TemporaryDirectory(prefix="bnfold-gpu-")
    _KEPT.append(folder)
    return Path(folder.name)


_KEPT: list[tempfile.TemporaryDirectory[str]] = []
"""Removed when the process ends."""
