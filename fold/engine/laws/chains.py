"""Products and sums with constants, as chains `v = s*u + t`, and what they are: a BatchNorm written out, the affine
part of another normalisation, a layer scale, or a plain scale or shift."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import onnx_ir as ir

from fold.engine.affine import Array
from fold.graph import SCALE, SHIFT, constant, dims, float64, is_float, is_standard, parameter


class Kind(StrEnum):
    """What a chain is. Its value is the word in JSON (docs/formats.md)."""

    BATCHNORM = "batchnorm"
    LAYERNORM = "layernorm"
    GROUPNORM = "groupnorm"
    INSTANCENORM = "instancenorm"
    LAYER_SCALE = "layer_scale"
    SCALE = "scale"
    BIAS = "bias"
    SCALAR = "scalar"


NORMALISATIONS = {
    "LayerNormalization": Kind.LAYERNORM,
    "RMSNormalization": Kind.LAYERNORM,
    "SimplifiedLayerNormalization": Kind.LAYERNORM,
    "GroupNormalization": Kind.GROUPNORM,
    "InstanceNormalization": Kind.INSTANCENORM,
}
MOVING = ("Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Cast")
FUSED = ("Erf", "Tanh")
"""Inside of GELU and its approximation, which runtimes compute as one node."""


@dataclass(frozen=True)
class Chain:
    """A chain of products and sums with constants as one map `s*x + t`; s and t have the rank of x."""

    x: ir.Value
    nodes: tuple[ir.Node, ...]
    s: Array
    t: Array
    multiplies: bool
    adds: bool

    @property
    def one_axis(self) -> bool:
        """Whether it varies along one axis only."""
        return max(self.s.shape, default=1) == self.s.size

    @property
    def kind(self) -> Kind:
        normalised = _normalisation(self.x)
        if normalised is not None:
            return normalised
        if self.s.size == 1:
            return Kind.SCALAR
        if self.multiplies and self.adds and self.one_axis:
            return Kind.BATCHNORM
        if not self.multiplies:
            return Kind.BIAS
        readers = [reader for reader, _ in self.nodes[-1].outputs[0].uses()]
        added = bool(readers) and all(reader.op_type in ("Add", "Sum") for reader in readers)
        return Kind.LAYER_SCALE if added else Kind.SCALE


def find_chain(node: ir.Node) -> Chain | None:
    """All products and sums with constants from `node` on, each the only reader of the previous one."""
    first, nodes = node, list[ir.Node]()
    s: Array = np.ones(())
    t: Array = np.zeros(())
    while (step := affine_step(node)) is not None:
        if nodes and (scales_input(node) or scales_input(nodes[-1])):
            break  # the scale and the shift of an input are two candidates
        s, t = s * step[1], t * step[1] + step[2]
        nodes.append(node)
        uses = node.outputs[0].uses()
        if len(uses) != 1 or node.outputs[0].is_graph_output():
            break
        ((node, _),) = uses
    if not nodes or not (np.isfinite(s).all() and np.isfinite(t).all()):
        return None
    x = _operand(first)[0]
    assert x is not None
    rank = len(x.shape or ())
    s, t = (array.reshape((1,) * (rank - array.ndim) + array.shape) for array in np.broadcast_arrays(s, t))
    return Chain(
        x,
        tuple(nodes),
        s,
        t,
        multiplies=any(inner.op_type in ("Mul", "Div") for inner in nodes) or bool((s != 1).any()),
        adds=any(inner.op_type in ("Add", "Sub") for inner in nodes),
    )


def written_out(node: ir.Node) -> tuple[tuple[ir.Node, ...], int] | None:
    """The nodes of a BatchNorm that is written out as products and sums from `node` on, and its number of channels."""
    chain = find_chain(node)
    return (chain.nodes, chain.s.size) if chain is not None and chain.kind is Kind.BATCHNORM else None


def find_affines(graph: ir.Graph) -> Iterator[tuple[Kind, tuple[ir.Node, ...]]]:
    """Each chain that is no BatchNorm, no bias of a product of matrices, and no scaling of an input, with its nodes."""
    covered = set[ir.Node]()
    for node in graph:
        chain = None if node in covered or scales_input(node) else find_chain(node)
        if chain is None:
            continue
        covered.update(chain.nodes)
        producer = chain.x.producer()
        if chain.kind is not Kind.BATCHNORM and (producer is None or producer.op_type != "MatMul" or chain.multiplies):
            yield chain.kind, chain.nodes


def scales_input(node: ir.Node) -> bool:
    """Whether a product or sum is one half of an input's scaling (fold.inputs.scaling)."""
    return any(value is not None and value.name in (SCALE, SHIFT) for value in node.inputs)


