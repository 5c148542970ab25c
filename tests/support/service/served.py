"""Small models made by hand, each there for one thing.

`net` is a network with a folded BatchNorm and a proof, `echo` has every datatype that numpy has, `text` strings and
`upper` bfloat16, `slow` computes for as long as its input says, `pick` fails for indices out of range, `free` has a
free dimension, `single` no batch axis, `pair` two inputs and two outputs, `broken` a changed byte.
"""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from fold.artifact.directory import new_version, write_manifest
from fold.artifact.manifest import DATATYPES, Manifest, Preprocessing, TensorSpec

ELEMENTS = {name: helper.np_dtype_to_tensor_dtype(dtype) for name, dtype in DATATYPES.items()}
ELEMENTS |= {"BYTES": TensorProto.STRING, "BF16": TensorProto.BFLOAT16}
LABELS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def graph_of(
    nodes: list[onnx.NodeProto], inputs: list[Any], outputs: list[Any], weights: dict[str, np.ndarray] | None = None
) -> onnx.ModelProto:
    def info(name: str, datatype: str, *shape: int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, ELEMENTS[datatype], ["n" if s == -1 else s for s in shape])

    initializers = [numpy_helper.from_array(np.asarray(array), name) for name, array in (weights or {}).items()]
    graph = helper.make_graph(nodes, "graph", [info(*i) for i in inputs], [info(*o) for o in outputs], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def publish(
    repository: Path, name: str, model: onnx.ModelProto, inputs: list[Any], outputs: list[Any], **manifest: Any
) -> None:
    version = manifest.pop("version", 1)
    reference = manifest.pop("reference", model)
    with new_version(repository, name, version) as folder:
        onnx.save(model, folder / "model.onnx")
        onnx.save(reference, folder / "unfolded.onnx")
        verdict = {"equivalent": True, "message": "equivalent over 16 samples"}
        content: dict[str, Any] = {"source": {}, "fold": {}, "verdict": verdict, "versions": {}, **manifest}
        write_manifest(
            folder,
            Manifest(
                name=name,
                version=str(version),
                created="2025-01-01T00:00:00Z",
                reference="unfolded.onnx",
                inputs=tuple(TensorSpec(name=n, datatype=d, shape=s) for n, d, *s in inputs),
                outputs=tuple(TensorSpec(name=n, datatype=d, shape=s) for n, d, *s in outputs),
                **content,
            ),
        )


def net(repository: Path, name: str = "net", *, wrong: bool = False, other: bool = False, version: int = 1) -> None:
    """Conv, BN, Relu, pooling and a classifier; `wrong` makes the folded weights those of another network, `other`
    makes the reference one that takes no such input."""
    random = np.random.default_rng(7)
    w, g = random.normal(size=(8, 1, 3, 3)), random.normal(size=(8, 10))
    gamma, beta, mean = (random.normal(size=8) for _ in range(3))
    var = random.uniform(0.5, 2, size=8)
    scale = gamma / np.sqrt(var + 1e-5)
    inputs, outputs = [("image", "FP32", -1, 1, 8, 8)], [("scores", "FP32", -1, 10)]
    tail = [
        helper.make_node("Relu", ["b"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "g"], ["scores"]),
    ]
    conv = helper.make_node("Conv", ["image", "w"], ["c"], pads=[1, 1, 1, 1])
    norm = helper.make_node("BatchNormalization", ["c", "gamma", "beta", "mean", "var"], ["b"], epsilon=1e-5)
    statistics = {"gamma": gamma, "beta": beta, "mean": mean, "var": var}
    single = {key: value.astype(np.float32) for key, value in {"w": w, "g": g, **statistics}.items()}
    unfolded = graph_of([conv, norm, *tail], inputs, outputs, single)
    if other:
        given = [("image", "FP32", -1, 3, 8, 8)]
        unfolded = graph_of([conv, norm, *tail], given, outputs, {**single, "w": np.ones((8, 3, 3, 3), np.float32)})
    folded_conv = helper.make_node("Conv", ["image", "w", "bias"], ["b"], pads=[1, 1, 1, 1])
    folded = {"w": w * scale[:, None, None, None], "bias": beta - scale * mean + (0.01 if wrong else 0), "g": g}
    publish(
        repository,
        name,
        graph_of([folded_conv, *tail], inputs, outputs, {key: v.astype(np.float32) for key, v in folded.items()}),
        inputs,
        outputs,
        reference=unfolded,
        labels=LABELS,
        preprocessing=Preprocessing(input="image", mode="L", height=8, width=8, mean=(0.5,), std=(0.25,)),
        fold={"batchnorms": 1, "folded": [{"name": "bn", "node": "b", "channels": 8, "into": ["w"]}], "kept": []},
        version=version,
    )


def echo(repository: Path) -> None:
    inputs = [(name.lower(), name, -1, 3) for name in DATATYPES]
    outputs = [(f"{name.lower()}_out", name, -1, 3) for name in DATATYPES]
    nodes = [helper.make_node("Identity", [i[0]], [o[0]]) for i, o in zip(inputs, outputs, strict=True)]
    publish(repository, "echo", graph_of(nodes, inputs, outputs), inputs, outputs)


def slow(repository: Path, *, quick: bool = False, rows: int = -1) -> None:
    """y = x, after as many thousand steps of a loop as the largest x says; `quick` leaves the loop to the reference.
    With fixed `rows` it has no batch axis."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["more"], ["still"]), helper.make_node("Sin", ["v"], ["next"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("more", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v", TensorProto.FLOAT, [1]),
        ],
        [
            helper.make_tensor_value_info("still", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, [1]),
        ],
    )
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["most"], keepdims=0),
        helper.make_node("Mul", ["most", "thousand"], ["steps"]),
        helper.make_node("Cast", ["steps"], ["trips"], to=TensorProto.INT64),
        helper.make_node("Loop", ["trips", "true", "one"], ["end"], body=body),
        helper.make_node("Mul", ["end", "zero"], ["nothing"]),
        helper.make_node("Add", ["x", "nothing"], ["y"]),
    ]
    weights = {
        "thousand": np.float32(1000),
        "true": np.array(True),
        "one": np.ones(1, np.float32),
        "zero": np.zeros(1, np.float32),
    }
    inputs, outputs = [("x", "FP32", rows, 1)], [("y", "FP32", rows, 1)]
    whole = graph_of(nodes, inputs, outputs, weights)
    served = graph_of([helper.make_node("Identity", ["x"], ["y"])], inputs, outputs) if quick else whole
    publish(repository, "slow", served, inputs, outputs, reference=whole)


def others(repository: Path) -> None:
    inputs, outputs = [("index", "INT64", -1)], [("value", "FP32", -1)]
    gather = [helper.make_node("Gather", ["table", "index"], ["value"])]
    table = {"table": np.arange(10, dtype=np.float32) / 4}
    publish(repository, "pick", graph_of(gather, inputs, outputs, table), inputs, outputs)

    inputs, outputs = [("x", "FP32", -1, -1)], [("total", "FP32", -1)]
    total = [helper.make_node("ReduceSum", ["x", "axis"], ["total"], keepdims=0)]
    publish(repository, "free", graph_of(total, inputs, outputs, {"axis": np.array([1])}), inputs, outputs)

    inputs, outputs = [("x", "FP32", 4)], [("y", "FP32", 4)]
    twice = [helper.make_node("Add", ["x", "x"], ["y"])]
    publish(repository, "single", graph_of(twice, inputs, outputs), inputs, outputs)

    inputs, outputs = (
        [("a", "FP32", -1, 2), ("b", "FP32", -1, 2)],
        [("sum", "FP32", -1, 2), ("difference", "FP32", -1, 2)],
    )
    both = [helper.make_node("Add", ["a", "b"], ["sum"]), helper.make_node("Sub", ["a", "b"], ["difference"])]
    publish(repository, "pair", graph_of(both, inputs, outputs), inputs, outputs)


def kinds(repository: Path) -> None:
    """What numpy has no datatype for. `upper` gives its input back, and as FP32; `text` puts a mark behind strings."""
    inputs, outputs = [("x", "BF16", -1, 3)], [("y", "BF16", -1, 3), ("wide", "FP32", -1, 3)]
    nodes = [
        helper.make_node("Identity", ["x"], ["y"]),
        helper.make_node("Cast", ["x"], ["wide"], to=TensorProto.FLOAT),
    ]
    publish(repository, "upper", graph_of(nodes, inputs, outputs), inputs, outputs)

    inputs, outputs = [("x", "BYTES", -1, 2)], [("y", "BYTES", -1, 2)]
    mark = helper.make_node("Constant", [], ["mark"], value_strings=["!"])
    nodes = [mark, helper.make_node("StringConcat", ["x", "mark"], ["y"])]
    publish(repository, "text", graph_of(nodes, inputs, outputs), inputs, outputs)


def broken(repository: Path) -> None:
    net(repository, "broken")
    file = repository / "broken" / "1" / "model.onnx"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
