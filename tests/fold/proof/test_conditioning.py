"""Part A where the unfolded model itself amplifies rounding: a mean of a large offset takes digits from float64.

The truth is computed in rational numbers. The variance is 4 and ε is 0, so that no root is irrational.
"""

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from fold.artifact import tensor_specs
from fold.engine import fold_graph
from fold.evaluate import Evaluator
from fold.proof import check_algebra, find_answers, find_truth
from support.commands import bnfold
from support.onnxfiles import info, write

CHANNELS = 4


def network(offset: float) -> onnx.ModelProto:
    """A convolution with a bias near `offset`, a BatchNorm whose mean is near it, and a Relu."""
    random = np.random.default_rng(7)
    bias = np.float32(offset) * np.float32([1, -1, 1, 2])
    weights = {
        "w": random.standard_normal((CHANNELS, 3, 3, 3)),
        "b": bias,
        "gamma": random.uniform(0.5, 2, CHANNELS),
        "beta": random.standard_normal(CHANNELS),
        "mean": bias + random.standard_normal(CHANNELS),
        "var": np.full(CHANNELS, 4),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"]),
        helper.make_node("BatchNormalization", ["c", "gamma", "beta", "mean", "var"], ["y"], epsilon=0.0, name="bn"),
        helper.make_node("Relu", ["y"], ["z"]),
    ]
    held = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()]
    outputs = [info(name, ("n", CHANNELS, 3, 3)) for name in ("y", "z")]
    graph = helper.make_graph(nodes, "g", [info("x", ("n", 3, 5, 5))], outputs, held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def exactly(proto: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    """Output `y` of the network in rational numbers, as float64."""
    held = {one.name: numpy_helper.to_array(one) for one in proto.graph.initializer}
    w, b, gamma, beta, mean, _ = ([*map(Fraction, array.reshape(-1).tolist())] for array in held.values())
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(2, 3)).transpose(0, 2, 3, 1, 4, 5)
    columns = windows.reshape(-1, len(w) // CHANNELS)
    y = np.empty((len(columns), CHANNELS))
    for row, column in enumerate(columns):
        read = [Fraction(number) for number in column.tolist()]
        for k in range(CHANNELS):
            sum_ = sum((p * q for p, q in zip(w[k * len(read) :], read, strict=False)), b[k])
            y[row, k] = (sum_ - mean[k]) / 2 * gamma[k] + beta[k]
    return y.reshape(len(x), 3, 3, CHANNELS).transpose(0, 3, 1, 2)


def fold(path: Path, folder: Path) -> tuple[int, dict, str]:
    done = bnfold("fold", path, "--out", folder / "repository", "--samples", 4, "--json")
    return done.returncode, json.loads(done.stdout)["verdict"], done.stderr


def test_a_right_fold_of_a_model_that_amplifies_rounding_is_published(tmp_path) -> None:
    code, verdict, err = fold(write(network(1e6), tmp_path), tmp_path)
    assert code == 0, err
    algebra = verdict["algebra"]
    for family in algebra["families"]:
        if family["name"] != "offset":  # its outputs are large
            assert algebra["limit"] < family["difference"] <= family["limit"] < 1e-6


def test_the_difference_is_the_unfolded_models_own_rounding() -> None:
    proto = network(1e6)
    model = ir.from_proto(proto)
    truth = find_truth(model, tensor_specs(model.graph.inputs), 0)
    folded = find_answers(Evaluator(fold_graph(model, exact=True).model), truth.inputs)
    for name, (inputs, outputs) in truth.families.items():
        right = exactly(proto, inputs["x"].astype(np.float64))
        errors = {
            which: np.abs(y - right).max()
            for which, y in (("unfolded", outputs["y"]), ("folded", folded[name][1]["y"]))
        }
        assert 10 * errors["folded"] < errors["unfolded"]


@pytest.mark.parametrize(("offset", "fault"), [(1e6, 1e-5), (0.0, 1e-9)])
def test_a_fault_is_caught_nevertheless(offset, fault) -> None:
    """A factor of one channel, as small as it would show beside that rounding; without an offset a far smaller one."""
    model = ir.from_proto(network(offset))
    truth = find_truth(model, tensor_specs(model.graph.inputs), 0)
    exact = fold_graph(model, exact=True).model
    kernel = next(value for value in exact.graph.initializers.values() if len(value.shape or ()) == 4)
    assert kernel.const_value is not None
    wrong = kernel.const_value.numpy().copy()
    wrong[1] *= 1 + fault
    kernel.const_value = ir.tensor(wrong)
    algebra = check_algebra(truth, find_answers(Evaluator(exact), truth.inputs), lambda: model)
    assert not algebra
    assert "algebra does not hold" in algebra.failure
    assert not any(algebra.families)


def test_a_model_that_keeps_no_digit_is_not_proven(tmp_path) -> None:
    code, verdict, _ = fold(write(network(1e14), tmp_path), tmp_path)
    assert code == 1
    assert "algebra proves nothing; rounding in float64 alone moves output" in verdict["message"]
    assert verdict["located"] is None
    assert not list((tmp_path / "repository" / "net").glob("[0-9]*"))
