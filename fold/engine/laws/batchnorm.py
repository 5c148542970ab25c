"""What can be removed: BatchNormalization, and the same map `v = s*u + t` written out as products and sums."""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from fold.engine import affine
from fold.engine.affine import Array, Gauge
from fold.engine.gauge import (
    BEHIND_SHARED,
    FROM_BATCHNORM,
    FROM_OTHERS,
    FROM_SCALE,
    FROM_WEIGHTS,
    Absorber,
    Candidate,
    Gauges,
    Layout,
    Parameters,
    Steps,
)
from fold.engine.laws.activations import CLIPS
from fold.engine.laws.arithmetic import gate, total
from fold.engine.reasons import Code, Reason
from fold.graph import (
    SCALE,
    SHIFT,
    constant,
    dims,
    display_name,
    first_input,
    float64,
    integer,
    is_float,
    is_standard,
    real,
)


def scale_and_shift(node: ir.Node) -> tuple[Array, Array] | Reason:
    """Scale and shift, [C], of a BatchNormalization in eval mode, or the reason why it has none."""
    name = display_name(node)
    tensors = [constant(value) for value in node.inputs[1:5]]
    if integer(node, "training_mode", 0) or len(node.outputs) > 1:
        return Reason(Code.TRAINING_MODE, name)
    if any(tensor is None for tensor in tensors):
        return Reason(Code.COMPUTED_PARAMETERS, name)
    gamma, beta, mean, variance = (float64(tensor) for tensor in tensors if tensor is not None)
    epsilon = _epsilon(node)
    if not all(np.isfinite(array).all() for array in (gamma, beta, mean, variance, epsilon)):
        return Reason(Code.NOT_FINITE, name)
    if (variance + epsilon <= 0).any():
        channel = int(np.flatnonzero(variance + epsilon <= 0)[0])
        return Reason(
            Code.NEGATIVE_VARIANCE, name, {"channel": channel, "variance": float(variance[channel] + epsilon)}
        )
    return affine.batchnorm(gamma, beta, mean, variance, epsilon)


def _epsilon(node: ir.Node) -> float:
    return real(node, "epsilon", float(np.float32(1e-5)))


def batch_normalization(node: ir.Node, gauges: Gauges) -> None:
    x, y = first_input(node), node.outputs[0]
    found = scale_and_shift(node)
    if isinstance(found, Reason):
        return gauges.keep(node, found)
    if x.shape is None or len(x.shape) < 2 or not len(found[0]):
        return gauges.keep(node, Reason(Code.NO_CHANNELS, display_name(node)))
    (s, t), epsilon = found, _epsilon(node)
    mean, variance = (float64(tensor) for value in node.inputs[3:5] if (tensor := constant(value)) is not None)
    cause = gauges.cause(node, Code.OTHER_BATCHNORM)
    private = gauges.private(x)
    read = gauges.along(x, 1, len(s), cause)
    write = gauges.fresh_along(y, 1, len(s), FROM_BATCHNORM if private else BEHIND_SHARED)
    dead = _dead_before_opened(y, s, t, gauges)

    def parameters(reads: Gauge, writes: Gauge) -> Parameters:
        gamma, beta, carried = affine.batchnorm_parameters(s, t, mean, variance, epsilon, reads.reading(), writes)
        return {(node, 1): gamma, (node, 2): beta} | ({} if reads.trivial else {(node, 3): carried})

    deviation = np.sqrt(variance + epsilon)
    sizes = np.abs(mean) + 3 * deviation, np.abs(s * mean + t) + 3 * np.abs(s) * deviation
    absorber = Absorber(node, read, write, parameters)
    gauges.candidates.append(Candidate(absorber, s, t, cause, True, *sizes, private=private, dead=dead))
    return None


def _dead_before_opened(y: ir.Value, s: Array, t: Array, gauges: Gauges) -> NDArray[np.bool_] | None:
    """The dead channels of a BatchNorm whose readers are all opened activations: these clip them to their constant."""
    readers = [node for node, _ in y.uses()]
    clipped = all(node in gauges.opened and node.op_type in CLIPS for node in readers)
    if not (s == 0).any() or y.is_graph_output() or not readers or not clipped:
        return None
    shape = gauges.of(y).scale.shape
    gauges.dead[y] = ((s == 0).reshape(shape), t.reshape(shape))
    return np.equal(s, 0)


def instance_normalization(node: ir.Node, gauges: Gauges) -> None:
    """Its input is carried as it is: normalising removes any scale and shift, but for epsilon. Its parameters absorb
    any gauge of its output."""
    x, y = first_input(node), node.outputs[0]
    scale, bias = constant(node.inputs[1]), constant(node.inputs[2])
    if scale is None or bias is None:
        return gauges.boundary(node, Code.COMPUTED_SCALE)
    gauges.pin(x, Reason(Code.INSTANCE_NORM, display_name(node)))
    write = gauges.fresh_along(y, 1, scale.size, FROM_WEIGHTS)

    def parameters(_: Gauge, writes: Gauge) -> Parameters:
        return {(node, 1): writes.p * float64(scale), (node, 2): writes.p * float64(bias) + writes.q}

    return gauges.absorb(Absorber(node, gauges.nothing(), write, parameters))


