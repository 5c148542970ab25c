"""Shapes of inputs: as they are written, as the architecture tells them, and free ones; and names of outputs."""

import collections
import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from fold.errors import BnfoldError
from fold.evaluate.float64 import evaluate
from fold.sources.archive.load import load_program
from fold.sources.export import export_graph, export_program, save_program
from fold.sources.inferred import infer_inputs
from fold.sources.outputs import output_names
from fold.sources.shapes import arrange, bind, example_inputs, parse_input
from fold.sources.tracing import trace
from support import loadable
from support.folding import check_fold, randomise


@pytest.mark.parametrize(
    ("text", "name", "shape", "dtype"),
    [
        ("3,224,224", None, (3, 224, 224), torch.float32),
        ("3, H, W", None, (3, "H", "W"), torch.float32),
        ("x:3,8:float16", "x", (3, 8), torch.float16),
        ("x:L", "x", ("L",), torch.float32),
        ("ids:7:int64", "ids", (7,), torch.int64),
        ("L:int32", None, ("L",), torch.int32),
        ("3,8:float64", None, (3, 8), torch.float64),
        ("mask:5:bool", "mask", (5,), torch.bool),
        ("image:4,4,3:uint8", "image", (4, 4, 3), torch.uint8),
        ("scale::float32", "scale", (), torch.float32),
    ],
)
def test_input_shapes(text, name, shape, dtype) -> None:
    parsed = parse_input(text)
    assert (parsed.name, parsed.shape, parsed.dtype) == (name, shape, dtype)


@pytest.mark.parametrize("text", ["3,?", "0,3", "-1", "x:3:float99", "a:b:c:d", "3,,4", "3,2x", ":3,4", "batch,3"])
def test_a_shape_that_is_none(text) -> None:
    with pytest.raises(BnfoldError, match="expected a shape without the batch"):
        parse_input(text)


class Two(nn.Module):
    def forward(self, left, right, scale=None):
        y = left @ right
        return y if scale is None else y * scale[:, None]


def test_named_inputs_are_ordered_as_forward_takes_them() -> None:
    inputs = example_inputs(Two(), [parse_input("right:3,4"), parse_input("left:2,3")])
    assert [tuple(x.shape) for x in inputs] == [(2, 2, 3), (2, 3, 4)]
    assert [one.name for one in arrange(Two(), [parse_input("2,3"), parse_input("3,4")])] == ["left", "right"]
    shapes = [parse_input(text) for text in ("left:L,H", "right:H,W", "scale:W")]
    assert [tuple(x.shape) for x in example_inputs(Two(), shapes)] == [(2, 64, 96), (2, 96, 128), (2, 128)]
    for texts, words in (
        (["middle:3"], "no argument of that name; it takes left, right, scale"),
        (["left:3"], "give the shape of right too"),
        (["left:3", "left:4"], "given twice"),
        (["3", "3", "3", "3"], "3 arguments"),
    ):
        with pytest.raises(BnfoldError, match=words):
            example_inputs(Two(), [parse_input(text) for text in texts])


@pytest.mark.parametrize(
    ("module", "expected", "whence"),
    [
        (loadable.Sized, [("x", (1, 16, 12), torch.float32)], "default_cfg"),
        (loadable.plain, [("input", (3, "H", "W"), torch.float32)], "its first layer, Conv2d"),
        (loadable.Tied, [("x", (6,), torch.float32)], "its first layer, Linear"),
        (loadable.Embedded, [("tokens", ("L",), torch.int64)], "its first layer, Embedding"),
    ],
)
def test_shapes_that_the_architecture_tells(module, expected, whence) -> None:
    shapes, found = infer_inputs(module())
    assert [(one.name, one.shape, one.dtype) for one in shapes] == expected
    assert found == whence


def test_lightnings_example_tells_every_input() -> None:
    module = Two()
    module.example_input_array = {"right": torch.zeros(1, 3, 4), "left": torch.zeros(1, 2, 3)}
    assert [(one.name, one.shape) for one in infer_inputs(module)[0]] == [("left", (2, 3)), ("right", (3, 4))]
    module.example_input_array = torch.zeros(1, 2, 3)
    assert infer_inputs(module) is None  # forward wants another
    assert infer_inputs(nn.Sequential(nn.Flatten(), nn.Linear(12, 3))) is None
    assert infer_inputs(nn.ReLU()) is None


