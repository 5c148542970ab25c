"""Small graphs in which a BatchNorm is kept for one reason each."""

import re
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx_ir as ir

from fold.engine.reasons import BlockedPart, Code


@dataclass(frozen=True)
class Case:
    """A graph, in which `BN(u)` is a BatchNormalization of u with random statistics, and why one of them is kept.

    `tensors` are constants, or the shapes of random ones, and `W` is a 1×1 kernel of 4 channels; `gamma` is repeated
    over the `channels`, of which the first two are equal if they are `twins`. `inferred` are types that shape inference
    does not find. A graph that cannot be compared in float64 must come out `unchanged`.
    """

    code: Code
    culprit: str
    nodes: str
    tensors: dict[str, object] = field(default_factory=dict)
    x: str = "n, 4, 6, 7"
    gamma: tuple[float, ...] = (1.5, -0.7, 0.4, -2.0)
    channels: int = 4
    twins: bool = False
    inferred: str = ""
    dtype: str = "double"
    unchanged: bool = False
    blocked: BlockedPart | None = None

    def model(self) -> ir.Model:
        random = np.random.default_rng(0)
        arrays = {
            name: random.standard_normal(given) if isinstance(given, tuple) else np.asarray(given)
            for name, given in {"W": (4, 4, 1, 1), **self.tensors}.items()
        }

        def batchnorm(match: re.Match[str]) -> str:
            output, u = match.groups()
            gamma, variance = np.resize(self.gamma, self.channels), random.uniform(0.1, 3, self.channels)
            if self.twins:
                gamma[1], variance[1] = gamma[0], variance[0]
            beta, mean = random.standard_normal((2, self.channels))
            parameters = {"gamma": gamma, "beta": beta, "mean": mean, "variance": variance}
            arrays.update({f"{output}_{name}": array for name, array in parameters.items()})
            return f"{output} = BatchNormalization({u}, {', '.join(f'{output}_{name}' for name in parameters)})"

        nodes = re.sub(r"(\w+) = BN\((\w+)\)", batchnorm, self.nodes)
        proto = onnx.parser.parse_model(
            f'<ir_version: 10, opset_import: ["": 20]>'
            f"g ({self.dtype}[{self.x}] x) => ({self.dtype} y) <{self.inferred}> {{ {nodes} }}"
        )
        proto.graph.output[0].type.tensor_type.ClearField("shape")
        for name, array in arrays.items():
            wide = array.dtype == np.float64 and self.dtype != "double"
            proto.graph.initializer.append(
                onnx.numpy_helper.from_array(array.astype(self.dtype) if wide else array, name)
            )
        return ir.from_proto(onnx.shape_inference.infer_shapes(proto, strict_mode=True))


def float32(*numbers: float) -> np.ndarray:
    return np.array(numbers, np.float32)


def itself(code: Code, nodes: str, culprit: str = "y", **rest: object) -> Case:
    return Case(code, culprit, nodes, **rest)  # type: ignore[arg-type]


def shifted(code: Code, culprit: str, nodes: str, **rest: object) -> Case:
    """Behind a ReLU, which lets the scale of v move but no shift: who asks something of v's shift is named."""
    nodes = f"c = Conv(x, W) r = Relu(c) v = BN(r) {nodes}"
    return Case(code, culprit, nodes, gamma=(0.5, 2.0, 0.3, 1.0), blocked=BlockedPart.SHIFT, **rest)  # type: ignore[arg-type]


def uniform(code: Code, culprit: str, nodes: str, **rest: object) -> Case:
    """All channels of u are one: who asks for one gauge over v's channels, which differ, is named."""
    nodes = f"c = Conv(x, W) u = Gather <axis = 1> (c, first) v = BN(u) {nodes}"
    tensors = {"first": [0, 0, 0, 0], **rest.pop("tensors", {})}  # type: ignore[dict-item]
    return Case(code, culprit, nodes, tensors, gamma=(0.5, 0.5, 2.0, 3.0), twins=True, **rest)  # type: ignore[arg-type]
