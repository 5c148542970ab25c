"""How folding changes the weights that absorb BatchNorms: the factors on single weights, and the effects of float16.

The weights are those in float64, before they are rounded.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from fold.engine import Array, nearest
from fold.graph import constant, display_name, float64, integer
from fold.inspection.statistics import Span
from fold.precision import FORMATS

HALF = FORMATS["fp16"]


@dataclass(frozen=True)
class HalfPrecision:
    """The effects of rounding numbers to float16, zeros left out: how many `numbers` there are, the `largest`
    magnitude, and how many would become infinite (`overflow`), become 0 (`lost`), or keep fewer than 11 bits
    (`subnormal`)."""

    numbers: int
    largest: float
    overflow: int
    lost: int
    subnormal: int


@dataclass(frozen=True)
class FoldedTensor:
    """An initializer of the folded graph that absorbed one or more BatchNorms.

    `layer` and `operator` are the node that reads it as weights. `largest` is the largest magnitude. `spread` is the
    largest magnitude of an output channel over the smallest such magnitude; channels of zeros are left out. The
    `..._before` values are those of the same layer in the unfolded graph, None where the shape differs. `stretch` is
    the range of factors on single weights that are not 0 before or after.
    """

    name: str
    layer: str
    operator: str
    largest: float
    largest_before: float | None
    spread: float | None
    spread_before: float | None
    stretch: Span | None
    float16: HalfPrecision

    def to_dict(self) -> dict[str, Any]:
        """The JSON of one tensor (docs/formats.md)."""
        stretch = None if self.stretch is None else self.stretch._asdict()
        return {**vars(self), "stretch": stretch, "float16": asdict(self.float16)}


def folded_tensors(unfolded: ir.Model, folded: ir.Model, names: Iterable[str]) -> dict[str, FoldedTensor]:
    """The initializers of these names in the exact folded graph. Nodes must have unique names."""
    sources = {node.name: node for node in unfolded.graph}
    return {
        name: _tensor(value, sources)
        for name in dict.fromkeys(names)
        if (value := folded.graph.initializers.get(name)) is not None and value.const_value is not None
    }


def _tensor(value: ir.Value, sources: dict[str | None, ir.Node]) -> FoldedTensor:
    assert value.const_value is not None
    after = float64(value.const_value)
    uses = [(node, index) for node, index in value.uses() if channel_maxima(node, index, after) is not None]
    layer, operator, spread, spread_before, before = "", "", None, None, None
    if uses:
        node, index = uses[0]
        layer, operator = display_name(node), node.op_type
        spread = _spread(channel_maxima(node, index, after))
        source = sources.get(node.name)
        given = constant(source.inputs[index]) if source is not None and index < len(source.inputs) else None
        before = None if given is None or tuple(given.shape.numpy()) != after.shape else float64(given)
        spread_before = None if before is None else _spread(channel_maxima(node, index, before))
    return FoldedTensor(
        name=value.name or "",
        layer=layer,
        operator=operator,
        largest=_largest(after),
        largest_before=None if before is None else _largest(before),
        spread=spread,
        spread_before=spread_before,
        stretch=None if before is None else _stretch(before, after),
        float16=half_precision(after),
    )


def channel_maxima(node: ir.Node, index: int, W: Array) -> Array | None:
    """The largest magnitude of each output channel, [O]; None if this input does not hold weights of the node."""
    sizes = np.abs(W)
    match node.op_type, index:
        case ("Conv", 1):
            axis = 0
        case ("ConvTranspose", 1):  # [I, O/g, *k]
            groups = integer(node, "group", 1)
            apart = sizes.reshape(groups, W.shape[0] // groups, W.shape[1], -1)
            return np.asarray(apart.max(axis=(1, 3)).reshape(-1))
        case ("Gemm", 1):
            axis = 0 if integer(node, "transB", 0) else 1
        case ("MatMul", 0 | 1) if W.ndim > 1:
            axis = W.ndim - 1 if index else W.ndim - 2
        case ("Gather", 0) if W.ndim > 1:
            axis = W.ndim - 1
        case _:
            return None
    return np.asarray(sizes.max(axis=tuple(other for other in range(W.ndim) if other != axis)))


def half_precision(array: Array) -> HalfPrecision:
    """The effects of float16 on the finite numbers of an array."""
    exact = array[np.isfinite(array) & (array != 0)]
    rounded = np.abs(nearest(exact, HALF.dtype).astype(np.float64))
    return HalfPrecision(
        numbers=exact.size,
        largest=_largest(exact),
        overflow=int(np.isinf(rounded).sum()),
        lost=int((rounded == 0).sum()),
        subnormal=int(((rounded != 0) & (rounded < HALF.normal)).sum()),
    )


def merged_half(found: Sequence[HalfPrecision]) -> HalfPrecision | None:
    """The sum over several tensors; None if there are none."""
    if not found:
        return None
    return HalfPrecision(
        numbers=sum(one.numbers for one in found),
        largest=max(one.largest for one in found),
        overflow=sum(one.overflow for one in found),
        lost=sum(one.lost for one in found),
        subnormal=sum(one.subnormal for one in found),
    )


def _largest(array: Array) -> float:
    return float(np.abs(array).max(initial=0))


def _spread(maxima: Array | None) -> float | None:
    alive = np.empty(0) if maxima is None else maxima[maxima > 0]
    return float(alive.max() / alive.min()) if alive.size else None


def _stretch(before: Array, after: Array) -> Span | None:
    both = (before != 0) & (after != 0)
    return Span.of(np.abs(after[both] / before[both]))
