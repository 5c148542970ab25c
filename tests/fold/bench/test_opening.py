"""`--open-activations auto` publishes the graph that is faster beyond noise. Times are given by the tests."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

from fold.bench import speed_ratio
from support.commands import bnfold, refused, run
from support.folding import architecture, randomise


def times(second: float, again: float = 1.0, spread: float = 0.01) -> dict[str, list[float]]:
    """Seconds of a first graph, that take 1 on average, and of others that take so many."""
    rng = np.random.default_rng(0)
    averages = {"first": 1.0, "again": again, "second": second}
    return {name: (average * rng.normal(1, spread, 31)).tolist() for name, average in averages.items()}


@pytest.mark.parametrize(
    ("second", "again", "spread", "found"),
    [
        (0.9, 1.0, 0.01, (True, False)),
        (1.1, 1.0, 0.01, (False, True)),
        (1.0, 1.0, 0.01, (False, False)),
        (0.9, 1.15, 0.01, (False, False)),  # two sessions of one graph differ by more
        (0.9, 0.85, 0.01, (False, False)),
        (0.97, 1.0, 0.2, (False, False)),  # the rounds differ by more
    ],
)
def test_a_graph_is_faster_only_beyond_noise(second: float, again: float, spread: float, found: tuple) -> None:
    ratio = speed_ratio(**times(second, again, spread))
    assert (ratio.faster, ratio.slower) == found
    assert ratio.low <= ratio.ratio <= ratio.high
    assert ratio.noise >= 1


def test_the_interval_holds_the_median_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    held = [
        ratio.low <= 1 <= ratio.high
        for ratio in (speed_ratio(first, first, np.ones(25)) for first in np.exp(rng.normal(0, 1, (2000, 25))))
    ]
    assert 0.985 < np.mean(held) <= 1


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`vgg`, some of whose BatchNorms only opened activations remove, and `cnn`, which has none to open for."""
    folder = tmp_path_factory.mktemp("opening")
    for name, network in (("vgg", "vgg_after"), ("cnn", "cnn")):
        torch.save(randomise(architecture(network), seed=1).state_dict(), folder / f"{name}.pt")
    return folder


def fold(folder: Path, name: str, *options: object) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the command printed as JSON, and `fold` of the manifest."""
    arch = {"vgg": "vgg_after", "cnn": "cnn"}[name]
    source = ("--arch", f"models.{arch}:{arch}", "--input", "1,8,8", "--out", folder / "repository")
    told, _ = run("fold", *options, folder / f"{name}.pt", *source)
    return told, json.loads((Path(told["model_dir"]) / "manifest.json").read_text())["fold"]


@pytest.mark.parametrize(("second", "opened"), [(0.8, True), (1.0, False)])
def test_auto_publishes_the_faster_graph(checkpoints: Path, second: float, opened: bool) -> None:
    def given(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
        (a,), (b,), (c,) = (calls[name]() for name in ("first", "again", "second"))
        np.testing.assert_array_equal(a, b)
        np.testing.assert_allclose(a, c, rtol=1e-3, atol=1e-3)
        return times(second)

    with mock.patch("fold.bench.opening.interleaved", given):
        told, written = fold(checkpoints, "vgg", "--open-activations", "auto")
    assert written["open_activations"] is told["opening"]["opened"] is opened
    assert (len(told["kept"]) == 0) is opened
    assert written["opening"] == told["opening"]
    assert [one["batch"] for one in told["opening"]["measurements"]] == [1, 8]
    assert told["opening"]["message"].startswith(
        f"activations are {'opened' if opened else 'closed'}, measured on cpu with 99% confidence: at batch 1 "
    )
    assert not opened or bnfold("verify", told["model_dir"], "--samples", 2).returncode == 0


def test_auto_measures_nothing_where_opening_changes_nothing(checkpoints: Path) -> None:
    with mock.patch("fold.bench.opening.interleaved", side_effect=AssertionError):
        told, written = fold(checkpoints, "cnn", "--open-activations=auto")
    assert told["opening"]["message"] == "activations are closed: opening them changes no operator"
    assert told["opening"]["measurements"] == []
    assert written["open_activations"] is False


def test_the_option_needs_no_value_and_takes_no_file_for_one(checkpoints: Path) -> None:
    told, written = fold(checkpoints, "vgg", "--open-activations")
    assert (told["opening"], told["kept"], written["open_activations"]) == (None, [], True)
    line = refused("fold", checkpoints / "cnn.pt", "--out", checkpoints / "r", "--open-activations=perhaps")
    assert "--open-activations" in line
    assert "auto" in line
