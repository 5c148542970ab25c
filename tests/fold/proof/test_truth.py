"""No certificate on a false or an empty truth: a wrong reference is doubted, a part that compared nothing fails."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
import torch
from onnx.reference.op_run import OpRun

from fold.artifact import check_canary, read_version, write_canary
from fold.cli import main
from fold.errors import BnfoldError
from fold.evaluate import Evaluator, NoisyEvaluator, float64
from fold.graph import read_graph, refuse_not_finite
from fold.proof import certifier
from fold.proof.decisions import decide
from fold.proof.run_time import Verdict, judge
from fold.runtime import open_session, run
from support.folding import architecture, randomise

RANDOM = np.random.default_rng(0)
BATCHNORM = {
    "s": RANDOM.uniform(0.5, 2, 6),
    "b": RANDOM.standard_normal(6),
    "m": RANDOM.standard_normal(6),
    "v": RANDOM.uniform(0.5, 2, 6),
}
CONV = RANDOM.standard_normal((6, 3, 3, 3))
NORMALISED = "h = Conv<pads=[1,1,1,1]>(x, w) n = BatchNormalization(h, s, b, m, v)"


def write(file: Path, body: str, shapes: str = "float[n,3,8,8] x) => (float[n,6,8,8] y", **weights: Any) -> Path:
    proto = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["": 18]> g ({shapes}) {{ {body} }}')
    for name, values in {"w": CONV, **BATCHNORM, **weights}.items():
        array = np.asarray(values)
        array = array.astype(np.float32) if array.dtype == np.float64 else array
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    onnx.save(proto, file)
    return file


def fold(capsys: pytest.CaptureFixture[str], source: Path, *arguments: object) -> tuple[int, dict[str, Any], str]:
    """The exit code, the JSON and the last line on stderr of `bnfold fold`, into a repository beside the source."""
    command = ["fold", source, "--out", source.parent / "repository", "--samples", 4, "--json", *arguments]
    with pytest.raises(SystemExit) as left:
        main([str(argument) for argument in command])
    out, err = capsys.readouterr()
    return int(left.value.code or 0), json.loads(out) if out else {}, err.strip().splitlines()[-1]


def published(source: Path) -> list[Path]:
    return sorted((source.parent / "repository").glob("*/[0-9]*"))


# --- A false reference


def test_the_reference_is_doubted_where_the_float64_evaluator_has_a_wrong_operator(
    tmp_path, capsys, monkeypatch
) -> None:
    """onnx's own LRN loops over the batch in place of the channels (onnx issue 7805)."""
    source = write(tmp_path / "net.onnx", f"{NORMALISED} a = Relu(n) l = LRN<size=3>(a) y = Neg(l)")
    with monkeypatch.context() as patched:
        patched.setattr(float64, "OPERATORS", [op for op in float64.OPERATORS if op.__name__ != "LRN"])
        code, conversion, said = fold(capsys, source)
    assert code == 1
    assert published(source) == []
    assert said.startswith("NOT proven: the reference is in doubt: output 'y' of the unfolded model is ")
    assert "; the first node where they part is l (LRN); " in said
    verdict = conversion["verdict"]
    assert not verdict["equivalent"]
    assert verdict["located"]["layer"] == "l (LRN)"
    assert verdict["outputs"][0]["unfolded_error"] > 10 * verdict["outputs"][0]["unfolded_limit"]
    assert fold(capsys, source)[0] == 0, "with a right operator it is published"


class Relu(OpRun):
    """Passes a little of what is negative."""

    def _run(self, x: np.ndarray) -> tuple[np.ndarray]:
        return (np.maximum(x, -0.01),)


def test_a_wrong_operator_is_noticed_beside_a_pytorch_reference_too(tmp_path, capsys, monkeypatch) -> None:
    torch.save({"state_dict": randomise(architecture("resnet"), 3).state_dict()}, tmp_path / "net.pt")
    arguments = ("--arch", "models.resnet:resnet", "--input", "1,8,8")
    monkeypatch.setattr(float64, "OPERATORS", [*(op for op in float64.OPERATORS if op.__name__ != "Relu"), Relu])
    code, _, said = fold(capsys, tmp_path / "net.pt", *arguments)
    assert code == 1
    assert published(tmp_path / "net.pt") == []
    assert said.startswith("NOT proven: the reference is in doubt: output 'output' of the exported graph is ")
    assert "; the first node where they part is relu (Relu); " in said


