"""Published networks for a GPU that computes nothing: their numbers are wrong there, so they have no canary."""

from pathlib import Path

import numpy as np
from onnx import TensorProto, helper

from benchmarks.convolutions import convolutions
from fold.artifact import ModelVersion, read_version
from support.service.served import publish

CONVOLUTIONS = 5
SHAPE = (4, 8, 8)


def chain(repository: Path, precision: str = "fp32", *, depthwise: bool = False) -> ModelVersion:
    """`y`: `CONVOLUTIONS` convolutions, one after another, in `precision`. `same` is a copy of the input, and copies
    are real. All are float32."""
    model = convolutions(CONVOLUTIONS, *SHAPE[:2], depthwise=depthwise, half=precision == "fp16")
    model.graph.node.append(helper.make_node("Identity", ["x"], ["same"]))
    model.graph.output.append(helper.make_tensor_value_info("same", TensorProto.FLOAT, ["n", *SHAPE]))
    given, *computed = [(name, "FP32", -1, *SHAPE) for name in ("x", "y", "same")]
    publish(repository, precision, model, [given], computed, fold={"precision": {"type": precision}})
    return read_version(repository / precision / "1")


def rows(count: int, seed: int = 0) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(seed).standard_normal((count, *SHAPE)).astype(np.float32)}
