"""The verdict: true for a right fold, false for every planted fault, and it says how far."""

import json

import numpy as np
import onnx_ir as ir
import pytest
import torch
from PIL import Image

import fold
from fold.artifact.manifest import Manifest, Preprocessing, TensorSpec
from fold.errors import BnfoldError
from fold.evaluate import AMPLITUDE
from fold.evaluate.random_rounding import RISK
from fold.inputs.drawn import FREE_SIZES, draw_inputs
from fold.inputs.given import check_inputs, read_inputs
from fold.proof.decisions import FLOORS
from fold.proof.reference import ProgramReference
from fold.proof.verify import compare
from support.folding import architecture, randomise


@pytest.fixture(scope="module")
def module() -> torch.nn.Module:
    """With weights as large as trained ones: fresh ones hardly let the input through to the output."""
    torch.manual_seed(2)
    module = randomise(architecture("cnn"), seed=1, hostile=False)
    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear):
                layer.weight.mul_(4)
    return module


@pytest.fixture(scope="module")
def folded(module) -> ir.Model:
    return fold.fold_model(fold.export_module(module, torch.randn(2, 1, 8, 8)))[0]


def plant(model: ir.Model, change) -> ir.Model:
    """A copy whose first convolution has changed weights and bias."""
    model = ir.from_proto(ir.to_proto(model))
    node = next(node for node in model.graph if node.op_type == "Conv")
    arrays = [value.const_value.numpy().copy() for value in node.inputs[1:]]
    for value, array in zip(node.inputs[1:], change(*arrays), strict=True):
        value.const_value = ir.tensor(array, name=value.name)
    return model


def test_a_right_fold_is_equivalent_and_its_numbers_are_those_of_rounding(module, folded) -> None:
    verdict = fold.verify_model(module, folded, samples=32)
    (output,) = verdict.outputs
    assert verdict
    assert 0 < output.folded_error <= output.limit
    assert output.relative_error < 1e-5
    assert output.cosine > 1 - 1e-9
    assert 0 <= output.worst_sample < 32
    assert json.loads(json.dumps(verdict.to_dict()))["equivalent"] is True


@pytest.mark.parametrize(
    "change",
    [
        lambda W, b: (W * np.float32(1 + 1e-4), b),
        lambda W, b: (W[::-1].copy(), b),
        lambda W, b: (W, np.zeros_like(b)),
        lambda W, b: (W, b + np.float32(1e-3)),
        lambda W, b: (W, b * np.float32(np.nan)),
    ],
    ids=["weights off by 1e-4", "channels swapped", "bias lost", "bias off", "not a number"],
)
def test_a_planted_fault_is_caught(module, folded, change) -> None:
    verdict = fold.verify_model(module, plant(folded, change))
    assert not verdict
    assert "NOT equivalent" in verdict.message


def test_inputs_of_the_callers_own(module, folded) -> None:
    x = np.random.default_rng(3).random((5, 1, 8, 8), np.float32)
    verdicts = [fold.verify_model(module, folded, given) for given in ({"x": x}, [x], x, torch.from_numpy(x))]
    assert [(bool(verdict), verdict.samples, verdict.seed) for verdict in verdicts] == [(True, 5, None)] * 4
    assert len({verdict.outputs for verdict in verdicts}) == 1
    with pytest.raises(BnfoldError, match="2 inputs were given"):
        fold.verify_model(module, folded, [x, x])


def test_neither_argument_is_touched(module, folded) -> None:
    state = {key: value.clone() for key, value in module.state_dict().items()}
    module.train()
    fold.verify_model(module, folded, samples=2)
    assert module.training
    module.eval()
    assert all(torch.equal(value, state[key]) for key, value in module.state_dict().items())


class Given:
    """A reference whose answers are given; `noise` is how far one rounding of each tensor moves its exact one: always
    as far, or with `chance` as its standard deviation."""

    mixed = False

    def __init__(
        self,
        exact: np.ndarray,
        unfolded: np.ndarray,
        noise: float = 0.0,
        chance: np.random.Generator | None = None,
    ) -> None:
        self._exact, self._unfolded, self._noise, self._chance = exact, unfolded, noise, chance

    def exact(self, inputs):
        return {"y": self._exact}

    def unfolded(self, inputs):
        return {"y": self._unfolded}

    def noisy(self, inputs, seed, roundings):
        times = AMPLITUDE if roundings is None else roundings
        drawn = 1 if self._chance is None else self._chance.standard_normal(self._exact.shape)
        return {"y": self._exact + times * self._noise * drawn}


@pytest.mark.parametrize(("times", "equivalent"), [(1.0, True), (3.9, True), (4.5, False)])
def test_the_limit_is_four_times_the_rounding_of_the_unfolded_model(times, equivalent) -> None:
    R = np.array([[1.0, -2.0], [3.0, 0.5]])
    U = R + np.array([[0, 1e-3], [0, 0]])
    F = R + np.array([[0, 0], [times * 1e-3, 0]])
    verdict = compare(Given(R, U, noise=1e-5), lambda inputs: {"y": F}, {"x": np.zeros((2, 1))})
    assert bool(verdict) is equivalent
    (output,) = verdict.outputs
    assert output.limit == pytest.approx(4e-3 + FLOORS["fp32"] * 3)
    assert output.worst_sample == 1


