"""Graphs of convolutions alone, for what concerns the runtime and not a network."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def convolutions(
    layers: int, channels: int, size: int, *, kernel: int = 3, depthwise: bool = False, half: bool = False
) -> onnx.ModelProto:
    """From `x` to `y`, both float32 of N×channels×size×size; with `half` all layers are float16. The weights are random
    and keep the numbers' size."""
    dtype = np.dtype(np.float16 if half else np.float32)
    group = channels if depthwise else 1
    shape = (channels, channels // group, kernel, kernel)
    random = np.random.default_rng(1)
    names, weights = ["h0"], []
    nodes = [helper.make_node("Cast", ["x"], ["h0"], to=helper.np_dtype_to_tensor_dtype(dtype))]
    for layer in range(layers):
        weight = (random.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(dtype)
        weights.append(numpy_helper.from_array(weight, f"w{layer}"))
        names.append(f"h{layer + 1}")
        pads = [kernel // 2] * 4
        nodes.append(helper.make_node("Conv", [names[-2], f"w{layer}"], [names[-1]], group=group, pads=pads))
    nodes.append(helper.make_node("Cast", [names[-1]], ["y"], to=TensorProto.FLOAT))
    given, computed = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", channels, size, size]) for name in "xy"
    )
    graph = helper.make_graph(nodes, "convolutions", [given], [computed], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