def test_what_was_inferred_is_told_and_what_cannot_be_is_asked_for(tmp_path) -> None:
    _, shapes, note = trace(loadable.Sized().eval(), tmp_path / "m.pt", ())
    assert str(shapes[0]) == "1,16,12"
    assert note == "took the shape of input x: 1,16,12 from default_cfg; --input overrides it"
    with pytest.raises(BnfoldError, match=r"m\.pt: give the shape of one input.*such as --input 3,224,224$"):
        trace(nn.ReLU(), tmp_path / "m.pt", ())
    fixed = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Conv2d(2, 2, 60), nn.Linear(35, 3)).eval()
    with pytest.raises(BnfoldError, match=r"such as --input 3,224,224 \(took the shape of input input: 3,H,W"):
        trace(fixed, tmp_path / "m.pt", ())


# --- free sizes


def test_free_sizes_are_named_and_fold_at_every_size(tmp_path) -> None:
    torch.manual_seed(2)
    module = randomise(loadable.plain(), seed=4)
    module[5], module[6], module[7] = nn.Identity(), nn.Identity(), nn.Identity()
    module.eval()
    program, shapes, note = trace(module, tmp_path / "m.pt", ["3,H,W"])
    assert note is None
    model = export_graph(program, [shape.shape for shape in shapes])
    assert str(model.graph.inputs[0].shape) == "[batch,3,H,W]"
    assert str(model.graph.outputs[0].shape) == "[batch,6,H - 2,W - 2]"
    folded, _ = check_fold(_at(model, 7, 9), kept=0)
    for height, width in ((5, 8), (31, 6)):
        x = torch.randn(3, 3, height, width, dtype=torch.float64)
        truth = evaluate(model, {"input": x.numpy()})["output"]
        np.testing.assert_allclose(truth, module.double()(x).detach(), rtol=0, atol=1e-6)  # float32 epsilon
        np.testing.assert_allclose(
            evaluate(folded, {"input": x.numpy()})["output"], truth, atol=1e-12 * abs(truth).max()
        )


def _at(model, height: int, width: int):
    """The graph as it is, told the sizes that check_fold draws."""
    sizes = {"H": height, "W": width}
    for value in model.graph.inputs:
        value.shape = type(value.shape)([sizes.get(str(dim), dim) for dim in value.shape])
    return model


def test_sizes_that_must_be_multiples_are_told(tmp_path) -> None:
    halving = loadable.Halving().eval()
    program, shapes, note = trace(halving, tmp_path / "m.pt", ["3,H,W"])
    assert note == "H and W must be multiples of 2 for this network; a run with another size fails"
    model = export_graph(program, [shape.shape for shape in shapes])
    assert [str(value.shape) for value in model.graph.inputs] == ["[batch,3,H,W]"]
    halving.double()
    for height, width in ((6, 10), (64, 2)):
        x = torch.randn(3, 3, height, width, dtype=torch.float64)
        truth = halving(x).detach().numpy()
        found = evaluate(model, {"x": x.numpy()})["output"]
        np.testing.assert_allclose(found, truth, atol=1e-12 * abs(truth).max())
    module = nn.Sequential(*(nn.Conv2d(3, 3, 3, stride=2, padding=1) for _ in range(6)), nn.Upsample(scale_factor=64))
    with pytest.raises(BnfoldError, match="H and W must be multiples of 64 for this network; give fixed sizes"):
        trace(_Skip(module).eval(), tmp_path / "m.pt", ["3,H,W"])


class _Skip(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.inner(x)


def test_a_free_size_that_the_network_does_not_take_is_refused(tmp_path) -> None:
    flat = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 96, 2)).eval()
    with pytest.raises(BnfoldError, match="H and W of 32"):
        trace(flat, tmp_path / "m.pt", ["3,H,W"])
    large = nn.Sequential(nn.Conv2d(3, 2, 41), nn.BatchNorm2d(2)).eval()
    with pytest.raises(BnfoldError, match="H and W of 32, the size that the proof uses"):
        trace(large, tmp_path / "m.pt", ["3,H,W"])


