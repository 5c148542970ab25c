"""A small network as an `.onnx` in parts, for tests that spoil it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Shape = Sequence[int | str | None] | None
IMAGE: Shape = ("n", 3, 6, 5)


def info(name: str, shape: Shape, kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def tensor(name: str, *shape: int) -> onnx.TensorProto:
    random = np.random.default_rng(sum(map(ord, name)))
    return numpy_helper.from_array(random.uniform(0.2, 1.5, shape).astype(np.float32), name)


def batchnorm(x: str, y: str, channels: int = 4) -> tuple[onnx.NodeProto, list[onnx.TensorProto]]:
    """A BatchNormalization named `bn`, and its parameters."""
    parameters = [tensor(name, channels) for name in ("gamma", "beta", "mean", "var")]
    return helper.make_node("BatchNormalization", [x, *(one.name for one in parameters)], [y], name="bn"), parameters


def network(
    *behind: onnx.NodeProto, outputs: Sequence[onnx.ValueInfoProto] = (), opset: int = 17, ir_version: int = 8
) -> onnx.ModelProto:
    """Conv and BatchNorm, from `x` to `y`, and the nodes `behind` them; the output is `y` if none is given."""
    node, parameters = batchnorm("c", "y")
    conv = helper.make_node("Conv", ["x", "w"], ["c"], name="conv")
    given = list(outputs) or [info("y", ("n", 4, 4, 3))]
    graph = helper.make_graph(
        [conv, node, *behind], "g", [info("x", IMAGE)], given, [tensor("w", 4, 3, 3, 3), *parameters]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)


def rename(model: onnx.ModelProto, old: str, new: str) -> onnx.ModelProto:
    """The same model with another name of one tensor."""
    graph = model.graph
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [new if name == old else name for name in names]
    for value in (*graph.input, *graph.output, *graph.initializer):
        value.name = new if value.name == old else value.name
    return model


def external(model: onnx.ModelProto, **where: str | int) -> onnx.ModelProto:
    """The first weight in another file; `where` are its location, offset and length."""
    first = model.graph.initializer[0]
    first.ClearField("raw_data")
    first.data_location = TensorProto.EXTERNAL
    for key, value in where.items():
        first.external_data.add(key=key, value=str(value))
    return model


def write(model: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "net.onnx"
    path.write_bytes(model.SerializeToString())
    return path
