"""Spatial operators for `fold.evaluate.autograd`: convolutions, pools, padding, resizing, depth to space."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from fold.evaluate.operators import Windows, interpolation
from fold.graph import integer, integers, real, text

CONVOLUTIONS = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}
TRANSPOSED = {3: F.conv_transpose1d, 4: F.conv_transpose2d, 5: F.conv_transpose3d}
MAX_POOLS: dict[int, Callable[..., Tensor]] = {3: F.max_pool1d, 4: F.max_pool2d, 5: F.max_pool3d}


def _windows(node: ir.Node, x: Tensor, kernel: Sequence[int]) -> Windows:
    return Windows.of(
        tuple(x.shape[2:]),
        list(kernel),
        text(node, "auto_pad", "NOTSET"),
        integer(node, "ceil_mode", 0),
        integers(node, "dilations"),
        integers(node, "pads"),
        integers(node, "strides"),
    )


def _widen(x: Tensor, before: Sequence[int], behind: Sequence[int], value: float = 0) -> Tensor:
    """Pad the last axes; negative widths crop."""
    if not any((*before, *behind)):
        return x
    return F.pad(x, [n for pair in zip(reversed(before), reversed(behind), strict=True) for n in pair], value=value)


def _cover(x: Tensor, windows: Windows, value: float = 0) -> Tensor:
    """Pad until the last window fits; in ceil mode it may end beyond the padding of the node."""
    needed = [
        s * (m - 1) + d * (k - 1) + 1
        for s, m, d, k in zip(windows.strides, windows.counts, windows.dilations, windows.kernel, strict=True)
    ]
    behind = [max(0, n - b - size) for n, b, size in zip(needed, windows.before, x.shape[2:], strict=True)]
    return _widen(x, windows.before, behind, value)


def conv(node: ir.Node, x: Tensor, W: Tensor, B: Tensor | None = None) -> Tensor:
    windows = _windows(node, x, W.shape[2:])
    x = _widen(x, windows.before, windows.behind)
    return CONVOLUTIONS[x.ndim](x, W, B, windows.strides, 0, windows.dilations, integer(node, "group", 1))


def conv_transpose(node: ir.Node, x: Tensor, W: Tensor, B: Tensor | None = None) -> Tensor:
    """Computed without padding, then cropped, because PyTorch only crops both sides alike."""
    rank, how = x.ndim - 2, text(node, "auto_pad", "NOTSET")
    ones = [1] * rank
    strides, dilations = integers(node, "strides", ones), integers(node, "dilations", ones)
    y = TRANSPOSED[x.ndim](x, W, None, strides, 0, 0, integer(node, "group", 1), dilations)
    extra = integers(node, "output_padding", [0] * rank)
    pads = [0] * 2 * rank if how == "VALID" else integers(node, "pads", [0] * 2 * rank)
    before, behind = pads[:rank], pads[rank:]
    wanted = integers(node, "output_shape")[-rank:]
    grows = bool(wanted)  # an explicit output may be larger than what the kernel reaches
    if not wanted and how.startswith("SAME"):
        wanted = [s * n for s, n in zip(strides, x.shape[2:], strict=True)]
    if wanted:  # the padding follows from it: half on each side, auto_pad places an odd one
        if grows:
            extra = [max(e, want - n) for n, e, want in zip(y.shape[2:], extra, wanted, strict=True)]
        total = [max(0, n + e - want) for n, e, want in zip(y.shape[2:], extra, wanted, strict=True)]
        before = [t // 2 if how == "SAME_UPPER" else t - t // 2 for t in total]
        behind = [t - b for t, b in zip(total, before, strict=True)]
    y = _widen(y, [-b for b in before], [e - b for e, b in zip(extra, behind, strict=True)])
    return y if B is None else y + B.reshape(-1, *[1] * rank)


def max_pool(node: ir.Node, x: Tensor) -> Tensor:
    windows = _windows(node, x, integers(node, "kernel_shape"))
    x = _cover(x, windows, -np.inf)
    return MAX_POOLS[x.ndim](x, windows.kernel, windows.strides, 0, windows.dilations)


def average_pool(node: ir.Node, x: Tensor) -> Tensor:
    """A convolution with ones, divided by the number of elements that count in each window."""
    windows = _windows(node, x, integers(node, "kernel_shape"))
    counted = torch.ones_like(x[:1, :1])
    if integer(node, "count_include_pad", 0):
        x, counted = (_widen(t, windows.before, windows.behind, fill) for t, fill in ((x, 0), (counted, 1)))
        windows = replace(windows, before=(0,) * len(windows.kernel))
    ones = torch.ones(1, 1, *windows.kernel, dtype=x.dtype)
    total, count = (
        CONVOLUTIONS[x.ndim](
            _cover(t, windows).flatten(0, 1).unsqueeze(1), ones, None, windows.strides, 0, windows.dilations
        )
        for t in (x, counted)
    )
    return (total / count).reshape(*x.shape[:2], *total.shape[2:])


def pad(node: ir.Node, x: Tensor, pads: Tensor, value: Tensor | None = None, axes: Tensor | None = None) -> Tensor:
    """Crops by negative widths first, then pads."""
    widths = np.zeros((x.ndim, 2), np.int64)
    widths[slice(None) if axes is None else axes.numpy()] = pads.reshape(2, -1).T.numpy()
    cropped, grown = (widths.clip(max=0).T.tolist(), widths.clip(min=0).T.tolist())
    x = _widen(x, cropped[0], cropped[1])
    mode = text(node, "mode", "constant")
    if mode == "constant":
        return _widen(x, grown[0], grown[1], 0 if value is None else float(value.reshape(-1)[0]))
    for axis, (before, behind) in enumerate(zip(*grown, strict=True)):
        if before or behind:
            x = x.index_select(axis, torch.from_numpy(_padded_indices(x.shape[axis], before, behind, mode)))
    return x


def _padded_indices(n: int, before: int, behind: int, mode: str) -> np.ndarray:
    """For each position of a padded axis the index of its element, of `n`."""
    places = np.arange(-before, n + behind)
    if mode == "edge":
        return places.clip(0, n - 1)
    if mode == "wrap":
        return places % n
    period = max(1, 2 * (n - 1))
    return np.minimum(places % period, period - places % period) if n > 1 else places % period


def resize(
    node: ir.Node, x: Tensor, _roi: Tensor | None = None, scales: Tensor | None = None, sizes: Tensor | None = None
) -> Tensor:
    """Along each axis a product with a matrix; each of its rows holds the weights of one output position."""
    how = text(node, "coordinate_transformation_mode", "half_pixel")
    if how == "tf_crop_and_resize":
        raise NotImplementedError("tf_crop_and_resize is not supported")
    if text(node, "keep_aspect_ratio_policy", "stretch") != "stretch":
        raise NotImplementedError("keep_aspect_ratio_policy is not supported")
    over = integers(node, "axes") or list(range(x.ndim))
    given = scales if sizes is None else sizes / torch.tensor([x.shape[axis] for axis in over], dtype=torch.float64)
    assert given is not None
    for axis, scale in zip(over, given.tolist(), strict=True):
        n = x.shape[axis]
        out = round(scale * n) if sizes is not None else int(np.floor(scale * n))
        if scale != 1:
            weights, _ = interpolation(
                n,
                out,
                scale,
                mode=text(node, "mode", "nearest"),
                coordinates=how,
                nearest=text(node, "nearest_mode", "round_prefer_floor"),
                cubic_a=real(node, "cubic_coeff_a", -0.75),
                exclude_outside=bool(integer(node, "exclude_outside", 0)),
                antialias=bool(integer(node, "antialias", 0)),
            )
            x = torch.tensordot(x, torch.from_numpy(weights), dims=([axis], [1])).movedim(-1, axis)
    return x


def depth_to_space(node: ir.Node, x: Tensor) -> Tensor:
    b = integer(node, "blocksize", 1)
    n, c, h, w = x.shape
    if text(node, "mode", "DCR") == "DCR":
        return x.reshape(n, b, b, c // b**2, h, w).permute(0, 3, 4, 1, 5, 2).reshape(n, c // b**2, h * b, w * b)
    return x.reshape(n, c // b**2, b, b, h, w).permute(0, 1, 4, 2, 5, 3).reshape(n, c // b**2, h * b, w * b)


def space_to_depth(node: ir.Node, x: Tensor) -> Tensor:
    b = integer(node, "blocksize", 1)
    n, c, h, w = x.shape
    return x.reshape(n, c, h // b, b, w // b, b).permute(0, 3, 5, 1, 2, 4).reshape(n, c * b**2, h // b, w // b)
