"""Operators that interpolate between elements.

Seen in onnx 1.23: its Resize computes cubic weights in float32, lacks opset 10, and uses a fractional output length for
`align_corners`; its Upsample supports only whole factors in opset 9. Its GridSample computes coordinates in float32 and
lacks the modes of opset 16; for cubic mode with `border` padding it clamps the coordinate, while PyTorch and ONNX
Runtime clamp each tap. Its DeformConv uses that GridSample, its AffineGrid writes float32, and MaxRoiPool is missing.
"""

import itertools
from typing import Any

import numpy as np
from onnx.reference.op_run import OpRun


def interpolation(
    n: int,
    out: int,
    scale: float,
    *,
    mode: str = "nearest",
    coordinates: str = "half_pixel",
    nearest: str = "round_prefer_floor",
    cubic_a: float = -0.75,
    exclude_outside: bool = False,
    antialias: bool = False,
    roi: tuple[float, float] = (0, 1),
    extrapolated: float = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Resizing along one axis: the weights of `n` elements for `out` positions [out, n], and constants to add [out].

    `scale` is the factor in the graph; `out` may be rounded. The nearest element is chosen in float32, as runtimes do:
    if a coordinate lies halfway between two elements, the rounding of the factor decides.
    """
    y: np.ndarray = np.arange(out, dtype=np.float32 if mode == "nearest" else np.float64)
    scale = y.dtype.type(scale)
    at = _coordinates(y, n, scale, coordinates, roi)
    outside = (at < 0) | (at > n - 1) if coordinates == "tf_crop_and_resize" else np.zeros(out, bool)
    if mode == "nearest":
        halves = {"round_prefer_floor": np.ceil(at - 0.5), "round_prefer_ceil": np.floor(at + 0.5)}
        taps = halves.get(nearest, np.floor(at) if nearest == "floor" else np.ceil(at))[:, None]
        weights = np.ones((out, 1))
    else:
        shrunk = min(scale, 1.0) if antialias else 1.0
        reach = int(np.ceil((1 if mode == "linear" else 2) / shrunk))
        taps = np.floor(at)[:, None] + np.arange(1 - reach, 1 + reach)
        away = shrunk * np.abs(at[:, None] - taps)
        weights = np.maximum(0, 1 - away) if mode == "linear" else _cubic(away, cubic_a)
        if exclude_outside:
            weights = weights * ((taps >= 0) & (taps < n))
        if exclude_outside or antialias:
            weights = weights / weights.sum(axis=1, keepdims=True)
    matrix = np.zeros((out, n))
    np.add.at(matrix, (np.arange(out)[:, None], taps.clip(0, n - 1).astype(np.int64)), weights)
    matrix[outside] = 0
    return matrix, np.where(outside, extrapolated, 0.0)


def _coordinates(y: np.ndarray, n: int, scale: float, how: str, roi: tuple[float, float]) -> np.ndarray:
    """Coordinates, among `n` elements, of the output positions `y`."""
    out = len(y)
    if how == "asymmetric":
        return np.asarray(y / scale)
    if how == "align_corners":
        return y * (n - 1) / (out - 1) if out > 1 else np.zeros(out)
    if how == "tf_crop_and_resize":
        start, end = roi
        return np.asarray((n - 1) * (start + (end - start) * (y / (out - 1) if out > 1 else np.full(out, 0.5))))
    if how == "pytorch_half_pixel" and out == 1:
        return np.zeros(out)
    at: np.ndarray = (y + 0.5) / scale - 0.5
    return at + n / 2 * (1 - out / (scale * n)) if how == "half_pixel_symmetric" else at


def _cubic(away: np.ndarray, a: float) -> np.ndarray:
    """Keys' kernel at a distance."""
    near = (a + 2) * away**3 - (a + 3) * away**2 + 1
    far = a * away**3 - 5 * a * away**2 + 8 * a * away - 4 * a
    return np.where(away <= 1, near, np.where(away < 2, far, 0))


class Resize(OpRun):
    """Of every opset, in opset 10 with the scales as the second input: along each axis a product with a matrix."""

    def _run(
        self,
        X: np.ndarray,
        roi: np.ndarray | None = None,
        scales: np.ndarray | None = None,
        sizes: np.ndarray | None = None,
        antialias: int | None = None,
        axes: list[int] | None = None,
        coordinate_transformation_mode: str = "half_pixel",
        cubic_coeff_a: float = -0.75,
        exclude_outside: int = 0,
        extrapolation_value: float = 0.0,
        keep_aspect_ratio_policy: str | None = None,
        mode: str = "nearest",
        nearest_mode: str = "round_prefer_floor",
    ) -> tuple[np.ndarray]:
        if scales is None and sizes is None:
            scales, roi = roi, None
            coordinate_transformation_mode, nearest_mode = "asymmetric", "floor"
        over = [axis % X.ndim for axis in axes or range(X.ndim)]
        if sizes is not None and sizes.size:
            factors = [size / X.shape[axis] for size, axis in zip(sizes.tolist(), over, strict=True)]
            outs = sizes.tolist()
            if keep_aspect_ratio_policy in ("not_larger", "not_smaller"):
                kept = (min if keep_aspect_ratio_policy == "not_larger" else max)(factors)
                factors, outs = [kept] * len(over), [int(np.floor(kept * X.shape[axis] + 0.5)) for axis in over]
        else:
            assert scales is not None
            factors = scales.tolist()
            outs = [int(np.floor(scale * X.shape[axis])) for scale, axis in zip(factors, over, strict=True)]
        for place, (axis, scale, out) in enumerate(zip(over, factors, outs, strict=True)):
            n, cropped = X.shape[axis], coordinate_transformation_mode == "tf_crop_and_resize"
            if scale == 1 and out == n and not cropped:
                continue
            weights, added = interpolation(
                n,
                out,
                scale,
                mode=mode,
                coordinates=coordinate_transformation_mode,
                nearest=nearest_mode,
                cubic_a=float(cubic_coeff_a),
                exclude_outside=bool(exclude_outside),
                antialias=bool(antialias),
                roi=(float(roi[place]), float(roi[place + len(over)])) if cropped and roi is not None else (0, 1),
                extrapolated=extrapolation_value,
            )
            X = np.moveaxis(np.moveaxis(X, axis, -1) @ weights.T + added, -1, axis).astype(X.dtype)
        return (X,)


class Upsample(Resize):
    """With the scales as an input or, in opset 7, an attribute."""

    def _run(self, X: np.ndarray, scales: np.ndarray | list[float], mode: str = "nearest") -> Any:  # type: ignore[override]
        return super()._run(X, np.asarray(scales), mode=mode)


class GridSample(OpRun):
    """Of any number of spatial axes; `padding_mode` maps each tap outside of X to a tap inside."""

    def _run(
        self,
        X: np.ndarray,
        grid: np.ndarray,
        align_corners: int = 0,
        mode: str = "linear",
        padding_mode: str = "zeros",
    ) -> tuple[np.ndarray]:
        sizes = X.shape[2:]
        taps, weights = [], []  # of each axis: [taps, batch, *places]
        for n, at in zip(sizes, np.moveaxis(grid, -1, 0)[::-1], strict=True):
            place = (at + 1) / 2 * (n - 1) if align_corners else ((at + 1) * n - 1) / 2
            if mode == "nearest":
                index, weight = np.rint(place)[None], np.ones((1, *place.shape))
            else:
                reach = 1 if mode in ("linear", "bilinear") else 2
                index = np.floor(place) + np.arange(1 - reach, 1 + reach).reshape(-1, *[1] * place.ndim)
                away = np.abs(place - index)
                weight = 1 - away if reach == 1 else _cubic(away, -0.75)
            if padding_mode == "zeros":
                weight = weight * ((index >= 0) & (index < n))
            elif padding_mode == "reflection":
                index = _reflected(index, n, bool(align_corners))
            taps.append(index.clip(0, n - 1).astype(np.int64))
            weights.append(weight)
        batch = np.arange(X.shape[0]).reshape(-1, *[1] * len(sizes))
        Y = np.zeros((X.shape[0], *grid.shape[1:-1], X.shape[1]), X.dtype)
        for chosen in itertools.product(*(range(len(index)) for index in taps)):
            places = tuple(index[tap] for index, tap in zip(taps, chosen, strict=True))
            factor = np.prod([weight[tap] for weight, tap in zip(weights, chosen, strict=True)], axis=0)
            Y += np.moveaxis(X, 1, -1)[(batch, *places)] * factor[..., None]
        return (np.moveaxis(Y, -1, 1),)


def _reflected(index: np.ndarray, n: int, align_corners: bool) -> np.ndarray:
    """Indices reflected at the centres of the outer elements (`align_corners`), or at their outer edges."""
    low, span = (0, n - 1) if align_corners else (-0.5, n)
    if span == 0:
        return np.zeros_like(index)
    away = np.abs(index - low) % (2 * span)
    return np.asarray(low + np.minimum(away, 2 * span - away))


class AffineGrid(OpRun):
    """Coordinates between -1 and 1 of each element of a map of `size`, moved by theta."""

    def _run(self, theta: np.ndarray, size: np.ndarray, align_corners: int = 0) -> tuple[np.ndarray]:
        axes = []
        for n in size[2:].tolist():
            step = 2 / max(1, n - 1) if align_corners else 2 / n
            axes.append((np.arange(n) * step - 1) if align_corners else (np.arange(n) + 0.5) * step - 1)
        places = np.meshgrid(*axes, indexing="ij")[::-1]
        points = np.stack([*places, np.ones_like(places[0])], axis=-1)
        moved = np.einsum("nij,...j->n...i", theta, points)
        return (moved,)


class MaxRoiPool(OpRun):
    """The maximum of each cell of a region; a cell without an element is 0."""

    def _run(
        self, X: np.ndarray, rois: np.ndarray, pooled_shape: list[int] | None = None, spatial_scale: float = 1.0
    ) -> tuple[np.ndarray]:
        height, width = pooled_shape or [1, 1]
        Y = np.zeros((len(rois), X.shape[1], height, width), X.dtype)
        for roi, y in zip(rois, Y, strict=True):
            left, top, right, bottom = np.floor(roi[1:] * spatial_scale + 0.5).astype(int).tolist()
            rows = _cells(top, bottom, height, X.shape[2])
            columns = _cells(left, right, width, X.shape[3])
            for (i, row), (j, column) in itertools.product(enumerate(rows), enumerate(columns)):
                cell = X[int(roi[0]), :, row, column]
                if cell.size:
                    y[:, i, j] = cell.max(axis=(1, 2))
        return (Y,)


def _cells(first: int, last: int, count: int, n: int) -> list[slice]:
    """The range of each of `count` cells of a region, along an axis of `n` elements."""
    size = max(last - first + 1, 1) / count
    starts, ends = (np.floor(np.arange(count) * size), np.ceil(np.arange(1, count + 1) * size))
    return [
        slice(min(max(int(start) + first, 0), n), min(max(int(end) + first, 0), n))
        for start, end in zip(starts, ends, strict=True)
    ]


class DeformConv(OpRun):
    """Convolution in two axes; offsets move the taps, a mask weights them."""

    def _run(
        self,
        X: np.ndarray,
        W: np.ndarray,
        offset: np.ndarray,
        B: np.ndarray | None = None,
        mask: np.ndarray | None = None,
        dilations: list[int] | None = None,
        group: int = 1,
        kernel_shape: list[int] | None = None,
        offset_group: int = 1,
        pads: list[int] | None = None,
        strides: list[int] | None = None,
    ) -> tuple[np.ndarray]:
        batch, channels = X.shape[:2]
        (kh, kw), (oh, ow) = W.shape[2:], offset.shape[2:]
        moves = offset.reshape(batch, offset_group, kh * kw, 2, oh, ow)
        factors = np.ones((1, 1, kh * kw, 1, 1)) if mask is None else mask.reshape(batch, offset_group, kh * kw, oh, ow)
        starts = [
            np.arange(n) * step - pad
            for n, step, pad in zip((oh, ow), strides or [1, 1], pads or [0] * 4, strict=False)
        ]
        spread = dilations or [1, 1]
        parts = X.reshape(batch, offset_group, channels // offset_group, *X.shape[2:])
        columns = np.empty((batch, channels, kh * kw, oh * ow))
        for tap, (i, j) in enumerate(np.ndindex(kh, kw)):
            y = (starts[0] + i * spread[0])[:, None] + moves[:, :, tap, 0]
            x = (starts[1] + j * spread[1])[None, :] + moves[:, :, tap, 1]
            sampled = _bilinear(parts, y, x) * factors[:, :, tap][:, :, None]
            columns[:, :, tap] = sampled.reshape(batch, channels, oh * ow)
        columns = columns.reshape(batch, group, -1, oh * ow)
        Y = (W.reshape(group, W.shape[0] // group, -1) @ columns).reshape(batch, W.shape[0], oh, ow)
        return (Y if B is None else Y + B.reshape(-1, 1, 1),)


def _bilinear(X: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """X [batch, groups, channels, height, width] interpolated at coordinates [batch, groups, *out], with zeros outside:
    [batch, groups, channels, *out]."""
    height, width = X.shape[3:]
    groups = np.ogrid[: X.shape[0], : X.shape[1]]
    at = tuple(index[..., None, None] for index in groups)
    total = np.zeros((*y.shape, X.shape[2]))
    for down, right in np.ndindex(2, 2):
        row, column = np.floor(y) + down, np.floor(x) + right
        inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        weight = np.where(inside, (1 - np.abs(y - row)) * (1 - np.abs(x - column)), 0)
        rows, columns = row.clip(0, height - 1).astype(int), column.clip(0, width - 1).astype(int)
        total += weight[..., None] * np.moveaxis(X, 2, -1)[(*at, rows, columns)]
    return np.moveaxis(total, -1, 2)
