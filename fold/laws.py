"""One law an operator: which gauges around a node are allowed without changing what the graph computes.

To teach the engine an operator, write its law and enter it in `LAWS`; nothing else needs a change. A law reads the
layouts of a node's inputs, writes those of its outputs, and demands what must hold between them. A node with parameters
also says how these are re-expressed (`Absorber`). What has no law is a boundary: everything around it is carried as it
is. The table stands in docs/design.md.

    operator                               law
    Conv, Gemm, MatMul with constant W     any gauge on either side; padding with zeros needs q = 0 on what is read
    ConvTranspose with constant W          any gauge; q = 0 on what is read
    BatchNormalization                     any gauge; vanishes if p_u = s*p_v and q_u = t*p_v + q_v
    Add of a constant                      p_out = p_in, any q
    Add of two tensors                     all p equal, q_out = q_a + q_b
    Relu                                   p_out = p_in > 0, both q = 0
    MaxPool, GlobalMaxPool                 p_out = p_in > 0, q_out = q_in
    AveragePool, GlobalAveragePool,        p_out = p_in, q_out = q_in; counted padding needs q = 0
    ReduceMean
    Concat                                 gauges concatenate
    Flatten, Reshape, Squeeze, Unsqueeze,  gauges move as the data does
    Transpose, Identity, Dropout
    Pad with zeros                         p_out = p_in, both q = 0
    Shape, Size                            read no value
"""

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from fold import affine
from fold.affine import Gauge
from fold.blocks import matching_blocks
from fold.gauge import FROM_BATCHNORM, FROM_WEIGHTS, Absorber, Candidate, Gauges, Layout, Parameters
from fold.graph import constant, dims, float64, integer, integers, is_standard, real, text
from fold.scales import Ids

Law = Callable[[ir.Node, Gauges], None]


def conv(node: ir.Node, gauges: Gauges) -> None:
    x, weights, bias = _linear_inputs(node)
    if weights is None:
        return gauges.boundary(node, "has weights or a bias that are not constant")
    groups = integer(node, "group", 1)
    outputs, inputs = weights.shape.numpy()[0], weights.shape.numpy()[1] * groups
    cause = gauges.cause(node, "reads one gauge for each input channel")
    read = gauges.along(x, 1, inputs, cause)
    if _padded(node):
        gauges.zero(read.shift, gauges.cause(node, "pads its input with zeros, so that may carry no shift"))
    write = gauges.fresh_along(node.outputs[0], 1, outputs, FROM_WEIGHTS)

    def parameters(reads: Gauge, writes: Gauge) -> Parameters:
        new = affine.conv(float64(weights), _optional(bias), groups, reads.reading(), writes)
        return {(node, 1): new[0], (node, 2): new[1]}

    return gauges.absorb(Absorber(node, read, write, parameters))


def conv_transpose(node: ir.Node, gauges: Gauges) -> None:
    x, weights, bias = _linear_inputs(node)
    if weights is None:
        return gauges.boundary(node, "has weights or a bias that are not constant")
    groups = integer(node, "group", 1)
    inputs, outputs = weights.shape.numpy()[0], weights.shape.numpy()[1] * groups
    cause = gauges.cause(
        node, "sums another part of its kernel at each output position, so its input may carry no shift"
    )
    read = gauges.along(x, 1, inputs, cause)
    gauges.zero(read.shift, cause)
    write = gauges.fresh_along(node.outputs[0], 1, outputs, FROM_WEIGHTS)

    def parameters(reads: Gauge, writes: Gauge) -> Parameters:
        new = affine.conv_transpose(float64(weights), _optional(bias), groups, reads.reading(), writes)
        return {(node, 1): new[0], (node, 2): new[1]}

    return gauges.absorb(Absorber(node, read, write, parameters))


def gemm(node: ir.Node, gauges: Gauges) -> None:
    x, weights, bias = _linear_inputs(node)
    if weights is None:
        return gauges.boundary(node, "has weights or a bias that are not constant")
    alpha, beta = real(node, "alpha", 1.0), real(node, "beta", 1.0)
    transposed = bool(integer(node, "transB", 0))
    K, N = weights.shape.numpy()[:: -1 if transposed else 1]
    cause = gauges.cause(node, "reads one gauge for each input feature")
    read = gauges.along(x, 0 if integer(node, "transA", 0) else 1, K, cause)
    write = gauges.fresh_along(node.outputs[0], 1, N, FROM_WEIGHTS)

    def parameters(reads: Gauge, writes: Gauge) -> Parameters:
        W64 = alpha * (float64(weights).T if transposed else float64(weights))
        W_new, B_new = affine.linear(W64, None if bias is None else beta * float64(bias), reads.reading(), writes)
        return {(node, 1): W_new.T if transposed else W_new, (node, 2): B_new}

    return gauges.absorb(Absorber(node, read, write, parameters, {"alpha": 1.0, "beta": 1.0}))