@pytest.mark.parametrize("factor", [0, -1, 5])
@pytest.mark.parametrize("seed", range(5))
def test_no_multiple_of_the_model_is_accepted_because_the_reference_is_wrong(factor, seed) -> None:
    U = np.random.default_rng(seed).standard_normal((4, 10)) + 1
    for wrong in (np.zeros_like(U), 20 * U, -U, U[::-1], U + 0.1, np.full_like(U, np.nan)):
        for noise in (0.0, 1e-5):
            assert not judge("y", wrong, U, factor * U, noise=noise).equivalent
    assert judge("y", U, U, U).equivalent
    assert not judge("y", U, U, factor * U).equivalent


@pytest.mark.parametrize(
    ("precision", "eps"), [("fp32", 2.0**-23), ("tf32", 2.0**-10), ("fp16", 2.0**-10), ("bf16", 2.0**-7)]
)
def test_reference_and_unfolded_model_agree_within_the_rounding_of_its_precision(precision, eps) -> None:
    R = np.ones((2, 3))
    for part, doubted in ((0.9, False), (1.1, True)):
        found = judge("y", R, R + part * 8 * eps, R, precision)
        assert (found.doubted, found.equivalent) == (doubted, not doubted)
        assert not judge("y", R, R + part * 8 * eps, R, precision, noise=20 * eps).doubted


def test_the_noise_of_tf32_is_that_of_its_factors(tmp_path) -> None:
    """11 bits and an amplitude of 32, for 24 bits and 256."""
    model = read_graph(write(tmp_path / "net.onnx", NORMALISED.replace("n =", "y ="))).model
    x = {"x": np.random.default_rng(0).standard_normal((1, 3, 8, 8)).astype(np.float32)}
    exact = Evaluator(model)(x)["y"]
    single, tf32 = (np.abs(NoisyEvaluator(model, tf32=on)(x, 0)["y"] - exact).max() for on in (False, True))
    assert tf32 / single == pytest.approx(32 * 2.0**-11 / (256 * 2.0**-24), rel=0.5)


def test_beside_float16_what_stays_in_float32_has_the_noise_of_tf32(tmp_path) -> None:
    """1.5 is exact in both types, and TF32 rounds the factors of what is no whole number."""
    half = np.array([0.5])
    body, shapes = "y = Mul (x, c) h = Cast <to = 10> (x) z = Mul (h, d)", "float[1] x) => (float[1] y, float16[1] z"
    model = read_graph(write(tmp_path / "net.onnx", body, shapes, c=half, d=half.astype(np.float16))).model
    for tf32 in (False, True):
        moved = NoisyEvaluator(model, tf32=tf32)({"x": np.array([3], np.float32)}, 0)
        assert bool(moved["y"] == 1.5) != tf32
        assert moved["z"] == 1.5


@pytest.mark.parametrize(("provider", "precision"), [("cuda", "fp16"), ("cpu", "fp16"), ("cuda", "tf32")])
def test_the_message_says_in_what_layers_in_float32_ran(provider, precision) -> None:
    verdict = Verdict((judge("y", *[np.ones((2, 3))] * 3, precision),), (), 2, 0, provider, precision, 0.1)
    assert ("layers in float32 ran in TF32" in verdict.message) == ((provider, precision) == ("cuda", "fp16"))


def test_integers_and_texts_are_excused_only_where_rounding_decides() -> None:
    R, U, F = np.array([[1, 2]]), np.array([[1, 3]]), np.array([[1, 5]])
    assert not judge("y", R, U, F).equivalent
    assert judge("y", R, U, F, noise=1.0).equivalent
    texts = [np.array([["cat", word]], object) for word in ("dog", "cow", "dog")]
    assert not judge("y", *texts).equivalent
    assert judge("y", *texts, noise=1.0).equivalent
    assert not judge("y", texts[0], texts[0], texts[1]).equivalent


def test_a_flip_is_excused_only_by_a_rounding_that_is_small_beside_the_output() -> None:
    R, F = np.array([[1.0, 0.9, 0.0]]), np.array([[0.9, 1.0, 0.0]])
    near, far = np.array([[0, 0.05, 0]]), np.array([[0, 0.5, 0]])
    small, large = decide("y", R, R + near, F), decide("y", R, R + far, F)
    assert small is not None
    assert large is not None
    assert (small.flips, small.excused) == (1, 1)
    assert (large.flips, large.excused) == (1, 0)


