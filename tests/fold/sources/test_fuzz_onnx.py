"""`bnfold fold` on mutated `.onnx` files: exit 0, 1 or 2, one line for 2, no traceback, nothing left behind.

`BNFOLD_FUZZ_EXAMPLES=10000 pytest -n 0 tests/fold/sources/test_fuzz_onnx.py` runs ten thousand, each tried in a process
of its own as a user's file is. The few hundred of CI are the same each time; ONNX Runtime loads them in this process,
and their reports are not drawn: both take most of the time, and neither reads the file in another way.
"""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from fold.runtime import Trial
from support.commands import bnfold
from support.onnxfiles import batchnorm, info, network, tensor

BY_HAND = int(os.environ.get("BNFOLD_FUZZ_EXAMPLES", "0"))


def residual() -> onnx.ModelProto:
    """Convolutions with a branch, an activation, a pool and a classifier."""
    node, parameters = batchnorm("c", "b")
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv", pads=[1, 1, 1, 1], kernel_shape=[3, 3]),
        node,
        helper.make_node("Relu", ["b"], ["r"], name="relu"),
        helper.make_node("Conv", ["r", "v"], ["d"], name="second"),
        helper.make_node("Add", ["d", "r"], ["s"], name="sum"),
        helper.make_node("MaxPool", ["s"], ["m"], name="pool", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("GlobalAveragePool", ["m"], ["g"], name="mean"),
        helper.make_node("Flatten", ["g"], ["f"], name="flat", axis=1),
        helper.make_node("Gemm", ["f", "k", "l"], ["y"], name="classes", transB=1),
    ]
    weights = [tensor("w", 4, 3, 3, 3), tensor("v", 4, 4, 1, 1), tensor("k", 5, 4), tensor("l", 5), *parameters]
    graph = helper.make_graph(nodes, "g", [info("x", ("n", 3, 6, 5))], [info("y", ("n", 5))], weights)
    graph.value_info.extend([info("c", ("n", 4, 6, 5)), info("r", ("n", 4, 6, 5))])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def written_out() -> onnx.ModelProto:
    """A MatMul, a BatchNorm taken apart, a Reshape with a constant, and a transposed one."""
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], name="transpose", perm=[0, 2, 1]),
        helper.make_node("MatMul", ["t", "w"], ["a"], name="product"),
        helper.make_node("Mul", ["a", "s"], ["b"], name="times"),
        helper.make_node("Add", ["b", "o"], ["c"], name="plus"),
        helper.make_node("Clip", ["c", "low"], ["d"], name="clip"),
        helper.make_node("Reshape", ["d", "to"], ["e"], name="reshape"),
        helper.make_node("Softmax", ["e"], ["y"], name="softmax", axis=-1),
    ]
    weights = [tensor("w", 3, 4), tensor("s", 4), tensor("o", 4), numpy_helper.from_array(np.float32(0), "low")]
    weights.append(numpy_helper.from_array(np.array([0, -1]), "to"))
    graph = helper.make_graph(nodes, "g", [info("x", ("n", 3, 5))], [info("y", ("n", 20))], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7)


MODELS: list[Callable[[], onnx.ModelProto]] = [network, residual, written_out]
NUMBERS = st.sampled_from([-(2**31), -3, -1, 0, 1, 2, 3, 4, 5, 7, 64, 2**31, 2**40])
TYPES = st.integers(0, 23)
OPERATORS = st.sampled_from(
    ["Relu", "Add", "Mul", "BatchNormalization", "Conv", "Identity", "Sigmoid", "Shape", "Concat", "Transpose", "Cast",
     "Dropout", "Gather", "InstanceNormalization", "Loop", "If", "Constant", "Flatten", "ReduceMean", "Split", "Konv"]
)  # fmt: skip
NAMES = st.sampled_from(["x", "c", "r", "y", "w", "gamma", "", "nowhere", "a\x1b[31m", '"}', "n" * 5000, "é\n", "1"])
FLOATS = st.sampled_from([0.0, -1.0, 1e-45, 1e38, float("inf"), float("nan"), 0.5])

