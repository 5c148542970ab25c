"""Input standardisation in the graph: how it is asked for, what becomes of it, and that nothing else does."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import nn

import fold
from fold.artifact.directory import read_version
from fold.artifact.manifest import TensorSpec
from fold.cli import main
from fold.convert import Target, convert
from fold.engine.fold import fold_graph
from fold.errors import BnfoldError
from fold.evaluate.float64 import evaluate
from fold.graph.file import read_graph, save_graph
from fold.inputs.drawn import draw_inputs
from fold.inputs.scaling import InputScaling, Numbers, parse_scaling
from fold.proof.certifier import certify
from fold.proof.unfolded import load_unfolded
from fold.sources.export import export_module, export_program, save_program
from fold.sources.onnx import read_onnx
from fold.sources.scaling.graph import scale_graph
from fold.sources.source import Source
from support.folding import GraphBuilder, batchnorms

THREE = "mean=0.485,-0.456,0.406,std=0.229,0.224,0.325,scale=1/255"
ONE = "mean=-0.3,std=0.2,scale=1/255"
SCALE_ONLY = "scale=1/255"
RANDOM = np.random.default_rng(5)

Build = Callable[[GraphBuilder], ir.Value]


def standardised(pixels: np.ndarray, numbers: Numbers, axis: int = 1) -> np.ndarray:
    """What PyTorch's transforms make of pixels, in float64."""
    shape = [1] * pixels.ndim
    shape[axis] = -1
    mean, std = (np.reshape(values, shape) for values in (numbers.mean, numbers.std))
    return (pixels * numbers.scale - mean) / std


def pixels_of(value: ir.Value, rows: int) -> list[np.ndarray]:
    """Noise, black, white, and few bright ones."""
    shape = [size if isinstance(size, int) else rows for size in value.shape or ()]
    noise = RANDOM.integers(0, 256, shape)
    sparse = noise * (RANDOM.random(shape) < 0.1)
    return [each.astype(np.uint8) for each in (noise, 0 * noise, 0 * noise + 255, sparse)]


def check(
    model: ir.Model, text: str, *, layout: Any = None, native: str = "nchw", opened: bool = False
) -> tuple[list[str], fold.FoldReport]:
    """Fold a float64 graph with its input scaled; on bytes it gives, to 1e-12, what the graph as it was gives on
    standardised floats. Returns the operators that are left, and the report."""
    wanted = parse_scaling(text, layout)
    scaled, resolved = scale_graph(model, wanted)
    x = scaled.graph.inputs[0]
    assert (x.name, x.dtype) == ("x", ir.DataType.UINT8)
    before = ir.to_proto(scaled).SerializeToString()
    folding = fold_graph(scaled, open_activations=opened)
    assert ir.to_proto(scaled).SerializeToString() == before
    assert wanted.numbers is not None
    for rows in (1, 3):
        for pixels in pixels_of(x, rows):
            taken = pixels
            if layout not in (None, native):
                taken = np.moveaxis(pixels, -1, 1) if layout == "nhwc" else np.moveaxis(pixels, 1, -1)
            floats = standardised(taken, wanted.numbers, axis=3 if native == "nhwc" else 1)
            for name, truth in evaluate(model, {"x": floats}).items():
                actual = evaluate(folding.model, {"x": pixels})[name]
                np.testing.assert_allclose(actual, truth, rtol=0, atol=1e-12 * max(np.abs(truth).max(), 1e-300))
    assert folding.report.batchnorms == batchnorms(model)
    assert resolved.layout == (layout or native if len(x.shape or ()) == 4 else None)
    return [node.op_type for node in folding.model.graph], folding.report


def padded(g: GraphBuilder) -> ir.Value:
    y = g.batchnorm(g.op("Conv", g.x, g.normal(4, 3, 3, 2), pads=[1, 0, 1, 0]), 4)
    return g.op("GlobalAveragePool", g.op("Relu", y))