def affine_step(node: ir.Node) -> tuple[ir.Value, Array, Array] | None:
    """The input of a product or sum with a constant, and its scale and shift, broadcastable to the input. None for
    other nodes, and where the constant would change the tensor's shape."""
    if not is_standard(node) or node.op_type not in ("Add", "Sub", "Mul", "Div"):
        return None
    x, tensor, position = _operand(node)
    if x is None or tensor is None or not is_float(x) or not _fits(tensor, x):
        return None
    c, one, zero = float64(tensor), np.ones(()), np.zeros(())
    match node.op_type:
        case "Add":
            return x, one, c
        case "Sub":
            return (x, one, -c) if position == 0 else (x, -one, c)
        case "Mul":
            return x, c, zero
    return (x, 1 / c, zero) if position == 0 and (c != 0).all() else None


def fused_by_runtimes(chain: Chain) -> bool:
    """Whether runtimes compute a chain and what surrounds it as one node, which folding it would prevent: the affine
    part of a LayerNorm that is written out, and the constants of a GELU."""
    producer = chain.x.producer()
    if producer is not None and _in_gelu(producer):
        return True
    if chain.kind is Kind.LAYERNORM and producer is not None and producer.op_type not in NORMALISATIONS:
        return True
    readers = [reader for reader, _ in chain.nodes[-1].outputs[0].uses()]
    return any(_in_gelu(reader) for reader in readers) or any(
        _gates(node) for node in (producer, *readers) if node is not None and node.op_type == "Mul"
    )


def _gates(product: ir.Node) -> bool:
    """Whether a product multiplies by `1 + erf(…)`."""
    for value in product.inputs:
        node = None if value is None else value.producer()
        while node is not None and affine_step(node) is not None:
            source = affine_step(node)
            node = None if source is None else source[0].producer()
        if node is not None and _in_gelu(node):
            return True
    return False


def _in_gelu(node: ir.Node) -> bool:
    """Whether a node is the `erf` of `1 + erf(…)`, or its approximation."""
    readers = [reader for reader, _ in node.outputs[0].uses()]
    return (
        node.op_type in FUSED
        and len(readers) == 1
        and readers[0].op_type == "Add"
        and affine_step(readers[0]) is not None
    )


def _normalisation(x: ir.Value) -> Kind | None:
    """Which normalisation writes a tensor, as one node or as the arithmetic that it is; None if none does."""
    node, moved = x.producer(), False
    while node is not None and is_standard(node) and node.op_type in MOVING:
        moved |= node.op_type == "Reshape"
        source = node.inputs[0]
        node = None if source is None else source.producer()
    if node is None:
        return None
    kind = NORMALISATIONS.get(node.op_type)
    if kind is not None:
        return Kind.GROUPNORM if kind is Kind.INSTANCENORM and moved else kind
    axes = next((found for value in node.inputs[:2] if (found := _deviation(value, node.op_type)) is not None), None)
    if axes is None:
        return None
    if moved:
        return Kind.GROUPNORM
    return Kind.LAYERNORM if max(axes) == -1 else Kind.INSTANCENORM


def _deviation(value: ir.Value | None, operator: str) -> list[int] | None:
    """The axes, counted from the end, over which a root of a mean is taken that a tensor is divided by, or multiplied
    by its reciprocal; None for any other tensor."""
    path = ["Sqrt"] if operator == "Div" else ["Reciprocal", "Sqrt"] if operator == "Mul" else []
    node = None if value is None else value.producer()
    if not path:
        return None
    for expected in path:
        if node is None or node.op_type != expected:
            return None
        node = node.inputs[0].producer() if node.inputs[0] is not None else None
    if node is not None and (step := affine_step(node)) is not None:  # the sum with epsilon
        node = step[0].producer()
    if node is None or node.op_type != "ReduceMean" or node.inputs[0] is None or node.inputs[0].shape is None:
        return None
    given, rank = parameter(node, 1, "axes"), len(node.inputs[0].shape)
    axes = range(rank) if given is None else [int(axis) for axis in given.ravel()]
    return [axis % rank - rank for axis in axes]


def _operand(node: ir.Node) -> tuple[ir.Value | None, ir.TensorProtocol | None, int]:
    """The tensor and the constant of a product or sum of two, and the position of the tensor among its inputs."""
    for position in (0, 1):
        tensor = constant(node.inputs[1 - position])
        if tensor is not None and constant(node.inputs[position]) is None:
            return node.inputs[position], tensor, position
    return None, None, 0


def _fits(tensor: ir.TensorProtocol, x: ir.Value) -> bool:
    """Whether a constant is broadcast to a tensor, and not the tensor to the constant."""
    sizes, shape = dims(x), tensor.shape.numpy()
    if sizes is None or len(shape) > len(sizes):
        return False
    return all(size in (1, own) for size, own in zip(shape[::-1], sizes[::-1], strict=False))
