"""RNN, GRU and LSTM. Those of onnx 1.23 ignore sequence lengths, clipping and input_forget, and lack most
activations."""

from abc import abstractmethod
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
from onnx.reference.op_run import OpRun

Activation = Callable[[np.ndarray], np.ndarray]

ACTIVATIONS: dict[str, tuple[Callable[..., np.ndarray], tuple[float, ...]]] = {
    "affine": (lambda x, alpha, beta: alpha * x + beta, (1.0, 0.0)),
    "elu": (lambda x, alpha: np.where(x < 0, alpha * np.expm1(x), x), (1.0,)),
    "hardsigmoid": (lambda x, alpha, beta: np.clip(alpha * x + beta, 0, 1), (0.2, 0.5)),
    "leakyrelu": (lambda x, alpha: np.where(x < 0, alpha * x, x), (0.01,)),
    "relu": (lambda x: np.maximum(x, 0), ()),
    "scaledtanh": (lambda x, alpha, beta: alpha * np.tanh(beta * x), (1.0, 1.0)),
    "sigmoid": (lambda x: 0.5 * (1 + np.tanh(0.5 * x)), ()),
    "softplus": (lambda x: np.logaddexp(x, 0), ()),
    "softsign": (lambda x: x / (1 + np.abs(x)), ()),
    "tanh": (np.tanh, ()),
    "thresholdedrelu": (lambda x, alpha: np.where(x > alpha, x, 0), (1.0,)),
}
"""Functions by their lower-case names, with the defaults of alpha and beta if they have these."""


def _clipped(function: Callable[..., np.ndarray], bound: float, given: list[float], x: np.ndarray) -> np.ndarray:
    return function(np.clip(x, -bound, bound), *given)


class Recurrent(OpRun):
    """Common base: directions, sequence lengths, layout, activations and clipping."""

    gates: int
    functions: tuple[str, ...]
    activations: list[str] | None
    activation_alpha: list[float] | None
    activation_beta: list[float] | None
    clip: float | None
    direction: str
    input_forget: int
    linear_before_reset: int

    @abstractmethod
    def step(
        self, x: np.ndarray, state: tuple[np.ndarray, ...], weights: tuple[np.ndarray, ...], act: list[Activation]
    ) -> tuple[np.ndarray, ...]:
        """The next state (its first part is the output) from x @ W.T [batch, gates * hidden] and the previous state."""

    def _activations(self) -> Iterator[Activation]:
        names = self.activations or self.functions * self.directions
        alphas, betas = iter(self.activation_alpha or ()), iter(self.activation_beta or ())
        bound = np.inf if self.clip is None else self.clip
        for place, name in enumerate(names):
            # As in ONNX Runtime, the cell of an LSTM, which the third function reads, is not clipped.
            limit = bound if place % len(self.functions) < 2 else np.inf
            function, defaults = ACTIVATIONS[name.lower()]
            given = [next(values, default) for values, default in zip((alphas, betas), defaults, strict=False)]
            yield partial(_clipped, function, limit, given)

    @property
    def directions(self) -> int:
        return 2 if self.direction == "bidirectional" else 1

    def recur(
        self, X: np.ndarray, W: np.ndarray, R: np.ndarray, B: Any, lengths: Any, initial: list[Any], *more: Any
    ) -> tuple[np.ndarray, ...]:
        """Y [steps, directions, batch, hidden] and the last states [directions, batch, hidden], or with the batch
        first where `layout` is 1. `more` are weights by direction beside R and the bias."""
        batch_first = bool(getattr(self, "layout", 0))
        if batch_first:
            X, initial = X.swapaxes(0, 1), [part if part is None else part.swapaxes(0, 1) for part in initial]
        steps, batch, hidden = X.shape[0], X.shape[1], R.shape[2]
        states = [np.zeros((self.directions, batch, hidden)) if part is None else part for part in initial]
        B = np.zeros((self.directions, 2 * self.gates * hidden)) if B is None else B
        ends = np.full(batch, steps) if lengths is None else lengths
        act = list(self._activations())
        Y = np.zeros((steps, self.directions, batch, hidden))
        last = [part.copy() for part in states]
        for d in range(self.directions):
            backwards = d == 1 or self.direction == "reverse"
            weights = (R[d], *np.split(B[d], 2), *(part[d] for part in more))
            state = tuple(part[d] for part in states)
            functions = act[d * len(self.functions) : (d + 1) * len(self.functions)]
            for t in range(steps):
                running = t < ends  # a sequence that has ended keeps its state, and its outputs are zero
                at = np.where(running, ends - 1 - t, 0) if backwards else np.full(batch, t)
                row = np.arange(batch)
                new = self.step(X[at, row] @ W[d].T, state, weights, functions)
                state = tuple(np.where(running[:, None], n, s) for n, s in zip(new, state, strict=True))
                Y[at[running], d, row[running]] = state[0][running]
            for part, value in zip(last, state, strict=True):
                part[d] = value
        if batch_first:
            Y, last = Y.transpose(2, 0, 1, 3), [part.swapaxes(0, 1) for part in last]
        return (Y, *last)[: max(1, len(self.output))]