def unpadded(g: GraphBuilder) -> ir.Value:
    return g.op("Relu", g.batchnorm(g.op("Conv", g.x, g.normal(4, 3, 3, 2), strides=[2, 1]), 4))


def grouped(g: GraphBuilder) -> ir.Value:
    return g.op("Conv", g.x, g.normal(6, 1, 3, 2), g.normal(6), group=3)


def depthwise_padded(g: GraphBuilder) -> ir.Value:
    return g.batchnorm(g.op("Conv", g.x, g.normal(3, 1, 3, 3), pads=[1] * 4, group=3), 3)


def linear(g: GraphBuilder) -> ir.Value:
    return g.op("Gemm", g.op("Flatten", g.x, axis=1), g.normal(3 * 5 * 7, 6), g.normal(6))


def batchnorm_then_padded(g: GraphBuilder) -> ir.Value:
    return g.op("Conv", g.batchnorm(g.x, 3), g.normal(4, 3, 3, 3), pads=[1] * 4)


def batchnorm_then_unpadded(g: GraphBuilder) -> ir.Value:
    return g.op("Conv", g.batchnorm(g.x, 3), g.normal(4, 3, 3, 3))


def pooled(g: GraphBuilder) -> ir.Value:
    return g.op("Conv", g.op("MaxPool", g.x, kernel_shape=[2, 2]), g.normal(4, 3, 3, 3))


def skipped(g: GraphBuilder) -> ir.Value:
    """The input goes two ways, that meet behind convolutions, as in a U-Net."""
    first = g.op("Relu", g.batchnorm(g.op("Conv", g.x, g.normal(4, 3, 3, 3), pads=[1] * 4), 4))
    return g.op("Conv", g.op("Concat", first, g.x, axis=1), g.normal(5, 7, 1, 1))


def skipped_unpadded(g: GraphBuilder) -> ir.Value:
    return g.op("Concat", g.op("Conv", g.x, g.normal(4, 3, 1, 1)), g.op("Conv", g.x, g.normal(2, 3, 1, 1)), axis=1)


def residual(g: GraphBuilder) -> ir.Value:
    tangent = g.op("Tanh", g.op("Conv", g.x, g.normal(3, 3, 1, 1)))
    return g.op("Conv", g.op("Add", tangent, g.x), g.normal(4, 3, 3, 3))


def no_weights(g: GraphBuilder) -> ir.Value:
    return g.op("Tanh", g.x)


BEHIND = ["Relu", "GlobalAveragePool"]


@pytest.mark.parametrize(
    ("build", "operators", "scale", "shift"),
    [
        (padded, ["Cast", "Add", "Conv", *BEHIND], "folded", "kept"),
        (unpadded, ["Cast", "Conv", "Relu"], "folded", "folded"),
        (grouped, ["Cast", "Conv"], "folded", "folded"),
        (depthwise_padded, ["Cast", "Add", "Conv"], "folded", "kept"),
        (linear, ["Cast", "Flatten", "Gemm"], "folded", "folded"),
        (batchnorm_then_padded, ["Cast", "Add", "Conv"], "folded", "kept"),
        (batchnorm_then_unpadded, ["Cast", "Conv"], "folded", "folded"),
        (pooled, ["Cast", "MaxPool", "Conv"], "folded", "folded"),
        (skipped, ["Cast", "Add", "Conv", "Relu", "Concat", "Conv"], "folded", "kept"),
        (skipped_unpadded, ["Cast", "Conv", "Conv", "Concat"], "folded", "folded"),
        (residual, ["Cast", "Mul", "Conv", "Tanh", "Add", "Conv"], "kept", "folded"),
        (no_weights, ["Cast", "Mul", "Add", "Tanh"], "kept", "kept"),
    ],
)
@pytest.mark.parametrize("layout", [None, "nhwc"])
def test_the_scale_folds_and_the_shift_where_no_zeros_are_padded(
    build: Build, operators: list[str], scale: str, shift: str, layout: Any
) -> None:
    g = GraphBuilder("n", 3, 5, 7)
    left, report = check(g.finish(build(g)), THREE, layout=layout)
    assert left == (["Transpose"] if layout else []) + operators
    assert report.kept == ()
    found = report.normalization
    assert found is not None
    assert (found.input, found.scale, found.shift) == ("x", scale, shift)
    stays = "kept" in (scale, shift)
    assert (found.reason is not None, found.culprit is not None) == (stays, stays)
    assert bool(found.into) == ("folded" in (scale, shift))
    assert ("kept" in found.message) == stays


