"""BatchNormalization: the nodes that are to vanish."""

import numpy as np
import onnx_ir as ir

from fold import affine
from fold.affine import Gauge
from fold.gauge import FROM_BATCHNORM, Absorber, Candidate, Gauges, Parameters
from fold.graph import constant, first_input, float64, integer, real


def batch_normalization(node: ir.Node, gauges: Gauges) -> None:
    x, y = first_input(node), node.outputs[0]
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