def matmul(node: ir.Node, gauges: Gauges) -> None:
    """A product with one constant matrix, together with the bias that is added to nothing but it, if there is one."""
    x, weights = _first(node), constant(node.inputs[1])
    if weights is None or len(weights.shape) != 2 or x.shape is None or len(x.shape) < 2:
        return gauges.boundary(node, "is not a product with one constant matrix on the right")
    K, N = weights.shape.numpy()
    cause = gauges.cause(node, "reads one gauge for each input feature")
    read = gauges.along(x, -1, K, cause)
    bias = _bias_after(node, N)
    output = node.outputs[0] if bias is None else bias[0].outputs[0]
    write = gauges.fresh_along(output, -1, N, FROM_WEIGHTS)

    def parameters(reads: Gauge, writes: Gauge) -> Parameters:
        B = None if bias is None else float64(bias[2]).reshape(-1)
        W_new, B_new = affine.linear(float64(weights), B, reads.reading(), writes)
        return {(node, 1): W_new, (node, 2) if bias is None else bias[:2]: B_new}

    return gauges.absorb(Absorber(node, read, write, parameters), output.producer())


def _bias_after(node: ir.Node, features: int) -> tuple[ir.Node, int, ir.TensorProtocol] | None:
    """The Add behind a product, which input of it is the constant, and that constant, if it holds one number for each
    feature and nobody else reads the product."""
    uses = node.outputs[0].uses()
    if len(uses) != 1 or node.outputs[0].is_graph_output():
        return None
    ((consumer, index),) = uses
    if consumer.op_type != "Add" or not is_standard(consumer):
        return None
    tensor = constant(consumer.inputs[1 - index])
    if tensor is None or tensor.shape[-1:] != (features,) or tensor.size != features:
        return None
    if len(tensor.shape) > len(node.outputs[0].shape or ()):
        return None
    return consumer, 1 - index, tensor


def batch_normalization(node: ir.Node, gauges: Gauges) -> None:
    x, y = _first(node), node.outputs[0]
    tensors = [constant(value) for value in node.inputs[1:5]]
    if integer(node, "training_mode", 0) or len(node.outputs) > 1:
        return gauges.keep(node, "it is in training mode and normalises by the batch; export the model in eval mode")
    if any(tensor is None for tensor in tensors):
        return gauges.keep(node, "its parameters or statistics are computed, or are inputs that a caller may override")
    gamma, beta, mean, variance = (float64(tensor) for tensor in tensors if tensor is not None)
    if not all(np.isfinite(array).all() for array in (gamma, beta, mean, variance)):
        return gauges.keep(node, "its parameters or statistics hold a value that is not finite")
    epsilon = real(node, "epsilon", float(np.float32(1e-5)))
    if (variance + epsilon <= 0).any():
        channel = int(np.flatnonzero(variance + epsilon <= 0)[0])
        return gauges.keep(
            node, f"the variance of channel {channel} is {variance[channel]:.3g}, and no square root exists"
        )
    if x.shape is None or len(x.shape) < 2:
        return gauges.keep(node, "the rank of its input is unknown")
    s, t = affine.batchnorm(gamma, beta, mean, variance, epsilon)
    cause = gauges.cause(node, "reads one gauge for each channel, and is a BatchNorm with another scale or shift")
    private = gauges.private(x)
    read = gauges.along(x, 1, len(s), cause)
    write = gauges.fresh_along(y, 1, len(s), FROM_BATCHNORM)

    def parameters(reads: Gauge, writes: Gauge) -> Parameters:
        new = affine.batchnorm_parameters(s, t, mean, variance, epsilon, reads.reading(), writes)
        return {(node, 1): new[0], (node, 2): new[1]}

    size = np.abs(mean) + 3 * np.sqrt(variance + epsilon)
    absorber = Absorber(node, read, write, parameters)
    gauges.candidates.append(Candidate(absorber, s, t, size, private, cause))
    return None


def relu(node: ir.Node, gauges: Gauges) -> None:
    x = gauges.of(_first(node))
    cause = gauges.cause(node, "lets only positive scales pass, and no shift")
    gauges.positive(x.scale, cause)
    gauges.zero(x.shift, cause)
    gauges.set(node.outputs[0], x)