@pytest.mark.parametrize("build", [padded, unpadded, batchnorm_then_padded, batchnorm_then_unpadded])
def test_a_lone_scale_leaves_no_operator(build: Build) -> None:
    g = GraphBuilder("n", 3, 5, 7)
    left, report = check(g.finish(build(g)), SCALE_ONLY)
    assert "Mul" not in left
    assert report.kept == ()
    assert left.count("Add") == (build is batchnorm_then_padded)  # of that BatchNorm's shift
    assert report.normalization is not None
    assert report.normalization.scale == "folded"
    assert report.normalization.shift == ("kept" if build is batchnorm_then_padded else "none")


@pytest.mark.parametrize(("pads", "left"), [(0, ["Cast", "Conv"]), (1, ["Cast", "Add", "Conv"])])
def test_one_channel_and_one_axis_of_space(pads: int, left: list[str]) -> None:
    g = GraphBuilder("n", 1, 9)
    found, _ = check(g.finish(g.op("Conv", g.x, g.normal(4, 1, 3), pads=[pads, pads])), ONE)
    assert found == left
    g = GraphBuilder("n", 1, 6, 9)
    found, _ = check(g.finish(g.op("Conv", g.x, g.normal(4, 1, 3, 2), pads=[pads] * 4)), ONE, layout="nhwc")
    assert found == ["Transpose", *left]


def test_a_shift_that_stays_is_of_pixels() -> None:
    """`x*s + t` is computed as `(x + t/s)*s`: what is added is minus the mean pixel."""
    g = GraphBuilder("n", 3, 5, 7)
    scaled, _ = scale_graph(g.finish(padded(g)), parse_scaling(THREE))
    folding = fold_graph(scaled)
    (add,) = (node for node in folding.model.graph if node.op_type == "Add")
    added = add.inputs[1]
    assert added is not None
    assert added.const_value is not None
    np.testing.assert_allclose(added.const_value.numpy().ravel(), [-0.485 * 255, 0.456 * 255, -0.406 * 255], rtol=1e-14)


def test_opened_activations_leave_the_shift_alone_unless_a_batchnorm_wants_it() -> None:
    g = GraphBuilder("n", 3, 5, 7)
    left, _ = check(g.finish(padded(g)), THREE, opened=True)
    assert left == ["Cast", "Add", "Conv", *BEHIND]


def test_products_and_sums_of_the_model_itself_are_no_part_of_it() -> None:
    """A BatchNorm written out behind it is one BatchNorm; a product with one number takes it up."""
    g = GraphBuilder("n", 3, 5, 7)
    y = g.op("Add", g.op("Mul", g.x, g.normal(3, 1, 1)), g.normal(3, 1, 1))
    scaled, _ = scale_graph(g.finish(g.op("Conv", y, g.normal(4, 3, 3, 3))), parse_scaling(THREE))
    report = fold_graph(scaled).report
    assert (report.batchnorms, len(report.folded)) == (1, 1)
    g = GraphBuilder("n", 3, 5, 7)
    y = g.op("Sub", g.op("Mul", g.x, g.constant(np.array(2.0))), g.constant(np.array(1.0)))
    left, _ = check(g.finish(g.op("Tanh", y)), THREE)
    assert left == ["Cast", "Mul", "Add", "Tanh"]


