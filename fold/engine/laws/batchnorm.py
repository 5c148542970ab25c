"""What can be removed: BatchNormalization, and the same map `v = s*u + t` written out as products and sums."""

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
from fold.engine.laws.chains import Chain, Kind, find_chain, fused_by_runtimes, scales_input
from fold.engine.reasons import Code, Reason
from fold.graph import (
    constant,
    display_name,
    first_input,
    float64,
    integer,
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


def affine_or_tensors(node: ir.Node, gauges: Gauges) -> None:
    """Add, Sub, Mul and Div. A chain of those with constants is one map `v = s*u + t`; others combine tensors.

    A chain that multiplies and adds by channel is a BatchNorm written out, as other frameworks and frozen layers do it.
    """
    chain = find_chain(node)
    if chain is not None:
        return _affine(chain, gauges)
    constants = [value for value in node.inputs if constant(value) is not None]
    if node.op_type == "Div" or (node.op_type == "Mul" and constants):
        return gauges.boundary(node, Code.DIVISION)
    return gate(node, gauges) if node.op_type == "Mul" else total(node, gauges)


def _affine(chain: Chain, gauges: Gauges) -> None:
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
    if _may_vanish(chain):
        gauges.candidates.append(
            Candidate(
                absorber,
                s.reshape(-1),
                t.reshape(-1),
                cause,
                reported=chain.kind is Kind.BATCHNORM,
                private=private,
                dead=None if dead is None else dead.reshape(-1),
            )
        )
    else:
        gauges.rewritable(absorber)


def _may_vanish(chain: Chain) -> bool:
    """Whether a chain is to be removed where the algebra allows it. A number may be there so that float16 holds what it
    scales."""
    if not chain.one_axis or fused_by_runtimes(chain):
        return False
    if chain.kind is Kind.BATCHNORM or scales_input(chain.nodes[-1]):
        return True
    return chain.s.size > 1 or chain.nodes[-1].outputs[0].dtype != ir.DataType.FLOAT16
