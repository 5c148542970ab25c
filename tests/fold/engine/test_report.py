"""What a kept BatchNorm still costs: passes over its tensor, and the bytes that these move for a given input size."""

import json
import re

import numpy as np
import onnx_ir as ir
import pytest

import fold
from fold.engine.report import Kept, TensorSize

BATCHNORM = "v = BatchNormalization(x, gamma, beta, mean, variance)"
ITEMSIZE = {"float": 4, "float16": 2, "bfloat16": 2, "double": 8}


def kept(nodes: str, x: str, dtype: str = "float") -> Kept:
    """The one BatchNorm that stays between an input and a Tanh."""
    by_channel = {name: [[[2.0]], [[-3.0]], [[n]]] for n, name in enumerate("abcd", start=5)}
    statistics = {"gamma": [1.0, -2.0, 3.0], "beta": [1.0, 2.0, 4.0], "mean": [-1.0, 1.0, 2.0], "variance": [1.0, 2, 3]}
    stored = ir.DataType[dtype.upper()].numpy()
    tensors = [
        ir.tensor(np.array(numbers, stored), name=name)
        for name, numbers in {**by_channel, **statistics}.items()
        if re.search(rf"\b{name}\b", nodes)
    ]
    declared = ", ".join(f"{dtype}{list(tensor.shape)} {tensor.name}" for tensor in tensors)
    text = (
        f'<ir_version: 10, opset_import: ["": 20]> g ({dtype}[{x}] x) => ({dtype}[{x}] y) <{declared}>'
        f"{{ {nodes} y = Tanh(v) }}"
    )
    _, report = fold.fold_model(ir.from_onnx_text(text, initializers=tensors))
    (entry,) = report.kept
    assert "cannot move" in entry.reason or "not known" in entry.reason
    assert report.to_dict()["kept"] == [entry.to_dict()]
    json.dumps(report.to_dict())
    return entry


@pytest.mark.parametrize("dtype", ITEMSIZE)
def test_a_pass_reads_and_writes_every_element(dtype) -> None:
    entry = kept(BATCHNORM, "2, 3, 5, 7", dtype)
    assert entry.passes == 1
    assert entry.bytes_moved() == 2 * (2 * 3 * 5 * 7) * ITEMSIZE[dtype]


def test_a_free_batch_counts_one_row_unless_its_size_is_given() -> None:
    entry = kept(BATCHNORM, "n, 3, 5, 7")
    row = 2 * (3 * 5 * 7) * 4
    assert entry.bytes_moved() == row
    assert entry.bytes_moved(n=8) == 8 * row
    assert entry.bytes_moved(batch=8) == row  # its name is n
    assert {key: entry.to_dict()[key] for key in ("passes", "bytes_per_row")} == {"passes": 1, "bytes_per_row": row}


def test_sizes_of_other_free_dimensions_must_be_given() -> None:
    entry = kept(BATCHNORM, "n, 3, h, w")
    assert entry.bytes_moved() is None
    assert entry.bytes_moved(n=2, h=5) is None
    assert entry.bytes_moved(h=5, w=7) == 2 * (3 * 5 * 7) * 4
    assert entry.bytes_moved(n=2, h=5, w=7) == 2 * (2 * 3 * 5 * 7) * 4
    assert entry.to_dict()["bytes_per_row"] is None


def test_a_tensor_without_a_shape_has_no_size() -> None:
    nodes = (
        "s = Shape(x) z = NonZero(s) axis = Constant <value_ints = [0]> () i = Squeeze(z, axis) k = Gather(s, i)"
        "u = Reshape(x, k) v = BatchNormalization(u, gamma, beta, mean, variance)"
    )
    entry = kept(nodes, "n, 3, 5, 7")
    assert entry.tensor == TensorSize(None, 4)
    assert entry.bytes_moved(n=2) is None


@pytest.mark.parametrize(
    ("nodes", "passes"),
    [
        ("t = Mul(x, a) v = Add(t, b)", 2),
        ("p = Sub(x, a) q = Div(p, b) t = Mul(q, c) v = Add(t, d)", 4),
    ],
)
def test_one_that_is_written_out_passes_once_for_each_operator(nodes, passes) -> None:
    entry = kept(nodes, "n, 3, 5, 7")
    assert entry.passes == passes
    assert entry.bytes_moved(n=2) == passes * 2 * (2 * 3 * 5 * 7) * 4


def test_one_that_is_written_out_and_changes_counts_what_is_left_of_it() -> None:
    """It takes up the BatchNorm before it, and of its four operators a product and a sum are left."""
    nodes = (
        "u = BatchNormalization(x, gamma, beta, mean, variance)p = Sub(u, a) q = Div(p, b) t = Mul(q, c) v = Add(t, d)"
    )
    assert kept(nodes, "n, 3, 5, 7").passes == 2