def test_a_graph_whose_channels_are_last_keeps_its_layout() -> None:
    def build() -> ir.Model:
        g = GraphBuilder("n", 5, 7, 3)
        y = g.op("Transpose", g.x, perm=[0, 3, 1, 2])
        return g.finish(g.op("Conv", y, g.normal(4, 3, 3, 2)))

    for layout in (None, "nhwc"):
        left, _ = check(build(), THREE, layout=layout, native="nhwc")
        assert left == ["Cast", "Transpose", "Conv"]
    left, _ = check(build(), THREE, layout="nchw", native="nhwc")
    assert left == ["Transpose", "Cast", "Transpose", "Conv"]


def test_a_graph_without_normalisation_reports_none() -> None:
    g = GraphBuilder("n", 3, 5, 7)
    report = fold_graph(g.finish(padded(g))).report
    assert report.normalization is None
    assert report.to_dict()["normalization"] is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("scale=1/255", InputScaling(None, Numbers(1 / 255))),
        ("mean=0.5,0.25", InputScaling(None, Numbers(1 / 255, (0.5, 0.25)))),
        ("mean=[1,2,3],std=[4,5,6],scale=1", InputScaling(None, Numbers(1, (1, 2, 3), (4, 5, 6)))),
        ("a:b:std=51/255, mean=.5", InputScaling("a:b", Numbers(1 / 255, (0.5,), (0.2,)))),
        ("preprocessing", InputScaling()),
    ],
)
def test_how_numbers_are_written(text: str, expected: InputScaling) -> None:
    assert parse_scaling(text) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("std=0", "scale and std are larger than 0"),
        ("std=0.2,-0.1", "scale and std are larger than 0"),
        ("scale=0", "scale and std are larger than 0"),
        ("gamma=1", "'gamma' is not a key"),
        ("mean=1,mean=2", "'mean' is given twice"),
        ("mean=x", "'x' is not a number"),
        ("mean=1e999", "'1e999' is not a number"),
        ("scale=1/0", "'1/0' is not a number"),
        ("scale=1,2", "scale is one number"),
        ("mean=1,2,std=1,2,3", "lists of one length"),
        ("mean=123.7", "mean is larger than any pixel with scale=1/255"),
        ("0.5", "'0.5' has no key before it"),
        ("", "'' has no key before it"),
    ],
)
def test_numbers_that_are_none(text: str, words: str) -> None:
    with pytest.raises(BnfoldError) as error:
        parse_scaling(text)
    assert words in str(error.value)
    assert str(error.value).startswith(f"--normalize {text}: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("shape", "text", "layout", "words"),
    [
        (("n", 3, 5, 7), "mean=.1,.2", None, "2 numbers for a channel each, but input 'x' has 3 channels"),
        (("n", "c", 5, 7), THREE, None, "an unknown number of channels"),
        (("n",), SCALE_ONLY, None, "has 1 axes; expected a batch and channels"),
        (("n", 3, 5), SCALE_ONLY, "nhwc", "has 3 axes; expected four"),
        (("n", 3, 5, 7), "y:scale=1", None, "no input 'y' of floats; it has x"),
        (("n", 3, 5, 7), "preprocessing", None, "neither --preprocessing nor the checkpoint describes any"),
    ],
)
def test_inputs_that_cannot_be_scaled(shape: Any, text: str, layout: Any, words: str) -> None:
    g = GraphBuilder(*shape)
    with pytest.raises(BnfoldError, match=words):
        scale_graph(g.finish(g.op("Tanh", g.x)), parse_scaling(text, layout))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--normalize", "scale=1/0"], "--normalize scale=1/0: '1/0' is not a number"),
        (["--layout", "nhwc"], "--layout nhwc: only bytes of --normalize have a layout"),
        (["--normalize", "y:scale=1"], "net.onnx: --normalize: the model has no input 'y' of floats; it has x"),
    ],
)
def test_a_wrong_option_is_one_line(
    options: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    g = GraphBuilder("n", 3, 5, 7)
    save_graph(g.finish(g.op("Tanh", g.x)), tmp_path / "net.onnx")  # ONNX Runtime has no convolution in float64
    with pytest.raises(SystemExit) as ended:
        main(["fold", str(tmp_path / "net.onnx"), "--out", str(tmp_path / "r"), *options])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line
    assert not (tmp_path / "r").exists()


def test_of_several_inputs_one_is_named() -> None:
    g = GraphBuilder("n", 3, 5, 7)
    y = g.op("Add", g.x, g.input("y", "n", 3, 5, 7))
    with pytest.raises(BnfoldError, match=r"several inputs of floats, x, y; name one of them, such as NAME:mean"):
        scale_graph(g.finish(y), parse_scaling(SCALE_ONLY))
    g = GraphBuilder("n", 3, 5, 7)
    y = g.op("Add", g.x, g.input("y", "n", 3, 5, 7))
    scaled, _ = scale_graph(g.finish(y), parse_scaling("y:scale=2"))
    assert [value.dtype for value in scaled.graph.inputs] == [ir.DataType.DOUBLE, ir.DataType.UINT8]
    pixels = RANDOM.integers(0, 256, (2, 3, 5, 7)).astype(np.uint8)
    (found,) = evaluate(scaled, {"x": np.ones(pixels.shape), "y": pixels}).values()
    np.testing.assert_array_equal(found, 1 + 2.0 * pixels)
    with pytest.raises(BnfoldError, match="already scales an input"):
        scale_graph(scaled, parse_scaling("x:scale=2"))


@pytest.mark.parametrize(("opset", "ir_version"), [(9, 3), (13, 8)])
def test_old_graphs(opset: int, ir_version: int, tmp_path: Path) -> None:
    """Bytes are standardised in the file as it is given, which is lifted after that."""
    listed = ", float[4,3,1,1] w" if ir_version < 4 else ""
    text = f"""<ir_version: {ir_version}, opset_import: ["": {opset}]>
    g (float[n,3,5,7] x{listed}) => (float[n,4,5,7] y) <float[4,3,1,1] w = {{1,2,3,4,5,6,7,8,9,10,11,12}}>
    {{ y = Conv(x, w) }}"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "old.onnx")
    read = read_onnx(tmp_path / "old.onnx", parse_scaling(THREE, "nhwc"))
    read.given.copy_to(tmp_path / "written.onnx")
    again = read_onnx(tmp_path / "written.onnx")
    pixels = RANDOM.integers(0, 256, (2, 5, 7, 3)).astype(np.uint8)
    floats = standardised(np.moveaxis(pixels, -1, 1), read.input_scaling.numbers) if read.input_scaling else pixels
    truth = np.einsum("nchw,oc->nohw", floats, np.arange(1.0, 13).reshape(4, 3))
    for model in (read.model, again.model):
        np.testing.assert_allclose(evaluate(model, {"x": pixels})["y"], truth, rtol=0, atol=1e-6 * np.abs(truth).max())
    operators = [node.op_type for node in fold_graph(again.model).model.graph]
    assert operators == ["Transpose", "Cast", "Conv"]


def test_a_graph_too_old_to_be_added_to() -> None:
    model = ir.from_onnx_text('<ir_version: 3, opset_import: ["": 6]> g (float[n,3] x) => (float[n,3] y) {y = Tanh(x)}')
    with pytest.raises(BnfoldError, match="opset 6 is too old, expected 7"):
        scale_graph(model, parse_scaling(SCALE_ONLY))


def test_bytes_are_drawn_from_their_whole_range() -> None:
    """Noise, few bright ones, and bright and dark rows of little contrast; other whole numbers as ever."""
    specs = [TensorSpec(name=kind, datatype=kind, shape=(-1, 500)) for kind in ("UINT8", "INT64")]
    drawn = {family: draw_inputs(specs, 2, 3, family=family) for family in ("normal", "offset", "sparse")}
    assert (drawn["normal"]["UINT8"].min(), drawn["normal"]["UINT8"].max()) == (0, 255)
    bright, dark = drawn["offset"]["UINT8"]
    assert (bright.min(), bright.max(), dark.min(), dark.max()) == (240, 255, 0, 15)
    assert 0.8 < (drawn["sparse"]["UINT8"] == 0).mean() < 0.97
    assert {int(value) for arrays in drawn.values() for value in arrays["INT64"].ravel()} == {0, 1}


class Net(nn.Module):
    """A module whose argument is named as Python's `input` is, and whose layers carry random statistics."""

    def __init__(self, padding: int = 1) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=padding, bias=False), nn.BatchNorm2d(6))
        self.fc = nn.Linear(6, 5)
        with torch.no_grad():
            self.stem[1].running_mean.normal_()
            self.stem[1].running_var.uniform_(0.5, 2)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.fc(torch.relu(self.stem(input)).mean((2, 3)))
        return logits