@pytest.mark.parametrize(("times", "equivalent"), [(0.99, True), (1.01, False)])
def test_an_unfolded_model_that_is_right_by_chance_does_not_refuse_a_fold(times, equivalent) -> None:
    """One number, which U has exactly: the limit is four times what one rounding of each tensor may do to R."""
    R = np.array([[1.0]])
    one = 1e-3
    limit = 4 * one * np.sqrt(2 * np.log(2 / RISK))
    verdict = compare(Given(R, R, one), lambda inputs: {"y": R + times * limit}, {"x": np.zeros((1, 1))}, rows=1)
    assert bool(verdict) is equivalent
    assert verdict.outputs[0].limit == pytest.approx(limit + FLOORS["fp32"])


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (2, 2)], ids=str)
def test_no_output_of_a_few_numbers_is_refused_by_chance(shape) -> None:
    """A model that amplifies rounding. Sums within an operator round at each step, so U and F are three times as far
    from R as one rounding of each tensor. What is twenty times further is refused."""
    chance, x, one = np.random.default_rng(0), {"x": np.zeros((shape[0], 1))}, 1e-4
    R = np.linspace(1.0, 2.0, np.prod(shape)).reshape(shape)
    for _ in range(300):
        U, F = R + 3 * one * chance.standard_normal((2, *shape))
        reference = Given(R, U, one, chance)
        assert compare(reference, {"y": F}, x)
        assert not compare(reference, {"y": F + 60 * 3 * one}, x)


def test_a_flip_in_a_small_row_is_explained_where_the_unfolded_model_is_right_by_chance() -> None:
    """The row is far below C's floor, which is relative to the largest output."""
    R = np.array([[1000.0, 0.0], [2e-5, 2e-5 + 1e-9]])
    F = R + np.array([[0.0, 0.0], [2e-9, 0.0]])
    x = {"x": np.zeros((2, 1))}
    assert compare(Given(R, R, noise=1e-9), {"y": F}, x).decisions[0].excused == 1
    assert not compare(Given(R, R, noise=1e-12), {"y": F}, x).decisions[0]


@pytest.mark.parametrize(("first", "doubted"), [(2, False), (8, True)])
def test_a_reference_is_not_in_doubt_because_the_first_noise_was_small(first, doubted) -> None:
    """One number, which the `first` draws of noise do not move."""
    R = np.array([[1.0]])

    class Small(Given):
        def noisy(self, inputs, seed, roundings):
            return {"y": self._exact + (1e-2 if seed >= first else 1e-9)}

    verdict = compare(Small(R, R + 1e-3), {"y": R}, {"x": np.zeros((1, 1))})
    assert (verdict.doubt is not None) is doubted


class Labels:
    """A reference of labels, a row for each row of `x`, which holds its number. Where it `hangs`, rounding changes
    every second answer."""

    mixed = False

    def __init__(self, labels: np.ndarray, hangs: np.ndarray) -> None:
        self._labels, self._hangs, self._chance = labels, hangs, np.random.default_rng(0)

    def exact(self, inputs):
        return {"y": self._labels[inputs["x"][:, 0]]}

    unfolded = exact

    def noisy(self, inputs, seed, roundings):
        rows = inputs["x"][:, 0]
        changed = self._hangs[rows] & (self._chance.random(self._hangs[rows].shape) < 1 / 2)
        return {"y": np.where(changed, self._labels[::-1][rows], self._labels[rows])}


@pytest.mark.parametrize("labels", [np.array([[1, 2], [3, 4]]), np.array([["a", "b"], ["c", "d"]], object)], ids=str)
@pytest.mark.parametrize("rows", [0, 1])
def test_a_label_may_differ_only_where_it_hangs_on_rounding(labels, rows) -> None:
    x, places = {"x": np.array([[0], [1]])}, np.array([[False, False], [True, False]])
    folded = np.where(places, labels[0, 0], labels)
    for hangs, equivalent in ((places, True), (~places, False)):
        verdict = compare(Labels(labels, hangs), {"y": folded}, x, rows=rows)
        assert bool(verdict) is equivalent
        (decision,) = verdict.decisions
        assert (decision.flips, decision.excused) == (1, int(equivalent))
        assert verdict.evidence.exact["y"][1, 0] == labels[0, 0], "a session that answers as this one is a right one"


