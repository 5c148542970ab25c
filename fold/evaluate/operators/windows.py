"""Operators with windows: convolutions, pools, padding.

Seen in onnx 1.23: its ConvTranspose fails for groups; its Conv gathers the windows of a whole batch at once; its
MaxPool fails or errs with padding and ceil_mode, its AveragePool and LpPool with ceil_mode; its GlobalMaxPool is only
right for two spatial axes; its Pad cannot crop.
"""

import functools
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from onnx.reference.op_run import OpRun

BLOCK = 2**20
"""Elements that a convolution gathers at once: 8 MB of float64."""


@dataclass(frozen=True)
class Windows:
    """Positions of the windows of a pool or convolution: for each spatial axis their number, geometry and padding."""

    counts: tuple[int, ...]
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    before: tuple[int, ...]
    behind: tuple[int, ...]

    @classmethod
    def of(
        cls,
        sizes: tuple[int, ...],
        kernel_shape: list[int],
        auto_pad: str | None,
        ceil_mode: int | None,
        dilations: list[int] | None,
        pads: list[int] | None,
        strides: list[int] | None,
    ) -> "Windows":
        rank = len(sizes)
        steps, spread = strides or [1] * rank, dilations or [1] * rank
        reach = [d * (k - 1) + 1 for k, d in zip(kernel_shape, spread, strict=True)]
        if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
            counts = [-(-n // s) for n, s in zip(sizes, steps, strict=True)]
            missing = [max(0, (m - 1) * s + r - n) for m, s, r, n in zip(counts, steps, reach, sizes, strict=True)]
            before = [m // 2 if auto_pad == "SAME_UPPER" else m - m // 2 for m in missing]
            behind = [m - b for m, b in zip(missing, before, strict=True)]
        else:
            pads = [0] * 2 * rank if auto_pad == "VALID" or not pads else pads
            before, behind = pads[:rank], pads[rank:]
            free = [n + b + e - r for n, b, e, r in zip(sizes, before, behind, reach, strict=True)]
            counts = [f // s + 1 for f, s in zip(free, steps, strict=True)]
            if ceil_mode:  # a last window counts if it starts before the trailing padding
                more = [-(-f // s) + 1 for f, s in zip(free, steps, strict=True)]
                starts_inside = [(m - 1) * s < n + b for m, s, n, b in zip(more, steps, sizes, before, strict=True)]
                counts = [m if inside else c for m, c, inside in zip(more, counts, starts_inside, strict=True)]
        return cls(tuple(counts), tuple(kernel_shape), tuple(steps), tuple(spread), tuple(before), tuple(behind))

    def places(self, X: np.ndarray, fill: float) -> Iterator[np.ndarray]:
        """For each kernel position the elements under it in all windows, `fill` outside of X: [N, C, *counts]."""
        needed = [
            s * (m - 1) + d * (k - 1) + 1
            for s, m, d, k in zip(self.strides, self.counts, self.dilations, self.kernel, strict=True)
        ]
        widths = [(b, max(0, n - b - size)) for b, n, size in zip(self.before, needed, X.shape[2:], strict=True)]
        padded = np.pad(X, [(0, 0), (0, 0), *widths], constant_values=fill) if np.any(widths) else X
        for place in itertools.product(*(range(k) for k in self.kernel)):
            inside = (
                slice(d * at, d * at + s * (m - 1) + 1, s)
                for at, d, s, m in zip(place, self.dilations, self.strides, self.counts, strict=True)
            )
            yield padded[(slice(None), slice(None), *inside)]


class Conv(OpRun):
    """Convolution of any rank, with groups and dilations, by BLAS. Windows of more than one element are gathered block
    by block (im2col)."""

    def _run(
        self,
        X: np.ndarray,
        W: np.ndarray,
        B: np.ndarray | None = None,
        auto_pad: str | None = None,
        dilations: list[int] | None = None,
        group: int | None = None,
        kernel_shape: list[int] | None = None,
        pads: list[int] | None = None,
        strides: list[int] | None = None,
    ) -> tuple[np.ndarray]:
        groups, rank = group or 1, X.ndim - 2
        if X.shape[1] != groups * W.shape[1]:
            raise ValueError(f"a convolution of {groups} x {W.shape[1]} channels reads {X.shape[1]}")
        windows = Windows.of(X.shape[2:], list(W.shape[2:]), auto_pad, None, dilations, pads, strides)
        places = list(windows.places(X, 0))
        w = W.reshape(groups, W.shape[0] // groups, math.prod(W.shape[1:]))
        if len(places) == 1:
            Y = w @ places[0].reshape(X.shape[0], groups, w.shape[2], math.prod(windows.counts))
            Y = Y.reshape(X.shape[0], W.shape[0], *windows.counts)
        else:
            Y = _convolved(places, w)
        if B is not None:
            Y += B.reshape(-1, *[1] * rank)
        return (Y,)


def _convolved(places: list[np.ndarray], w: np.ndarray) -> np.ndarray:
    """The elements `places` of all windows, each [N, I, *counts], times weights [groups, O/groups, I/groups * places]:
    [N, O, *counts]."""
    (batch, channels, *counts), (groups, outputs, length) = places[0].shape, w.shape
    Y = np.empty((batch, groups * outputs, *counts), places[0].dtype)
    row = max(1, channels * len(places) * math.prod(counts[1:]))  # elements in the windows of one row
    rows, images = (max(1, BLOCK // size) for size in (row, row * max(1, counts[0])))
    for first, top in itertools.product(range(0, batch, images), range(0, counts[0], rows)):
        here = (slice(first, first + images), slice(None), slice(top, top + rows))
        taps = [place[here].swapaxes(0, 1) for place in places]  # channels first: one product for all images
        product = w @ np.stack(taps, axis=1).reshape(groups, length, -1)
        Y[here] = product.reshape(groups * outputs, *taps[0].shape[1:]).swapaxes(0, 1)
    return Y


class ConvTranspose(OpRun):
    """Transposed convolution of any rank and number of groups."""

    def _run(
        self,
        X: np.ndarray,
        W: np.ndarray,
        B: np.ndarray | None = None,
        auto_pad: str | None = None,
        dilations: list[int] | None = None,
        group: int | None = None,
        kernel_shape: list[int] | None = None,
        output_padding: list[int] | None = None,
        output_shape: list[int] | None = None,
        pads: list[int] | None = None,
        strides: list[int] | None = None,
    ) -> tuple[np.ndarray]:
        rank = X.ndim - 2
        stride, dilation = strides or [1] * rank, dilations or [1] * rank
        extra, pad = output_padding or [0] * rank, pads or [0] * 2 * rank
        kernel, groups = W.shape[2:], group or 1
        sizes = [
            s * (n - 1) + d * (k - 1) + 1 for s, n, d, k in zip(stride, X.shape[2:], dilation, kernel, strict=True)
        ]
        full = [size + e for size, e in zip(sizes, extra, strict=True)]
        grows = bool(output_shape)  # an explicit output may be larger than what the kernel reaches
        if not output_shape and auto_pad in ("SAME_UPPER", "SAME_LOWER"):
            output_shape = [s * n for s, n in zip(stride, X.shape[2:], strict=True)]
        if output_shape:  # the padding follows from it: half on each side, auto_pad places an odd one
            wanted = output_shape[-rank:]
            if grows:
                full = [max(size, least) for size, least in zip(full, wanted, strict=True)]
            total = [max(0, size - least) for size, least in zip(full, wanted, strict=True)]
            before = [t // 2 if auto_pad == "SAME_UPPER" else t - t // 2 for t in total]
            pad = before + [t - b for t, b in zip(total, before, strict=True)]
        Y = np.zeros((X.shape[0], groups, W.shape[1], *full), X.dtype)
        x = X.reshape(X.shape[0], groups, X.shape[1] // groups, math.prod(X.shape[2:]))
        w = W.reshape(groups, W.shape[0] // groups, *W.shape[1:])
        for position in np.ndindex(*kernel):
            places = tuple(
                slice(d * at, d * at + s * (n - 1) + 1, s)
                for at, d, s, n in zip(position, dilation, stride, X.shape[2:], strict=True)
            )
            here: tuple[Any, ...] = (..., *places)
            Y[here] += (np.ascontiguousarray(w[(..., *position)].swapaxes(1, 2)) @ x).reshape(
                *Y.shape[:3], *X.shape[2:]
            )
        Y = Y.reshape(X.shape[0], groups * W.shape[1], *full)
        inner: tuple[Any, ...] = (..., *(slice(pad[a], full[a] - pad[rank + a]) for a in range(rank)))
        Y = Y[inner]
        return (Y if B is None else Y + B.reshape(-1, *[1] * rank),)


class AveragePool(OpRun):
    """The mean over the input, and over its padding if `count_include_pad`; never over elements beyond the padding."""

    def _run(
        self,
        X: np.ndarray,
        auto_pad: str | None = None,
        ceil_mode: int | None = None,
        count_include_pad: int | None = None,
        dilations: list[int] | None = None,
        kernel_shape: list[int] | None = None,
        pads: list[int] | None = None,
        strides: list[int] | None = None,
    ) -> tuple[np.ndarray]:
        windows = Windows.of(X.shape[2:], kernel_shape or [], auto_pad, ceil_mode, dilations, pads, strides)
        counted = np.ones((1, 1, *X.shape[2:]))
        if count_include_pad:
            widths = [(0, 0), (0, 0), *zip(windows.before, windows.behind, strict=True)]
            counted = np.pad(counted, widths, constant_values=1)
            X = np.pad(X, widths)
            windows = replace(windows, before=(0,) * len(windows.kernel))
        total, count = (sum(windows.places(array, 0), np.zeros(())) for array in (X, counted))
        return ((total / count).astype(X.dtype),)


class MaxPool(OpRun):
    """With the index of the first maximum in X, row by row or (`storage_order` 1) column by column."""

    def _run(
        self,
        X: np.ndarray,
        auto_pad: str | None = None,
        ceil_mode: int | None = None,
        dilations: list[int] | None = None,
        kernel_shape: list[int] | None = None,
        pads: list[int] | None = None,
        storage_order: int | None = None,
        strides: list[int] | None = None,
    ) -> tuple[np.ndarray, ...]:
        sizes = X.shape[2:]
        windows = Windows.of(sizes, kernel_shape or [], auto_pad, ceil_mode, dilations, pads, strides)
        lowest = -np.inf if np.issubdtype(X.dtype, np.floating) else np.iinfo(X.dtype).min
        if len(self.output) == 1:
            return (functools.reduce(np.maximum, windows.places(X, lowest)),)
        within = np.arange(np.prod(sizes)).reshape(sizes, order="F" if storage_order else "C")
        indices = np.arange(X.shape[0] * X.shape[1]).reshape(*X.shape[:2], *[1] * len(sizes)) * within.size + within
        values = np.full((*X.shape[:2], *windows.counts), lowest, X.dtype)
        at = np.full(values.shape, -1)
        for here, index in zip(windows.places(X, lowest), windows.places(indices, -1), strict=True):
            larger = (here > values) | ((at == -1) & (index >= 0))
            values, at = np.where(larger, here, values), np.where(larger, index, at)
        return values, at


class LpPool(OpRun):
    """The p-norm of each window; padding is zero."""

    def _run(
        self,
        X: np.ndarray,
        auto_pad: str | None = None,
        ceil_mode: int | None = None,
        dilations: list[int] | None = None,
        kernel_shape: list[int] | None = None,
        p: int = 2,
        pads: list[int] | None = None,
        strides: list[int] | None = None,
    ) -> tuple[np.ndarray]:
        windows = Windows.of(X.shape[2:], kernel_shape or [], auto_pad, ceil_mode, dilations, pads, strides)
        return (sum(windows.places(np.abs(X) ** p, 0), np.zeros(())) ** (1 / p),)


class GlobalLpPool(OpRun):
    """Of any number of spatial axes."""

    def _run(self, X: np.ndarray, p: int = 2) -> tuple[np.ndarray]:
        return ((np.abs(X) ** p).sum(axis=tuple(range(2, X.ndim)), keepdims=True) ** (1 / p),)


class GlobalMaxPool(OpRun):
    """Of any number of spatial axes."""

    def _run(self, X: np.ndarray) -> tuple[np.ndarray]:
        return (X.max(axis=tuple(range(2, X.ndim)), keepdims=True),)


class Pad(OpRun):
    """Crops by negative widths first, then pads."""

    def _run(
        self,
        X: np.ndarray,
        pads: np.ndarray,
        constant_value: np.ndarray | None = None,
        axes: np.ndarray | None = None,
        mode: Literal["constant", "reflect", "edge", "wrap"] = "constant",
        value: float | None = None,
    ) -> tuple[np.ndarray]:
        widths = np.zeros((X.ndim, 2), np.int64)
        widths[slice(None) if axes is None else axes] = np.reshape(pads, (2, -1)).T
        cropped = tuple(slice(max(0, -a), n - max(0, -b)) for (a, b), n in zip(widths, X.shape, strict=True))
        grown = np.maximum(widths, 0)
        if mode != "constant":
            return (np.pad(X[cropped], grown, mode=mode),)
        filling = value if constant_value is None else constant_value
        return (np.pad(X[cropped], grown, constant_values=0 if filling is None else np.reshape(filling, -1)[0]),)