@pytest.fixture(scope="module")
def net() -> Net:
    torch.manual_seed(3)
    return Net().eval()


@pytest.mark.parametrize(("suffix", "layout", "precision"), [("pt2", "nhwc", "fp32"), ("onnx", "nchw", "fp16")])
def test_a_source_is_folded_with_its_standardisation_and_proven(
    suffix: str, layout: Any, precision: Any, net: Net, tmp_path: Path
) -> None:
    """The certificate covers it: R and U are computed from the reference on the same bytes."""
    path, example = tmp_path / f"net.{suffix}", torch.randn(2, 3, 8, 9)
    if suffix == "pt2":
        save_program(export_program(net, example), path)
    else:
        save_graph(export_module(net, example), path)
    wanted = parse_scaling(THREE, layout)
    source = Source(path, trust=suffix == "pt2", input_scaling=wanted)
    conversion = convert(source, Target(tmp_path / "r"), provider="cpu", samples=4, precision=precision)
    assert conversion.path is not None, conversion.certificate.message
    version = read_version(conversion.path)
    manifest = version.manifest
    shape = (-1, 3, 8, 9) if layout == "nchw" else (-1, 8, 9, 3)
    assert manifest.inputs == (TensorSpec(name="input", datatype="UINT8", shape=shape),)
    found = manifest.fold["normalization"]
    assert found.pop("reason").startswith(
        "the shift of channel 0 (-2.12) cannot move: stem.0 pads its input with zeros"
    )
    into = ["stem.0.weight", "stem.0.bias"]
    why = {"code": "zero_padding", "blocked": "shift", "culprit": "stem.0"}
    assert found == {"input": "input", "scale": "folded", "into": into, "shift": "kept", **why}
    assert manifest.source["normalize"]["layout"] == layout
    assert manifest.fold["batchnorms"] == 1
    unfolded = load_unfolded(version)
    names = set(net.state_dict()) - {"stem.1.num_batches_tracked"}
    assert names <= set(unfolded.graph.initializers)
    operators = [node.op_type for node in read_graph(version.model_file).model.graph]
    first = ["Transpose"] * (layout == "nhwc") + ["Cast", "Add", "Conv", "Relu"]
    assert operators[: len(first)] == first
    pixels = RANDOM.integers(0, 256, (3, 8, 9, 3)).astype(np.uint8)
    assert wanted.numbers is not None
    floats = torch.tensor(standardised(pixels.transpose(0, 3, 1, 2), wanted.numbers))
    with torch.no_grad():
        truth = copy.deepcopy(net).double()(floats).numpy()
    given = {"input": pixels if layout == "nhwc" else np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))}
    (computed,) = evaluate(unfolded, given).values()
    np.testing.assert_allclose(computed, truth, rtol=0, atol=1e-6 * np.abs(truth).max())  # s and t are float32
    again = certify(version, given, provider="cpu", search_seconds=0.1)
    assert again
    assert [family.name for family in again.algebra.families] == ["normal", "single", "offset", "sparse", "given"]
    assert again.search is not None
    assert again.search.steps == 0  # no gradient leads to other bytes