def test_where_the_unfolded_model_overflows_only_the_same_infinity_is_right() -> None:
    R, U = np.array([[1e60, 1.0]]), np.array([[np.inf, 1.0]])
    same = compare(Given(R, U), lambda inputs: {"y": np.array([[np.inf, 1.0]])}, {"x": np.zeros((1, 1))})
    other = compare(Given(R, U), lambda inputs: {"y": np.array([[-np.inf, 1.0]])}, {"x": np.zeros((1, 1))})
    assert same
    assert not other


def test_drawn_inputs_depend_on_the_seed_alone() -> None:
    specs = (
        TensorSpec(name="a", datatype="FP32", shape=(-1, 3, -1)),
        TensorSpec(name="b", datatype="INT64", shape=(-1,)),
    )
    first, again, other = draw_inputs(specs, 5, 1), draw_inputs(specs, 5, 1), draw_inputs(specs, 5, 2)
    np.testing.assert_array_equal(first["a"], again["a"])
    assert not np.array_equal(first["a"], other["a"])
    assert first["a"].shape == (5, 3, *FREE_SIZES)
    assert first["b"].dtype == np.int64


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "missing"),
        ({"x": np.zeros((2, 3), np.float32), "z": np.zeros(1)}, "no such input"),
        ({"x": np.zeros((2, 4), np.float32)}, "does not fit"),
        ({"x": np.zeros((2, 3))}, "float64, expected FP32"),
    ],
)
def test_inputs_that_do_not_fit_are_named(inputs, message) -> None:
    with pytest.raises(BnfoldError, match=message):
        check_inputs((TensorSpec(name="x", datatype="FP32", shape=(-1, 3)),), inputs)


SPEC = TensorSpec(name="x", datatype="FP32", shape=(-1, 1, 4, 4))
MANIFEST = Manifest(
    name="m",
    version="1",
    created="2026-11-21T00:00:00+00:00",
    source={},
    reference="reference.pt2",
    inputs=(SPEC,),
    outputs=(),
    preprocessing=Preprocessing(input="x", mode="L", height=4, width=4, mean=(0.5,), std=(0.25,)),
    fold={},
    verdict={},
    versions={},
)


def test_a_pickled_npz_is_refused(tmp_path) -> None:
    np.savez(tmp_path / "a.npz", x=np.array([{"a": 1}], dtype=object))
    (tmp_path / "b.npz").write_bytes(b"no zip")
    for name in ("a.npz", "b.npz", "c.npz"):
        with pytest.raises(BnfoldError, match=name):
            read_inputs(tmp_path / name, MANIFEST)


def test_a_folder_of_arrays_and_images_is_all_their_rows(tmp_path) -> None:
    rows = np.arange(32, dtype=np.float32).reshape(2, 1, 4, 4)
    np.savez(tmp_path / "a.npz", x=rows)
    pixels = np.arange(16, dtype=np.uint8).reshape(4, 4) * 10
    Image.fromarray(pixels).save(tmp_path / "b.png")
    (tmp_path / "notes.txt").write_text("not an input")
    read = read_inputs(tmp_path, MANIFEST)["x"]
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read[:2], rows)
    np.testing.assert_allclose(read[2, 0], (pixels / 255 - 0.5) / 0.25, rtol=1e-6)


def test_a_folder_that_holds_no_inputs_or_wrong_ones_is_named(tmp_path) -> None:
    with pytest.raises(BnfoldError, match="holds no inputs"):
        read_inputs(tmp_path, MANIFEST)
    (tmp_path / "c.png").write_bytes(b"no image")
    with pytest.raises(BnfoldError, match=r"c\.png: cannot be read as an image"):
        read_inputs(tmp_path, MANIFEST)
    with pytest.raises(BnfoldError, match="declares no preprocessing"):
        read_inputs(tmp_path, MANIFEST.model_copy(update={"preprocessing": None}))
    (tmp_path / "c.png").unlink()
    np.savez(tmp_path / "a.npz", x=np.zeros((1, 1, 4, 4), np.float32))
    np.savez(tmp_path / "b.npz", x=np.zeros((1, 1, 5, 4), np.float32))
    with pytest.raises(BnfoldError, match="cannot be joined"):
        read_inputs(tmp_path, MANIFEST)


class AsksForFloat32(torch.nn.Module):
    """Casts its input, as training code does that was written for mixed precision."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(3, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x.to(torch.float32)).float().exp()


def test_a_program_is_computed_in_float64_even_where_it_asks_for_float32() -> None:
    module = AsksForFloat32().eval()
    x = torch.randn(7, 3)
    program = torch.export.export(module, (x,), dynamic_shapes=({0: torch.export.Dim("n")},))
    reference = ProgramReference(program, ["x"], ["y"])
    W, b = (parameter.detach().double().numpy() for parameter in module.linear.parameters())
    wide = x.double().numpy()
    np.testing.assert_allclose(reference.exact({"x": x.numpy()})["y"], np.exp(wide @ W.T + b), rtol=1e-13)
    single = reference.unfolded({"x": x.numpy()})["y"]
    assert single.dtype == np.float32
    np.testing.assert_array_equal(single, module(x).detach().numpy())