def test_a_mask_of_infinities_is_no_obstacle_to_decisions() -> None:
    R = np.array([[1.0, -np.inf, 0.0], [0.0, 2.0, -np.inf]])
    made = decide("y", R, R, R)
    assert made is not None
    assert (made.decisions, made.flips) == (2, 0)
    assert made
    assert not decide("y", R * np.nan, R, R)


# --- An empty truth


NAN, INF = float("nan"), float("inf")
SPOILT = {
    "weights of NaN": ({"w": np.full_like(CONV, NAN)}, None, "h has parameters that are NaN or infinite: 162 of 162"),
    "a mean of NaN": ({"m": [1.0, NAN, 0, 0, 0, 0]}, None, "n has parameters that are NaN or infinite: 1 of 6 numbers"),
    "an infinite gamma": ({"s": [INF, 1.0, 1, 1, 1, 1]}, None, "n has parameters that are NaN or infinite: 1 of 6"),
    "an infinite variance": ({"v": [INF, 1.0, 1, 1, 1, 1]}, None, "n has parameters that are NaN or infinite: 1 of 6"),
    "a negative variance": ({"v": [1.0, 1, 1, -1, 1, 1]}, None, "n has a variance + ε of -1 in channel 3"),
    "no variance": ({"v": [1.0, 1, 0, 1, 1, 1]}, 0.0, "n has a variance + ε of 0 in channel 2"),
    "an epsilon of NaN": ({}, NAN, "n has an ε of nan, expected a number of at least 0"),
    "an infinite epsilon": ({}, INF, "n has an ε of inf, expected a number of at least 0"),
    "a small negative epsilon": ({}, -0.125, "n has an ε of -0.125, expected a number of at least 0"),
    "a NaN that is added": ({"t": [0.0, NAN, 0]}, None, "u has parameters that are NaN or infinite: 1 of 3 numbers"),
}


def spoil(file: Path, case: str) -> Path:
    """Behind a Relu an infinity of one channel shows nowhere among the finite values that are compared."""
    weights, epsilon, _ = SPOILT[case]
    given = {name: np.asarray(array) for name, array in {"t": np.zeros(3), **weights}.items()}
    given["t"] = given["t"].reshape(3, 1, 1)
    body = "u = Add(x, t) h = Conv<pads=[1,1,1,1]>(u, w) n = BatchNormalization(h, s, b, m, v) y = Relu(n)"
    model = onnx.load(write(file, body, **given))
    if epsilon is not None:
        model.graph.node[2].attribute.append(onnx.helper.make_attribute("epsilon", epsilon))
    onnx.save(model, file)
    return file


@pytest.mark.parametrize("case", SPOILT)
def test_a_model_with_a_parameter_that_is_not_finite_is_not_published(case, tmp_path, capsys) -> None:
    source = spoil(tmp_path / "net.onnx", case)
    code, _, said = fold(capsys, source)
    assert (code, published(source)) == (2, [])
    assert said.startswith(f"bnfold: {source}: {SPOILT[case][-1]}")


@pytest.mark.parametrize("sizes", ["8,8", "height,width"])
def test_a_model_without_a_finite_output_is_not_published(sizes, tmp_path, capsys) -> None:
    body = f"{NORMALISED} e = Exp(n) k = Neg(e) y = Log(k)"
    source = write(tmp_path / "net.onnx", body, f"float[n,3,{sizes}] x) => (float[n,6,{sizes}] y")
    code, conversion, said = fold(capsys, source)
    assert code == 1
    assert published(source) == []
    assert "output 'y' of the unfolded model has no finite value, so nothing of it was compared" in said
    assert "the first node that writes no finite number is y (Log)" in said
    assert f"the inputs were x [4, 3, {'8, 8' if sizes == '8,8' else '32, 32'}]" in said
    assert "--input" in said
    verdict = conversion["verdict"]
    assert (verdict["compared"], verdict["algebra"]["compared"], verdict["algebra"]["holds"]) == (0, 0, False)
    assert not verdict["rounding"]["holds"]
    assert not verdict["runtime_holds"]


def test_an_infinity_that_is_a_mask_is_no_fault(tmp_path) -> None:
    mask = np.array([0, -INF] * 4)
    source = write(tmp_path / "net.onnx", f"{NORMALISED} a = Add(n, mask) y = Softmax(a)", mask=mask)
    refuse_not_finite(read_graph(source).model)