@dataclass(frozen=True)
class _Chain:
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
    def batchnorm(self) -> bool:
        return self.multiplies and self.adds and self.one_axis and self.s.size > 1


def affine_or_tensors(node: ir.Node, gauges: Gauges) -> None:
    """Add, Sub, Mul and Div. A chain of those with constants is one map `v = s*u + t`; others combine tensors.

    A chain that multiplies and adds by channel is a BatchNorm written out, as other frameworks and frozen layers do it.
    """
    chain = _chain(node)
    if chain is not None:
        return _affine(chain, gauges)
    constants = [value for value in node.inputs if constant(value) is not None]
    if node.op_type == "Div" or (node.op_type == "Mul" and constants):
        return gauges.boundary(node, Code.DIVISION)
    return gate(node, gauges) if node.op_type == "Mul" else total(node, gauges)


def _affine(chain: _Chain, gauges: Gauges) -> None:
    node, x, y = chain.nodes[-1], chain.x, chain.nodes[-1].outputs[0]
    before = gauges.of(x)
    extents = np.broadcast_shapes(before.scale.shape, before.shift.shape, chain.s.shape if chain.one_axis else ())
    s, t = (np.broadcast_to(array, extents) if chain.one_axis else array for array in (chain.s, chain.t))
    cause = gauges.cause(node, Code.CONSTANT_SCALE)
    private = gauges.private(x)
    if chain.multiplies:
        lone = FROM_SCALE if scales_input(node) else FROM_OTHERS
        after = gauges.fresh(extents, FROM_BATCHNORM if chain.adds else lone)
    else:
        shift = gauges.fresh_shift(extents, FROM_WEIGHTS)
        after = Layout(np.broadcast_to(before.scale, extents), shift)
    before = before.map(lambda ids: np.broadcast_to(ids, extents))
    gauges.set(y, after)
    for inner in chain.nodes[:-1]:
        gauges.set(inner.outputs[0], after)  # covered by the chain, which alone reads them
    dead = _dead_before_opened(y, s, t, gauges) if chain.one_axis else None
    flat = [layout.map(lambda ids: ids.reshape(-1)) for layout in (before, after)]

    def steps(reads: Gauge, writes: Gauge) -> Steps:
        seen, written = (Gauge(p.reshape(extents), q.reshape(extents)) for p, q in (reads, writes))
        a, b = seen.reading()
        scale = written.p * chain.s * a
        added = written.p * (chain.s * b + chain.t) + written.q
        if not chain.multiplies:  # the scale of the input is that of the output
            added = seen.p * chain.t - seen.q + written.q
            return [("Add", added)] if added.any() else []
        return [*([("Mul", scale)] if (scale != 1).any() else []), *([("Add", added)] if added.any() else [])]

    absorber = Absorber(node, flat[0], flat[1], steps, divides=chain.multiplies, nodes=chain.nodes)
    if scales_input(node):
        gauges.absorbs_shifts(node)
    if chain.one_axis and (chain.s.size > 1 or scales_input(node)):
        gauges.candidates.append(
            Candidate(
                absorber,
                s.reshape(-1),
                t.reshape(-1),
                cause,
                reported=chain.batchnorm,
                private=private,
                dead=None if dead is None else dead.reshape(-1),
            )
        )
    else:
        gauges.rewritable(absorber)


def _operand(node: ir.Node) -> tuple[ir.Value | None, ir.TensorProtocol | None, int]:
    """The tensor and the constant of a product or sum of two, and the position of the tensor among its inputs."""
    for position in (0, 1):
        tensor = constant(node.inputs[1 - position])
        if tensor is not None and constant(node.inputs[position]) is None:
            return node.inputs[position], tensor, position
    return None, None, 0


def _chain(node: ir.Node) -> _Chain | None:
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
    return _Chain(
        x,
        tuple(nodes),
        s,
        t,
        multiplies=any(inner.op_type in ("Mul", "Div") for inner in nodes) or bool((s != 1).any()),
        adds=any(inner.op_type in ("Add", "Sub") for inner in nodes),
    )


def written_out(node: ir.Node) -> tuple[tuple[ir.Node, ...], int] | None:
    """The nodes of a BatchNorm that is written out as products and sums from `node` on, and its number of channels."""
    chain = _chain(node)
    return (chain.nodes, chain.s.size) if chain is not None and chain.batchnorm else None


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


def _fits(tensor: ir.TensorProtocol, x: ir.Value) -> bool:
    """Whether a constant is broadcast to a tensor, and not the tensor to the constant."""
    sizes, shape = dims(x), tensor.shape.numpy()
    if sizes is None or len(shape) > len(sizes):
        return False
    return all(size in (1, own) for size, own in zip(shape[::-1], sizes[::-1], strict=False))
