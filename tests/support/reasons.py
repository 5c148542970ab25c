"""The reasons to keep a BatchNorm, as the source has them, and graphs that run into one of them."""

import ast
import re
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx_ir as ir

from support import ROOT

SOURCES = [
    *(ROOT / "fold" / name for name in ("engine.py", "gauge.py", "solver.py")),
    *sorted((ROOT / "fold" / "laws").glob("*.py")),
]


def bare(text: str) -> str:
    """Without what changes at either end."""
    return re.sub(r"^[…:() ]+|[…: ]+$", "", text)


def reasons() -> set[str]:
    """Every text of three words or more in the laws and the solver but for docstrings, with … for what changes."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            return  # a docstring
        if isinstance(node, ast.JoinedStr):
            found.add("".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values))
            return
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value)
        for child in ast.iter_child_nodes(node):
            visit(child)

    for path in SOURCES:
        visit(ast.parse(path.read_text()))
    return {bare(text) for text in found if bare(text).count(" ") > 1}


@dataclass(frozen=True)
class Case:
    """A graph, in which `BN(u)` is a BatchNormalization of u with random statistics, and what is said of one of them.

    `tensors` are constants, or the shapes of random ones, and `W` is a 1×1 kernel of 4 channels; `gamma` is repeated
    over the `channels`, of which the first two are equal if they are `twins`. `inferred` are types that shape inference
    does not find. A graph that cannot be compared in float64 must come out `unchanged`.
    """

    reason: str
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


def itself(reason: str, nodes: str, culprit: str = "y", **rest: object) -> Case:
    return Case(reason, culprit, nodes, **rest)  # type: ignore[arg-type]


def shifted(demand: str, culprit: str, nodes: str, **rest: object) -> Case:
    """Behind a ReLU, which lets the scale of v move but no shift: who asks something of v's shift is named."""
    nodes = f"c = Conv(x, W) r = Relu(c) v = BN(r) {nodes}"
    return Case(demand, culprit, nodes, gamma=(0.5, 2.0, 0.3, 1.0), **rest)  # type: ignore[arg-type]


def uniform(demand: str, culprit: str, nodes: str, **rest: object) -> Case:
    """All channels of u are one: who asks for one gauge over v's channels, which differ, is named."""
    nodes = f"c = Conv(x, W) u = Gather <axis = 1> (c, first) v = BN(u) {nodes}"
    tensors = {"first": [0, 0, 0, 0], **rest.pop("tensors", {})}  # type: ignore[dict-item]
    return Case(demand, culprit, nodes, tensors, gamma=(0.5, 0.5, 2.0, 3.0), twins=True, **rest)  # type: ignore[arg-type]