def test_errors_of_the_proof_name_the_file_of_the_user(tmp_path, capsys, monkeypatch) -> None:
    """The graphs that are proven lie in a folder that is removed."""
    source = write(tmp_path / "net.onnx", NORMALISED.replace("n =", "y ="))

    def refuse(path: Path, **_: object) -> None:
        raise BnfoldError(f"{path}: ONNX Runtime cannot load it: too new")

    monkeypatch.setattr(certifier, "open_session", refuse)
    code, _, said = fold(capsys, source)
    assert code == 2
    assert said == f"bnfold: {source}: the folded graph: ONNX Runtime cannot load it: too new"
    assert list((tmp_path / "repository" / "net").iterdir()) == []
    body = "h = Conv(x, none) y = BatchNormalization(h, s, b, m, v)"
    source = write(tmp_path / "net.onnx", body, "float[n,0,8,8] x) => (float[n,6,6,6] y", none=np.zeros((6, 0, 3, 3)))
    assert fold(capsys, source)[2].startswith(f"bnfold: {source}: the unfolded graph, of opset 18, cannot be evaluated")


def test_a_batchnorm_of_no_channels_is_not_published(tmp_path, capsys) -> None:
    none = {name: np.zeros(0) for name in "sbmv"}
    source = write(
        tmp_path / "net.onnx", "y = BatchNormalization(x, s, b, m, v)", "float[n,0,4] x) => (float[n,0,4] y", **none
    )
    code, _, said = fold(capsys, source)
    assert code == 1
    assert published(source) == []
    assert "nothing of it was compared; the first node that writes no finite number is y (BatchNormalization)" in said


def test_parts_say_how_many_values_they_compared(tmp_path, capsys) -> None:
    source = write(tmp_path / "net.onnx", f"{NORMALISED} y = Relu(n)")
    with pytest.raises(SystemExit):
        main(["fold", str(source), "--out", str(tmp_path / "repository"), "--samples", "4"])
    table = capsys.readouterr().err
    assert "Compared" in table
    assert " 1536 " in table, "C: 4 rows of 6 x 8 x 8"
    assert " 2688 " in table, "A: 7 rows"
    assert " 256 " in table, "D: 4 rows of 8 x 8 decisions"


# --- Free sizes


POOLED = "h = Conv<strides=[8,8],kernel_shape=[8,8]>(x, w) n = BatchNormalization(h, s, b, m, v) y = {}(n)"
FREE = "float[n,3,height,width] x) => (float[n,6,rows,columns] y"
WIDE = np.random.default_rng(1).standard_normal((6, 3, 8, 8))


def test_larger_sizes_are_tried_where_a_late_pool_has_nothing_to_pool(tmp_path, capsys) -> None:
    source = write(tmp_path / "net.onnx", POOLED.format("MaxPool<kernel_shape=[5,5]>"), FREE, w=WIDE)
    code, conversion, said = fold(capsys, source)
    assert code == 0, said
    assert conversion["verdict"]["drawn"] == {"x": [4, 3, 64, 64]}
    (folder,) = published(source)
    assert read_version(folder).manifest.free_sizes == (64,)
    with np.load(folder / "canary.npz") as canary:
        assert canary["input/x"].shape == (4, 3, 64, 64)
    with pytest.raises(SystemExit) as left:
        main(["verify", str(folder), "--samples", "2", "--json"])
    assert not left.value.code
    assert json.loads(capsys.readouterr().out)["drawn"] == {"x": [2, 3, 64, 64]}


LINE = "h = Conv<strides=[8,8],kernel_shape=[8,8]>(x, w) n = BatchNormalization(h, s, b, m, v) {} y = Squeeze(p, two)"
TEXT = "float[n,3,height,width] x) => (float[n,6,columns] y"


def test_a_rectangle_is_tried_where_no_square_fits(tmp_path, capsys) -> None:
    """A reader of text: its pool leaves one row of a height from 48 to 95, and needs a width of 192."""
    body = LINE.format("p = MaxPool<kernel_shape=[6,24],strides=[6,24]>(n)")
    source = write(tmp_path / "net.onnx", body, TEXT, w=WIDE, two=np.array([2]))
    code, conversion, said = fold(capsys, source)
    assert code == 0, said
    assert conversion["verdict"]["drawn"] == {"x": [4, 3, 48, 192]}
    (folder,) = published(source)
    assert read_version(folder).manifest.free_sizes == (48, 192)
    with pytest.raises(SystemExit) as left:
        main(["verify", str(folder), "--samples", "2", "--json"])
    assert not left.value.code
    assert json.loads(capsys.readouterr().out)["drawn"] == {"x": [2, 3, 48, 192]}


