"""Random networks through the whole certificate, and the folds that once were right and refused all the same."""

import pytest

from benchmarks.random_models import GAMMAS, Drawn, build, draw, examine, main
from fold.engine import affine
from fold.engine.fold import fold_graph
from support.folding import ARCHITECTURES, unfolded_graph

SAMPLE = [
    "repvgg/ordinary/closed/1",
    "shufflenet/ordinary/opened/2",
    "mixnet/hostile/closed/3",
    "resnetv2/hostile/opened/4",
    "unet/scattered/closed/5",
    "conv1d_tcn/scattered/opened/6",
    "dcgan/pruned/closed/7",
    "vgg_after/pruned/opened/8",
]
"""Each kind of γ, closed and opened; the benchmark tries a thousand."""
ONCE_REFUSED = [
    "densenet/ordinary/opened/113",  # a shift 12 times what a tensor really held was left on it, for all to read
    "densenet/ordinary/opened/71",
    "densenet/pruned/closed/9",  # a shift of less than 2^10 times the signal was thought to be harmless
    "preact_resnet/pruned/closed/3",
]


@pytest.mark.parametrize("name", [*SAMPLE, *ONCE_REFUSED])
def test_a_right_fold_is_certified(name) -> None:
    drawn = Drawn.named(name)
    assert drawn.name == name
    found = examine(drawn)
    assert found.refused is None
    assert 0 < found.algebra <= 1
    assert 0 < found.run_time <= 1
    assert found.bound <= 1
    assert found.batchnorms
    assert not drawn.opened or found.folded == found.batchnorms


def test_what_is_drawn_is_of_every_kind_and_the_same_for_the_same_seed() -> None:
    drawn = draw(1000, 3, list(ARCHITECTURES))
    assert drawn == draw(1000, 3, list(ARCHITECTURES))
    assert drawn != draw(1000, 4, list(ARCHITECTURES))
    assert {one.architecture for one in drawn} == set(ARCHITECTURES)
    assert {(one.gamma, one.opened) for one in drawn} == {(gamma, opened) for gamma in GAMMAS for opened in (0, 1)}
    assert len(set(drawn)) > 990


@pytest.mark.parametrize(
    ("gamma", "has"),
    [
        ("ordinary", {"tiny": False, "zero": False, "negative": False}),
        ("hostile", {"tiny": True, "zero": True, "negative": True}),
        ("scattered", {"tiny": True, "zero": True, "negative": True}),
        ("pruned", {"tiny": False, "zero": False, "negative": False}),
    ],
)
def test_gamma_is_of_the_kind_that_it_is_called(gamma, has) -> None:
    values = [value for layer in build(Drawn("resnet", gamma, False, 1)).modules() for value in _gamma(layer)]
    assert any(0 < abs(value) < 1e-6 for value in values) == has["tiny"]
    assert any(value == 0 for value in values) == has["zero"]
    assert any(value < 0 for value in values) == has["negative"]
    assert any(1e-5 < value < 0.02 for value in values) == (gamma == "pruned")


def _gamma(layer) -> list[float]:
    return layer.weight.tolist() if hasattr(layer, "running_var") else []


def test_where_activations_are_opened_no_shared_tensor_carries_a_loud_shift() -> None:
    """In a dense block every tensor is read by many; closed, the first BatchNorm that folds leaves its shift there."""
    drawn = Drawn.named("densenet/ordinary/opened/113")
    model = unfolded_graph(drawn.architecture, build(drawn))
    closed, opened = (fold_graph(model, open_activations=each).carried["cat_3"] for each in (False, True))
    assert abs(closed.q / closed.p).max() > 10
    assert abs(opened.q / opened.p).max() < 5


def test_a_refused_fold_is_named_and_the_exit_is_1(monkeypatch, capsys) -> None:
    right = affine.conv
    monkeypatch.setattr(affine, "conv", lambda W, B, *rest: (right(W, B, *rest)[0], right(W, B, *rest)[1] * 0))
    with pytest.raises(SystemExit) as ended:
        main(["--again", "cnn/ordinary/closed/1", "mlp/ordinary/closed/1"])
    assert ended.value.code == 1
    said = capsys.readouterr().out
    assert "cnn/ordinary/closed/1: A: in float64 the graphs differ by" in said
    assert "mlp/ordinary/closed/1:" not in said


def test_a_model_of_no_such_name_is_refused_in_one_line(capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--again", "densenet/tiny/opened/1"])
    assert ended.value.code == 2
    assert "invalid" in capsys.readouterr().err.splitlines()[-1]
