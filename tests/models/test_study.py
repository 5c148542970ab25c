"""What the studies find, with settings small enough for a test, and the page that the command writes of it."""

import json
import math
import re
import subprocess
import sys
from dataclasses import asdict
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from fold.errors import BnfoldError
from models import digits
from models.study import batch_statistics, cost_surface, depth, formulas, moving_average, page, saturation, training
from models.study.__main__ import STUDIES, app
from models.study.normalisation import batch_norm
from models.study.section import untracked

CHEAP = ("cost_surface", "saturation")


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """As the command does: the suite runs two processes on two cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def trained() -> training.Training:
    return training.compute(0, rates=(0.1,), steps=600, seeds=1)


@pytest.fixture(scope="module")
def compared() -> formulas.Formulas:
    return formulas.compute(1)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_valley_takes_hundreds_of_times_the_steps_of_the_bowl(seed) -> None:
    found = cost_surface.compute(seed)
    assert found.raw.condition > 500
    assert found.standardised.condition < 1.3
    assert found.standardised.steps < 10
    assert found.raw.steps > 100 * found.standardised.steps
    assert found.raw.minimum == pytest.approx((2, 3), abs=1e-12)
    for descent in (found.raw, found.standardised):
        assert [visit.step for visit in descent.visits][:2] == [0, 1]
        first, *_, before, last = descent.visits
        assert last.step == descent.steps
        assert last.loss <= 1e-6 * first.loss < before.loss
    assert abs(found.raw_after_bowl.weights[0] - 2) > 1


def test_a_rate_of_the_largest_curvature_is_stable_and_the_loss_only_falls() -> None:
    found = cost_surface.compute(3)
    for descent in (found.raw, found.standardised):
        assert descent.rate * descent.eigenvalues[1] == pytest.approx(1)
        assert all(a.loss >= b.loss for a, b in pairwise(descent.visits))


def test_saturation_falls_with_normalisation() -> None:
    found = saturation.compute(0)
    assert found.spread_without == pytest.approx(math.sqrt(500), rel=0.03)
    assert found.spread_normalised == pytest.approx(1, abs=1e-3)
    for one in found.functions.values():
        assert one.without.dead > 0.75
        assert one.normalised.dead < 0.01
        assert sum(one.without.values) == pytest.approx(1)
        assert list(one.without.dead_by_spread) == sorted(one.without.dead_by_spread)
        assert max(one.normalised.dead_by_spread) < 0.01


def test_a_dead_gradient_is_one_below_a_hundredth_of_the_largest() -> None:
    tanh, sigmoid = saturation.FUNCTIONS
    # 1 − tanh² = 0.01 at atanh(√0.99); σ(1 − σ) = 0.0025 at the logit of (1 + √0.99) / 2.
    edges = {tanh: math.atanh(math.sqrt(0.99)), sigmoid: 2 * math.atanh(math.sqrt(0.99))}
    for function, edge in edges.items():
        z = np.array([-edge - 1e-6, -edge + 1e-6, 0, edge - 1e-6, edge + 1e-6])
        assert function.dead(z) == pytest.approx(2 / 5)


def test_activations_drift_with_depth_but_not_behind_batchnorm() -> None:
    found = depth.compute(0, width=64, batch=64, layers=20)
    last = {(chain.weights, chain.batchnorm): chain.spread[-1] for chain in found.chains}
    assert last["1", False] > 1e10
    assert last["0.01", False] < 1e-10
    assert 0.05 < last["√(2/n)", False] < 5
    assert all(0.5 < spread < 0.7 for chain in found.chains if chain.batchnorm for spread in chain.spread)


def test_x_at_w_multiplies_the_spread_by_the_root_of_its_terms() -> None:
    found = depth.compute(0, width=8, batch=8, layers=1)
    for one in found.products:
        assert one.spread == pytest.approx(math.sqrt(one.n * (1 + one.x_mean**2)), rel=0.15)
        if one.x_mean == 0:
            assert one.mean_spread < 0.05 * one.spread
        else:
            assert one.mean_spread == pytest.approx(math.sqrt(one.n), rel=0.3)


def test_noise_and_bias_of_batches_are_as_the_formulas_say() -> None:
    found = batch_statistics.compute(0, batches=20_000)
    for one in found.sizes:
        n = one.size
        assert one.mean_noise == pytest.approx(1 / math.sqrt(n), rel=0.02)
        assert one.variance_noise == pytest.approx(math.sqrt(2 / (n - 1)), rel=0.05)
        assert one.biased_variance == pytest.approx((n - 1) / n, abs=0.02)
        assert one.running_variance == pytest.approx(1, abs=0.02)
        assert one.running_variance == pytest.approx(one.unbiased_variance, abs=1e-12)
        assert one.output_training == pytest.approx(1, abs=0.01)
        assert one.output_unbiased == pytest.approx(1, abs=0.02)
        assert one.output_biased == pytest.approx(math.sqrt(n / (n - 1)), rel=0.02)
    assert found.sizes[1].gain == pytest.approx(math.sqrt(8 / math.pi), rel=0.02)  # E[1/χ] of 3 degrees of freedom
    assert all(a.gain > b.gain for a, b in pairwise(found.sizes))


def test_a_small_momentum_lags_and_a_large_one_is_noisy() -> None:
    slow, middle, fast = moving_average.compute(0, trained=()).following
    assert (slow.momentum, middle.momentum, fast.momentum) == (0.01, 0.1, 0.5)
    assert slow.off_moving > fast.off_moving > middle.off_moving
    assert slow.off_settled < middle.off_settled < fast.off_settled


def test_recalibration_repairs_statistics_that_lag() -> None:
    lagging, followed = moving_average.compute(0, trained=[(64, 0.01), (64, 0.1)]).recalibrated
    assert lagging.moving < 0.85
    assert lagging.population > 0.95
    assert lagging.population == followed.population  # the weights are the same, whatever followed them
    assert abs(followed.population - followed.moving) < 0.02


def test_statistics_taken_anew_are_those_of_what_goes_into_each_batchnorm() -> None:
    module = training.network("before", 0)
    images = torch.from_numpy(digits.load().train_images).flatten(1)
    moving_average.take_anew(module, images)
    seen = images
    for layer in module:
        if isinstance(layer, nn.BatchNorm1d):
            normalised = layer(seen).detach().double()
            assert normalised.mean(0).abs().max() < 1e-5
            expected = layer.running_var / (layer.running_var + layer.eps)
            assert torch.allclose(normalised.var(0, unbiased=False), expected.double(), atol=1e-5)
        seen = layer(seen)


def test_training_with_batchnorm_reaches_95_percent_sooner(trained) -> None:
    without, before, after = (trained.median_reached(place, 0.1) for place in training.PLACEMENTS)
    assert without > 4 * before
    assert without > 4 * after
    assert max(before, after) < 100
    assert all(len(run.losses) == 600 for run in trained.runs)
    assert all(run.accuracy > 0.95 for run in trained.runs if run.placement != "none")


def test_the_networks_differ_in_nothing_but_batchnorm(trained) -> None:
    def drawn(placement: str) -> list[torch.Tensor]:
        return [layer.weight for layer in training.network(placement, 5) if isinstance(layer, nn.Linear)]

    for placement in ("before", "after"):
        pairs = zip(drawn("none"), drawn(placement), strict=True)
        assert all(torch.equal(ours, others) for ours, others in pairs)
    kinds = [type(layer).__name__ for layer in training.network("after", 0)][:3]
    assert kinds == ["Linear", "ReLU", "BatchNorm1d"]


def test_what_was_never_reached_or_is_no_number_is_null_in_json() -> None:
    run = training.Run("none", 1.0, 0, (2.3, None), None, 0.1)
    found = training.Training(2, (run,))
    assert found.median_reached("none", 1.0) == math.inf
    numbers = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert numbers["runs"][0]["losses"] == [2.3, None]
    assert numbers["runs"][0]["reached"] is None


def test_the_formulas_are_pytorchs(compared) -> None:
    assert [one.layout for one in compared.agreements] == list(formulas.LAYOUTS)
    for one in compared.agreements:
        assert max(one.training, one.running_mean, one.running_var, one.evaluation) <= 1e-12
        assert one.shapes["x"] == one.shapes["y"] == formulas.LAYOUTS[one.layout]
        assert {one.shapes[name] for name in ("μ, batch mean", "γ, weight", "running_var")} == {(5,)}
    assert set(compared.beside) == {"BatchNorm", "InstanceNorm, running statistics", "LayerNorm", "InstanceNorm"}
    assert max(compared.beside.values()) <= 1e-12


def test_only_what_has_running_statistics_is_an_affine_map(compared) -> None:
    fits = {fit.name: fit for fit in compared.fits}
    for name in ("BatchNorm", "InstanceNorm, running statistics"):
        assert fits[name].second_error <= 1e-12
    for name in ("LayerNorm", "InstanceNorm"):
        assert fits[name].second_error > 0.5


def test_running_statistics_take_the_unbiased_variance_and_the_output_the_biased_one() -> None:
    x = np.array([[1.0, -2.0], [3.0, 0.5]])  # two values each: unbiased is twice biased
    forward = batch_norm(x, np.ones(2), np.zeros(2), np.zeros(2), np.zeros(2), momentum=1.0, eps=0.0)
    assert forward.y == pytest.approx(np.array([[-1.0, -1.0], [1.0, 1.0]]), abs=1e-12)
    assert forward.running_var == pytest.approx(2 * forward.variance, abs=1e-12)


def test_equal_seeds_give_equal_numbers_and_pictures() -> None:
    found, again, other = (saturation.compute(seed, features=30, batch=8) for seed in (4, 4, 5))
    assert asdict(found) == asdict(again) != asdict(other)
    assert page.entry(saturation.STUDY, found) == page.entry(saturation.STUDY, again)


def test_every_study_is_drawn_with_its_own_numbers(trained, compared) -> None:
    small = {
        "formulas": compared,
        "training": trained,
        "depth": depth.compute(0, width=16, batch=8, layers=20),
        "batch_statistics": batch_statistics.compute(0, batches=50),
        "moving_average": moving_average.compute(0, trained=[(16, 0.5)]),
    }
    for study in STUDIES:
        entry = page.entry(study, small.get(study.name) or study.compute(0, untracked))
        ElementTree.fromstring(entry.svg)
        json.dumps(entry.numbers, allow_nan=False)
        assert entry.seen in entry.svg.replace("&lt;", "<")  # said to those who do not see the picture
        assert all(len(row) == len(table.header) for table in entry.tables for row in table.rows)
        if study.name == "training":
            reached = [trained.median_reached(place, 0.1) for place in training.PLACEMENTS]
            assert all(f"{steps:g} " in entry.seen for steps in reached)


class Outside(HTMLParser):
    """Collects what a page would load or run, and links that do not lead into the page or to a file beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "iframe", "object", "img"):
            self.found.append(tag)
        links = [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]
        self.found += [link for link in links if not re.fullmatch(r"#.*|data:,|[a-z_]+\.(json|svg)", link)]


