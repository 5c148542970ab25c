"""What the sweep of operators (test_operators_sweep.py) does not vary: blocks of a convolution, fillings of a Pad, and
exactness of cubic weights."""

import numpy as np
import onnx_ir as ir
import pytest

from fold.errors import BnfoldError
from fold.evaluate.float64 import evaluate
from fold.evaluate.operators import windows
from fold.runtime.session import open_session, run
from support.folding import GraphBuilder


def check(shape, op, *constants, opset=20, outputs=1, **attributes) -> None:
    """The evaluator's float64 against float32 of ONNX Runtime, on small whole numbers: shapes equal, values nearly."""
    g = GraphBuilder(*shape, opset=opset)
    g.x.type = ir.TensorType(ir.DataType.FLOAT)
    read = [None if array is None else g.constant(array) for array in constants]
    g.op(op, g.x, *read, outputs=outputs, **attributes)
    values = list(g.nodes[-1].outputs)
    for value, dtype in zip(values, (ir.DataType.FLOAT, ir.DataType.INT64), strict=False):
        value.type = ir.TensorType(dtype)
    model = g.finish(*values)
    x = {"x": np.random.default_rng(0).integers(-9, 10, shape).astype(np.float32)}
    expected = run(open_session(ir.to_proto(model).SerializeToString(), provider="cpu"), x)
    actual = evaluate(model, x)
    for name, array in expected.items():
        assert actual[name].dtype == (np.int64 if array.dtype == np.int64 else np.float64)
        np.testing.assert_allclose(actual[name], array, rtol=0, atol=1e-4)


CONVOLUTIONS = [
    {"pads": [1, 0, 2, 0, 1, 1]},
    {"strides": [2, 3, 1], "pads": [1, 1, 0, 1, 0, 2]},
    {"dilations": [2, 1, 2], "strides": [1, 2, 1]},
    {"auto_pad": "SAME_UPPER", "strides": [2, 1, 3]},
    {"auto_pad": "SAME_LOWER", "strides": [2, 2, 2]},
    {"auto_pad": "VALID"},
    {},
]


@pytest.mark.parametrize("block", [1, 100, 700, 2**20])
@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("attributes", CONVOLUTIONS, ids=str)
def test_convolutions(attributes, rank, block, monkeypatch) -> None:
    """In blocks of any size: a row of the output, some of them, a whole image, the batch."""
    monkeypatch.setattr(windows, "BLOCK", block)
    cut = {}
    for name, value in attributes.items():
        behind = value[3 : 3 + rank] if name == "pads" else []
        cut[name] = value[:rank] + behind if isinstance(value, list) else value
    random = np.random.default_rng(1)
    for groups, kernel, bias in (
        (1, (3, 2, 3), True),
        (2, (3, 2, 3), False),
        (6, (2, 3, 2), True),
        (1, (1, 1, 1), True),
    ):
        W = random.integers(-4, 5, (12, 6 // groups, *kernel[:rank])).astype(np.float32)
        B = random.integers(-4, 5, 12).astype(np.float32)
        check((3, 6, *(8, 7, 6)[:rank]), "Conv", W, *([B] if bias else []), group=groups, **cut)


def test_a_convolution_of_other_channels_is_refused() -> None:
    g = GraphBuilder("n", "c", 5, 4)
    y = g.op("Conv", g.x, g.normal(6, 3, 2, 2), group=2)
    with pytest.raises(BnfoldError, match="2 x 3 channels reads 4"):
        evaluate(g.finish(y), {"x": np.zeros((1, 4, 5, 4))})


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge", "wrap"])
def test_padding_and_cropping(mode) -> None:
    for pads in ([0, 0, 1, 2, 0, 0, 2, 1], [0, 1, -1, 0, 0, 1, 0, -2]):
        check((2, 3, 5, 6), "Pad", np.array(pads), mode=mode)
    check((2, 3, 5, 6), "Pad", np.array([1, -2, 2, 1]), None, np.array([-1, 2]), mode=mode)
    check((2, 3, 5, 6), "Pad", opset=10, pads=[0, 0, 1, 2, 0, 0, 2, 1], **({} if mode == "wrap" else {"mode": mode}))


@pytest.mark.parametrize("filling", [1.5, -np.inf])
def test_padding_with_a_number(filling) -> None:
    check((2, 3, 5, 6), "Pad", np.array([0, 0, 1, 2, 0, 0, 2, 1]), np.array(filling, np.float32))
    if np.isfinite(filling):
        check((2, 3, 5, 6), "Pad", opset=10, pads=[0, 1, 1, 2, 0, 0, 2, 1], value=filling)


def test_cubic_weights_sum_to_one_in_float64() -> None:
    g = GraphBuilder(1, 1, 4, 5)
    y = g.op("Resize", g.x, None, g.constant(np.array([1, 1, 1.3, 2], np.float32)), mode="cubic")
    (resized,) = evaluate(g.finish(y), {"x": np.ones((1, 1, 4, 5))}).values()
    np.testing.assert_allclose(resized, 1, rtol=0, atol=1e-14)