class RNN(Recurrent):
    """One gate."""

    gates = 1
    functions = ("Tanh",)

    def _run(
        self, X: Any, W: Any, R: Any, B: Any = None, lengths: Any = None, initial_h: Any = None, **attributes: Any
    ) -> tuple[np.ndarray, ...]:
        return self.recur(X, W, R, B, lengths, [initial_h])

    def step(self, x, state, weights, act):  # type: ignore[no-untyped-def]
        (h,), (R, Wb, Rb) = state, weights
        return (act[0](x + Wb + h @ R.T + Rb),)


class GRU(Recurrent):
    """Gates z, r and h."""

    gates = 3
    functions = ("Sigmoid", "Tanh")

    def _run(
        self, X: Any, W: Any, R: Any, B: Any = None, lengths: Any = None, initial_h: Any = None, **attributes: Any
    ) -> tuple[np.ndarray, ...]:
        return self.recur(X, W, R, B, lengths, [initial_h])

    def step(self, x, state, weights, act):  # type: ignore[no-untyped-def]
        (h,), (R, Wb, Rb) = state, weights
        f, g = act
        xz, xr, xh = np.split(x + Wb, 3, axis=1)
        Rz, Rr, Rh = np.split(R, 3)
        bz, br, bh = np.split(Rb, 3)
        z, r = f(xz + h @ Rz.T + bz), f(xr + h @ Rr.T + br)
        inner = r * (h @ Rh.T + bh) if self.linear_before_reset else (r * h) @ Rh.T + bh
        return ((1 - z) * g(xh + inner) + z * h,)


class LSTM(Recurrent):
    """Gates i, o, f and c; peepholes read the previous cell (i, f) or the new one (o)."""

    gates = 4
    functions = ("Sigmoid", "Tanh", "Tanh")

    def _run(
        self,
        X: Any,
        W: Any,
        R: Any,
        B: Any = None,
        lengths: Any = None,
        initial_h: Any = None,
        initial_c: Any = None,
        P: Any = None,
        **attributes: Any,
    ) -> tuple[np.ndarray, ...]:
        P = np.zeros((self.directions, 3 * R.shape[2])) if P is None else P
        return self.recur(X, W, R, B, lengths, [initial_h, initial_c], P)

    def step(self, x, state, weights, act):  # type: ignore[no-untyped-def]
        (h, c), (R, Wb, Rb, P) = state, weights
        first, second, third = act
        i, o, f, new = np.split(x + Wb + h @ R.T + Rb, 4, axis=1)
        Pi, Po, Pf = np.split(P, 3)
        i = first(i + Pi * c)
        f = 1 - i if self.input_forget else first(f + Pf * c)
        cell = f * c + i * second(new)
        return first(o + Po * cell) * third(cell), cell