def test_the_command_writes_the_page_the_pictures_and_their_numbers(tmp_path) -> None:
    out = tmp_path / "new" / "study"
    only = [f"--only={name}" for name in CHEAP]
    line = [sys.executable, "-m", "models.study", "--out", str(out), "--seed", "7", *only]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"written to {out / 'index.html'}\n")
    assert all(f"{name}: " in done.stderr for name in CHEAP)  # progress
    expected = {"index.html", *(f"{name}.{kind}" for name in CHEAP for kind in ("svg", "json"))}
    assert {path.name for path in out.iterdir()} == expected
    document = (out / "index.html").read_text()
    outside = Outside()
    outside.feed(document)
    assert outside.found == []
    assert document.count("<figure>") == document.count("<figcaption>") == len(CHEAP)
    for name in CHEAP:
        numbers = json.loads((out / f"{name}.json").read_text())
        assert (numbers["study"], numbers["seed"]) == (name, 7)
        assert f"<figcaption>{numbers['seen']}</figcaption>" in document
        assert ElementTree.parse(out / f"{name}.svg").getroot().tag == "{http://www.w3.org/2000/svg}svg"
    surface = json.loads((out / "cost_surface.json").read_text())["numbers"]
    assert surface["raw"]["steps"] == cost_surface.compute(7).raw.steps
    assert f"takes {surface['raw']['steps']:,} steps" in document


@pytest.mark.parametrize(
    ("place", "extra", "says"),
    [("file/study", [], "cannot be written"), ("study", ["--only", "everything"], "expected one of cost_surface")],
)
def test_bad_input_is_one_line_and_exit_2(tmp_path, place, extra, says) -> None:
    (tmp_path / "file").touch()
    done = CliRunner().invoke(app, ["--out", str(tmp_path / place), *extra])
    assert (done.exit_code, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert says in done.stderr
    assert not (tmp_path / "study").exists()


def test_a_disk_that_is_full_leaves_what_was_there(tmp_path, monkeypatch) -> None:
    found = cost_surface.compute(0, samples=20)
    entries = [page.entry(cost_surface.STUDY, found)]
    page.write(tmp_path, entries, seed=0)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(self: Path, *_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(BnfoldError, match="No space left on device"):
        page.write(tmp_path, entries, seed=1)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