Draw = Callable[[st.SearchStrategy[Any]], Any]


def _node(draw: Draw, graph: onnx.GraphProto) -> onnx.NodeProto | None:
    return graph.node[draw(st.integers(0, len(graph.node) - 1))] if graph.node else None


def _drop(draw: Draw, graph: onnx.GraphProto) -> None:
    part = draw(st.sampled_from([graph.node, graph.initializer, graph.input, graph.output, graph.value_info]))
    if part:
        del part[draw(st.integers(0, len(part) - 1))]


def _duplicate(draw: Draw, graph: onnx.GraphProto) -> None:
    part = draw(st.sampled_from([graph.node, graph.initializer, graph.input, graph.output]))
    if part:
        part.add().CopyFrom(part[draw(st.integers(0, len(part) - 1))])


def _swap(draw: Draw, graph: onnx.GraphProto) -> None:
    order = draw(st.permutations(list(graph.node)))
    del graph.node[:]
    graph.node.extend(order)


def _rewire(draw: Draw, graph: onnx.GraphProto) -> None:
    node = _node(draw, graph)
    if node is not None:
        names = draw(st.sampled_from([node.input, node.output]))
        known = [name for one in graph.node for name in (*one.input, *one.output)]
        name = draw(st.sampled_from(known) | NAMES) if known else draw(NAMES)
        if names and draw(st.booleans()):
            names[draw(st.integers(0, len(names) - 1))] = name
        elif names and draw(st.booleans()):
            del names[draw(st.integers(0, len(names) - 1))]
        else:
            names.append(name)


def _operator(draw: Draw, graph: onnx.GraphProto) -> None:
    node = _node(draw, graph)
    if node is not None:
        node.op_type = draw(OPERATORS)
        node.domain = draw(st.sampled_from(["", "", "ai.onnx", "com.microsoft", "mine"]))


def _attribute(draw: Draw, graph: onnx.GraphProto) -> None:
    node = _node(draw, graph)
    if node is None:
        return
    if node.attribute and draw(st.booleans()):
        one = node.attribute[draw(st.integers(0, len(node.attribute) - 1))]
        name = one.name
        node.attribute.remove(one)
        if draw(st.booleans()):
            return
    else:
        name = draw(
            st.sampled_from(
                ["epsilon", "axis", "perm", "pads", "strides", "group", "kernel_shape", "dilations", "training_mode",
                 "to", "auto_pad", "momentum", "transB", "alpha", "keepdims", "value", "spatial", "noop"]
            )
        )  # fmt: skip
    values = st.lists(NUMBERS, max_size=5) | NUMBERS | FLOATS | st.sampled_from(["SAME_UPPER", "VALID", "x"])
    value = draw(values)
    if value != []:
        node.attribute.append(helper.make_attribute(name, value))


def _dims(draw: Draw, graph: onnx.GraphProto) -> None:
    if graph.initializer and draw(st.booleans()):
        one = graph.initializer[draw(st.integers(0, len(graph.initializer) - 1))]
        if one.dims and draw(st.booleans()):
            one.dims[draw(st.integers(0, len(one.dims) - 1))] = draw(NUMBERS)
        else:
            one.dims[:] = draw(st.lists(NUMBERS, max_size=5))
        return
    part = draw(st.sampled_from([graph.input, graph.output, graph.value_info]))
    if part:
        one = part[draw(st.integers(0, len(part) - 1))]
        shape = draw(st.none() | st.lists(NUMBERS | st.sampled_from(["n", "", "h"]) | st.none(), max_size=5))
        one.CopyFrom(info(one.name, shape, draw(st.just(TensorProto.FLOAT) | TYPES.filter(bool))))


