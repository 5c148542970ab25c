"""The forward passes of normalising layers, written from their formulas in numpy's float64.

BatchNorm in training mode, over all axes but the channels (n values for each channel):

    μ = mean(x)    σ² = mean((x − μ)²)    y = γ·(x − μ)/√(σ² + ε) + β
    running_mean ← (1 − m)·running_mean + m·μ    running_var ← (1 − m)·running_var + m·σ²·n/(n − 1)

In eval mode the running statistics replace μ and σ². They are constants, so y is an affine map of x (Ioffe and
Szegedy 2015; the factor n/(n − 1) is PyTorch's). LayerNorm and InstanceNorm compute both for each input.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Forward:
    """One training-mode forward pass, with the shapes as drawn: x [N, C, …], the others [C] but y, which is as x."""

    x: Array
    mean: Array
    variance: Array
    normalised: Array
    y: Array
    running_mean: Array
    running_var: Array


def batch_norm(
    x: Array, gamma: Array, beta: Array, running_mean: Array, running_var: Array, *, momentum: float, eps: float
) -> Forward:
    """The training-mode forward pass for x [N, C, …]; parameters and statistics are [C]."""
    axes = (0, *range(2, x.ndim))
    n = x.size // x.shape[1]
    mean = x.mean(axes)
    variance = ((x - along(mean, x)) ** 2).mean(axes)
    normalised = (x - along(mean, x)) / np.sqrt(along(variance, x) + eps)
    return Forward(
        x=x,
        mean=mean,
        variance=variance,
        normalised=normalised,
        y=along(gamma, x) * normalised + along(beta, x),
        running_mean=(1 - momentum) * running_mean + momentum * mean,
        running_var=(1 - momentum) * running_var + momentum * variance * n / (n - 1),
    )


def batch_norm_eval(x: Array, gamma: Array, beta: Array, mean: Array, variance: Array, *, eps: float) -> Array:
    """The eval-mode forward pass: the affine map s·x + t with s = γ/√(σ² + ε) and t = β − s·μ, for x [N, C, …]."""
    scale = gamma / np.sqrt(variance + eps)
    return along(scale, x) * x + along(beta - scale * mean, x)


def layer_norm(x: Array, gamma: Array, beta: Array, *, eps: float) -> Array:
    """Each sample of x [N, …] with its own mean and variance over everything; gamma and beta are x.shape[1:]."""
    return _standardised(x, tuple(range(1, x.ndim)), eps) * gamma + beta


def instance_norm(x: Array, gamma: Array, beta: Array, *, eps: float) -> Array:
    """Each channel of each sample of x [N, C, …] with its own mean and variance; gamma and beta are [C]."""
    return _standardised(x, tuple(range(2, x.ndim)), eps) * along(gamma, x) + along(beta, x)


def _standardised(x: Array, axes: tuple[int, ...], eps: float) -> Array:
    result: Array = (x - x.mean(axes, keepdims=True)) / np.sqrt(x.var(axes, keepdims=True) + eps)
    return result


def along(values: Array, x: Array) -> Array:
    """`values` [C] with as many axes as x [N, C, …], the channels in second place."""
    return values.reshape(1, -1, *[1] * (x.ndim - 2))