def add(node: ir.Node, gauges: Gauges) -> None:
    a, b = node.inputs
    assert a is not None
    assert b is not None
    constants = [constant(a), constant(b)]
    if any(tensor is not None for tensor in constants):
        return _add_constant(node, gauges, 0 if constants[0] is not None else 1)
    left, right = gauges.of(a), gauges.of(b)
    cause = gauges.cause(node, "adds tensors, which must agree in their scale")
    gauges.equal(left.scale, right.scale, cause)
    shape = np.broadcast_shapes(left.shift.shape, right.shift.shape)
    scale = np.broadcast_to(left.scale, np.broadcast_shapes(left.scale.shape, right.scale.shape))
    shift = gauges.fresh_shift(shape)
    gauges.sum(cause, (1.0, shift), (-1.0, left.shift), (-1.0, right.shift))
    return gauges.set(node.outputs[0], Layout(scale, shift))


def _add_constant(node: ir.Node, gauges: Gauges, position: int) -> None:
    value, x, y = node.inputs[position], node.inputs[1 - position], node.outputs[0]
    tensor = constant(value)
    assert tensor is not None
    assert x is not None
    if x.shape is None or y.shape is None or len(x.shape) != len(y.shape) or constant(x) is not None:
        return gauges.boundary(node, "adds a constant of a higher rank")
    layout = gauges.of(x)
    write = Layout(layout.scale, gauges.fresh_shift(layout.shift.shape, FROM_WEIGHTS))
    gauges.set(y, write)

    def parameters(reads: Gauge, writes: Gauge) -> Parameters:
        return {(node, position): reads.p * float64(tensor) - reads.q + writes.q}

    return gauges.absorb(Absorber(node, layout, write, parameters, divides=False))


def max_pool(node: ir.Node, gauges: Gauges) -> None:
    x = _first(node)
    cause = gauges.cause(node, "takes a maximum, which lets only positive scales pass, one for each channel")
    layout = gauges.uniform(x, range(2, gauges.of(x).scale.ndim), cause)
    gauges.positive(layout.scale, cause)
    gauges.set(node.outputs[0], layout)


def average_pool(node: ir.Node, gauges: Gauges) -> None:
    x = _first(node)
    cause = gauges.cause(node, "takes a mean over space, which lets one gauge for each channel pass")
    layout = gauges.uniform(x, range(2, gauges.of(x).scale.ndim), cause)
    counts_padding = integer(node, "count_include_pad", 0) and (_padded(node) or integer(node, "ceil_mode", 0))
    if counts_padding:
        gauges.zero(
            layout.shift, gauges.cause(node, "counts the zeros that it pads with, so its input may carry no shift")
        )
    gauges.set(node.outputs[0], layout)


def reduce_mean(node: ir.Node, gauges: Gauges) -> None:
    x = _first(node)
    rank = gauges.of(x).scale.ndim
    axes = integers(node, "axes")
    if len(node.inputs) > 1 and node.inputs[1] is not None:
        tensor = constant(node.inputs[1])
        if tensor is None:
            return gauges.boundary(node, "takes its axes at run time")
        axes = [int(axis) for axis in tensor.numpy().ravel()]
    if not axes and not integer(node, "noop_with_empty_axes", 0):
        axes = list(range(rank))
    axes = sorted(axis % rank for axis in axes)
    cause = gauges.cause(node, "takes a mean, over which the gauge must be the same")
    layout = gauges.uniform(x, axes, cause)
    if not integer(node, "keepdims", 1):
        layout = layout.map(lambda ids: np.squeeze(ids, tuple(axes)))
    return gauges.set(node.outputs[0], layout)


def concat(node: ir.Node, gauges: Gauges) -> None:
    inputs = [value for value in node.inputs if value is not None]
    layouts = [gauges.of(value) for value in inputs]
    axis = integer(node, "axis", 0) % layouts[0].scale.ndim
    sizes = [(dims(value) or [])[axis] for value in inputs]
    known = [size for size in sizes if isinstance(size, int)]
    if len(known) < len(sizes):
        return gauges.boundary(node, f"concatenates along axis {axis}, whose size is not known")

    def join(arrays: list[Ids]) -> Ids:
        extents = np.broadcast_shapes(*(_resized(ids.shape, axis, 1) for ids in arrays))
        pieces = [np.broadcast_to(ids, _resized(extents, axis, size)) for ids, size in zip(arrays, known, strict=True)]
        return np.concatenate(pieces, axis=axis)

    joined = Layout(join([layout.scale for layout in layouts]), join([layout.shift for layout in layouts]))
    return gauges.set(node.outputs[0], joined)