def test_sizes_that_never_fit_are_asked_for_in_one_line(tmp_path, capsys) -> None:
    body = "h = Conv(x, w) n = BatchNormalization(h, s, b, m, v) y = Reshape(n, shape)"
    source = write(
        tmp_path / "net.onnx",
        body,
        "float[n,3,height,width] x) => (float[n,p] y",
        shape=np.array([-1, 6 * 41 * 41], np.int64),
    )
    code, _, said = fold(capsys, source)
    assert code == 2
    assert published(source) == []
    assert "input x: no size from 32 to 256 fits the free dimensions; give sizes that fit by --input" in said
    assert fold(capsys, source, "--input", "3,43,43")[0] == 0


# --- The canary


def answers(folder: Path, exact: list[float], given: list[float]) -> str | None:
    write_canary(folder, {"x": np.zeros(3, np.float32)}, {"y": np.array(exact)}, {"y": 0.1})
    return check_canary(folder, lambda inputs: {"y": np.array(given, np.float32)})


def test_a_canary_demands_the_same_infinities_and_refuses_to_compare_nothing(tmp_path) -> None:
    nan, inf = np.nan, np.inf
    assert answers(tmp_path, [1, nan, -inf], [1.01, nan, -inf]) is None
    for other in ([1, nan, inf], [1, 0, -inf], [nan, nan, -inf], [1, nan, nan], [2, nan, -inf]):
        assert answers(tmp_path, [1, nan, -inf], other) is not None
    assert "nothing was compared" in str(answers(tmp_path, [nan, nan, nan], [nan, nan, nan]))


def test_a_canary_that_inflates_is_refused(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("fold.artifact.canary.MOST_BYTES", 1 << 20)
    write_canary(tmp_path, {"x": np.zeros(1 << 18, np.float32)}, {"y": np.zeros(1)}, {"y": 0.1})
    with pytest.raises(BnfoldError, match=r"canary\.npz: cannot be read .* 1048576 are read\); fold the model again"):
        check_canary(tmp_path, lambda inputs: {"y": np.zeros(1)})


# --- Precision is what the graph stores


@pytest.mark.parametrize("seed", range(3))
def test_a_graph_stored_in_float16_with_parameters_in_float32_is_held_to_float16(seed, tmp_path, capsys) -> None:
    random = np.random.default_rng(seed)
    halves = {
        "w": random.standard_normal((6, 3, 3, 3)).astype(np.float16) / np.float16(5),
        "u": random.choice([-1, 1], (6, 6, 1, 1)).astype(np.float16),
    }
    source = write(
        tmp_path / "net.onnx",
        f"{NORMALISED} r = Relu(n) k = Conv(r, u) y = BatchNormalization(k, s, b, m, v)",
        "float16[n,3,8,8] x) => (float16[n,6,8,8] y",
        **halves,
    )
    code, conversion, said = fold(capsys, source, "--seed", seed)
    assert code == 0, said
    (output,) = conversion["verdict"]["outputs"]
    assert conversion["verdict"]["max_relative_error"] > 1e-5
    assert output["limit"] > 4 * output["unfolded_error"]


def test_labels_of_pixels_that_hang_on_the_rounding_of_float16_are_no_fault(tmp_path, capsys) -> None:
    """The folded graph takes other pixels for another class than the unfolded one does in float16."""
    body = f"{NORMALISED} r = Relu(n) k = Conv<pads=[1,1,1,1]>(r, u) y = ArgMax<axis=1, keepdims=0>(k)"
    weights = np.random.default_rng(7).standard_normal((6, 6, 3, 3))
    source = write(tmp_path / "net.onnx", body, "float[n,3,96,96] x) => (int64[n,96,96] y", u=weights)
    code, conversion, said = fold(capsys, source, "--precision", "fp16")
    assert code == 0, said
    (decision,) = conversion["verdict"]["decisions"]
    assert 0 < decision["flips"] == decision["excused"] < 200
    (folder,) = published(source)
    session = open_session(folder / "model.onnx", provider="cpu")
    assert check_canary(folder, lambda inputs: run(session, inputs)) is None