def _data(draw: Draw, graph: onnx.GraphProto) -> None:
    """Another value or another length of a weight, or the same weight in another field."""
    if not graph.initializer:
        return
    one = graph.initializer[draw(st.integers(0, len(graph.initializer) - 1))]
    raw = bytearray(one.raw_data)
    what = draw(st.sampled_from(["float", "byte", "cut", "empty", "type", "field", "external"]))
    if what == "float" and len(raw) >= 4:
        at = 4 * draw(st.integers(0, len(raw) // 4 - 1))
        raw[at : at + 4] = np.float32(draw(FLOATS)).tobytes()
        one.raw_data = bytes(raw)
    elif what == "byte" and raw:
        raw[draw(st.integers(0, len(raw) - 1))] = draw(st.integers(0, 255))
        one.raw_data = bytes(raw)
    elif what == "cut":
        one.raw_data = bytes(raw[: draw(st.integers(0, len(raw)))])
    elif what == "empty":
        one.ClearField("raw_data")
    elif what == "type":
        one.data_type = draw(TYPES | st.just(99))
    elif what == "field":
        one.ClearField("raw_data")
        one.float_data.extend(draw(st.lists(FLOATS, max_size=8)))
    else:
        one.data_location = TensorProto.EXTERNAL
        one.external_data.add(key="location", value=draw(st.sampled_from(["net.onnx", "none", "../x", "/dev/zero"])))
        one.external_data.add(key="length", value=draw(st.sampled_from(["16", "-1", "ten", "99999999999"])))


def _name(draw: Draw, graph: onnx.GraphProto) -> None:
    part = draw(st.sampled_from([graph.node, graph.initializer, graph.input, graph.output]))
    if part:
        part[draw(st.integers(0, len(part) - 1))].name = draw(NAMES)


def _as_input(draw: Draw, graph: onnx.GraphProto) -> None:
    if graph.initializer:
        one = graph.initializer[draw(st.integers(0, len(graph.initializer) - 1))]
        graph.input.append(info(one.name, tuple(one.dims)))


MUTATIONS = (_drop, _duplicate, _swap, _rewire, _operator, _attribute, _dims, _data, _name, _as_input)


@st.composite
def mutated(draw: Draw) -> onnx.ModelProto:
    """A model with one to three changes, and perhaps another opset or IR version."""
    model = draw(st.sampled_from(MODELS))()
    for mutate in draw(st.lists(st.sampled_from(MUTATIONS), min_size=1, max_size=3)):
        mutate(draw, model.graph)
    if draw(st.integers(0, 4)) == 0:
        model.opset_import[0].version = draw(st.sampled_from([-1, 0, 1, 6, 7, 9, 12, 13, 15, 18, 22, 99]))
    if draw(st.integers(0, 4)) == 0:
        model.ir_version = draw(st.sampled_from([0, 2, 3, 4, 7, 10, 99]))
    return model


@pytest.fixture(scope="module", autouse=True)
def without_a_report():
    with mock.patch("fold.sources.onnx.Trial", Trial) if BY_HAND else mock.patch("fold.convert.write_html"):
        yield


@settings(
    max_examples=BY_HAND or 150,
    derandomize=not BY_HAND,
    phases=[Phase.generate],
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@given(mutated())
def test_any_file_ends_in_a_verdict_or_one_line(model) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.onnx"
        path.write_bytes(model.SerializeToString())
        with mock.patch.dict(os.environ, {"BNFOLD_MAX_INPUT_ELEMENTS": "100000", "BNFOLD_MAX_RUN_SECONDS": "60"}):
            done = bnfold("fold", path, "--out", Path(folder) / "repository", "--samples", 1)
        assert done.returncode in (0, 1, 2), done.stderr
        assert "Traceback" not in done.stderr
        assert "\x1b" not in done.stderr
        if done.returncode == 2:
            assert len(done.stderr.splitlines()) == 1, done.stderr
            assert ".incoming" not in done.stderr
            assert len(done.stderr) < 3000
        assert not list(Path(folder).rglob(".incoming*"))
        shutil.rmtree(folder, ignore_errors=True)
        os.mkdir(folder)