def transpose(node: ir.Node, gauges: Gauges) -> None:
    layout = gauges.of(_first(node))
    permutation = integers(node, "perm") or list(range(layout.scale.ndim))[::-1]
    gauges.set(node.outputs[0], layout.map(lambda ids: np.transpose(ids, permutation)))


def reshape(node: ir.Node, gauges: Gauges) -> None:
    """Reshape, Flatten, Squeeze and Unsqueeze: the element order stays, so dimensions split and merge in blocks."""
    x, y = _first(node), node.outputs[0]
    before, after = dims(x), dims(y)
    blocks = None if before is None or after is None else matching_blocks(before, after)
    if blocks is None:
        return gauges.boundary(node, "changes the shape in a way that channels cannot be followed through")
    cause = gauges.cause(node, "merges dimensions whose sizes are not known, over which the gauge must be the same")
    layout = gauges.uniform(x, [i for block in blocks if block.opaque for i in block.old], cause)

    def move(ids: Ids) -> Ids:
        full, shape = list(ids.shape), list[int]()
        for block in blocks:
            if len(block.old) == len(block.new) == 1:
                shape.append(ids.shape[block.old[0]])
            elif all(ids.shape[i] == 1 for i in block.old):
                shape += [1] * len(block.new)
            else:
                for i, size in zip(block.old, block.sizes, strict=True):
                    full[i] = size
                shape += block.new_sizes
        return np.broadcast_to(ids, full).reshape(shape)

    return gauges.set(y, layout.map(move))


def identity(node: ir.Node, gauges: Gauges) -> None:
    gauges.set(node.outputs[0], gauges.of(_first(node)))


def dropout(node: ir.Node, gauges: Gauges) -> None:
    training = node.inputs[2] if len(node.inputs) > 2 else None
    if training is not None:
        tensor = constant(training)
        if tensor is None or tensor.numpy().any():
            return gauges.boundary(node, "may be in training mode")
    return identity(node, gauges)


def pad(node: ir.Node, gauges: Gauges) -> None:
    x = _first(node)
    pads = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    value = node.inputs[2] if len(node.inputs) > 2 else None
    filling = constant(value)
    zeros = value is None or (filling is not None and not filling.numpy().any())
    axes_given = len(node.inputs) > 3 and node.inputs[3] is not None
    if text(node, "mode", "constant") != "constant" or pads is None or not zeros or axes_given:
        return gauges.boundary(node, "pads with something else than constant zeros")
    amounts = pads.numpy().reshape(2, -1).any(axis=0)
    cause = gauges.cause(node, "pads its input with zeros, so that may carry no shift")
    layout = gauges.uniform(x, [int(axis) for axis in np.flatnonzero(amounts)], cause)
    gauges.zero(layout.shift, cause)
    return gauges.set(node.outputs[0], layout)


def reads_no_value(node: ir.Node, gauges: Gauges) -> None:
    """Shape and Size ask for dimensions, which no gauge changes."""


LAWS: dict[str, Law] = {
    "Add": add,
    "AveragePool": average_pool,
    "BatchNormalization": batch_normalization,
    "Concat": concat,
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "Dropout": dropout,
    "Flatten": reshape,
    "Gemm": gemm,
    "GlobalAveragePool": average_pool,
    "GlobalMaxPool": max_pool,
    "Identity": identity,
    "MatMul": matmul,
    "MaxPool": max_pool,
    "Pad": pad,
    "ReduceMean": reduce_mean,
    "Relu": relu,
    "Reshape": reshape,
    "Shape": reads_no_value,
    "Size": reads_no_value,
    "Squeeze": reshape,
    "Transpose": transpose,
    "Unsqueeze": reshape,
}


def _first(node: ir.Node) -> ir.Value:
    value = node.inputs[0]
    assert value is not None  # the operator requires it
    return value


def _linear_inputs(node: ir.Node) -> tuple[ir.Value, ir.TensorProtocol | None, ir.TensorProtocol | None]:
    """What a Conv, ConvTranspose or Gemm reads, its weights and its bias; no weights if one of them is not constant."""
    bias_value = node.inputs[2] if len(node.inputs) > 2 else None
    weights, bias = constant(node.inputs[1]), constant(bias_value)
    return _first(node), None if bias_value is not None and bias is None else weights, bias


def _optional(tensor: ir.TensorProtocol | None) -> np.ndarray | None:
    return None if tensor is None else float64(tensor)


def _padded(node: ir.Node) -> bool:
    return any(integers(node, "pads")) or text(node, "auto_pad", "NOTSET") in ("SAME_UPPER", "SAME_LOWER")


def _resized(shape: tuple[int, ...], axis: int, size: int) -> tuple[int, ...]:
    return (*shape[:axis], size, *shape[axis + 1 :])
