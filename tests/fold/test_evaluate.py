"""The float64 evaluator against ONNX Runtime, on small whole numbers, for which both are exact."""

import numpy as np
import onnx_ir as ir
import pytest
from folding import GraphBuilder

from fold.evaluate import evaluate
from fold.runtime import open_session, run


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"strides": [2, 3], "pads": [1, 0, 0, 2], "output_padding": [1, 0]},
        {"strides": [2, 2], "dilations": [2, 1]},
        {"strides": [2, 3], "auto_pad": "SAME_UPPER"},
        {"strides": [2, 3], "auto_pad": "SAME_LOWER"},
        {"strides": [2, 2], "output_shape": [8, 11]},
    ],
    ids=str,
)
def test_transposed_convolution(groups, attributes) -> None:
    random = np.random.default_rng(0)
    g = GraphBuilder("n", 4, 5, 6)
    W = g.constant(random.integers(-4, 5, (4, 6 // groups, 3, 2)).astype(np.float32))
    B = g.constant(random.integers(-4, 5, 6).astype(np.float32))
    y = g.op("ConvTranspose", g.x, W, B, group=groups, **attributes)
    g.x.type = ir.TensorType(ir.DataType.FLOAT)
    y.type = ir.TensorType(ir.DataType.FLOAT)
    model = g.finish(y)
    x = {"x": random.integers(-4, 5, (2, 4, 5, 6)).astype(np.float32)}
    (expected,) = run(open_session(ir.to_proto(model).SerializeToString(), provider="cpu"), x).values()
    (actual,) = evaluate(model, x).values()
    assert actual.dtype == np.float64
    np.testing.assert_array_equal(actual, expected)