def test_two_letters_for_one_size_are_refused(tmp_path) -> None:
    class Added(nn.Module):
        def forward(self, x, y):
            return x + y

    program, shapes, _ = trace(Added(), tmp_path / "m.pt", ["x:L", "y:L"])
    model = export_graph(program, [shape.shape for shape in shapes])
    assert [str(value.shape) for value in (*model.graph.inputs, *model.graph.outputs)] == ["[batch,L]"] * 3
    with pytest.raises(BnfoldError, match="L and M must be equal for this network; use the same letter for"):
        trace(Added(), tmp_path / "m.pt", ["x:L", "y:M"])


# --- several inputs, nested outputs


def test_optional_and_integer_inputs_and_nested_outputs_have_stable_names(tmp_path) -> None:
    torch.manual_seed(1)
    module = randomise(loadable.Nested(), seed=2).eval()
    program, shapes, _ = trace(module, tmp_path / "m.pt", ["word::int64", "image:3,6,5"])
    save_program(program, tmp_path / "reference.pt2")
    names = ["zeta", "aux.logits", "maps_0", "maps_1_0"]
    assert output_names(load_program(tmp_path / "reference.pt2")) == names
    model = export_graph(program, [shape.shape for shape in shapes])
    assert [(v.name, str(v.shape)) for v in model.graph.inputs] == [("image", "[batch,3,6,5]"), ("word", "[batch]")]
    assert [value.name for value in model.graph.outputs] == names
    inputs = {"image": np.random.default_rng(0).standard_normal((4, 3, 6, 5)), "word": np.array([0, 6, 2, 2])}
    given = evaluate(model, inputs)
    truth = loadable.Nested.forward(
        module.double(), torch.from_numpy(inputs["image"]), word=torch.from_numpy(inputs["word"])
    )
    for name, tensor in zip(names, (truth["zeta"], truth["aux"]["logits"], truth["maps"][0], truth["maps"][1][0]),
                            strict=True):  # fmt: skip
        np.testing.assert_allclose(given[name], tensor.detach(), rtol=0, atol=1e-6)


def test_an_optional_argument_that_is_not_given_is_left_out() -> None:
    module = loadable.Nested()
    shapes = arrange(module, [parse_input("image:3,6,5")])
    assert bind(module, shapes) is module


Point = collections.namedtuple("Point", ["x", "y"])


@dataclasses.dataclass
class Scores:
    logits: torch.Tensor
    features: torch.Tensor


torch.utils._pytree.register_dataclass(Scores, serialized_type_name="test_shapes.Scores")


class Giving(nn.Module):
    def __init__(self, give) -> None:
        super().__init__()
        self.body, self.give = nn.Conv1d(2, 3, 1), give

    def forward(self, x):
        return self.give(self.body(x))


@pytest.mark.parametrize(
    ("give", "names"),
    [
        (lambda y: y, ["output"]),
        (lambda y: (y,), ["output"]),
        (lambda y: (y, y + 1), ["output_0", "output_1"]),
        (lambda y: {"b": y, "a": y * 2}, ["b", "a"]),
        (lambda y: {"logits": y}, ["logits"]),
        (lambda y: (y, {"aux": y + 1}), ["output_0", "output_1.aux"]),
        (lambda y: Point(y, y + 1), ["x_", "y"]),  # x is the input
        (lambda y: {"head": Point(y, y + 1)}, ["head.x", "head.y"]),
        (lambda y: Scores(y, y + 1), ["logits", "features"]),
        (lambda y: (y, None), ["output"]),
    ],
)
def test_names_of_outputs(tmp_path, give, names) -> None:
    program = export_program(Giving(give), torch.randn(2, 2, 5))
    assert output_names(program) == [name.removesuffix("_") for name in names]
    save_program(program, tmp_path / "reference.pt2")  # which anyone can open
    assert output_names(load_program(tmp_path / "reference.pt2")) == output_names(program)


def test_outputs_in_the_graph() -> None:
    program = export_program(Giving(lambda y: {"x": y, "conv1d": (y + 1, y)}), torch.randn(2, 2, 5))
    model = export_graph(program)
    assert [value.name for value in model.graph.outputs] == ["x_", "conv1d_0", "conv1d_1"]
    x = np.random.default_rng(1).standard_normal((3, 2, 5))
    outputs = evaluate(model, {"x": x})
    np.testing.assert_array_equal(outputs["x_"] + 1, outputs["conv1d_0"])
    np.testing.assert_array_equal(outputs["x_"], outputs["conv1d_1"])
