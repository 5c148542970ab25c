"""Where two graphs part: the first layer of A whose tensor B does not have, not even by another name.

Tools rename, fuse and remove nodes, and a fold scales and shifts channels. So a tensor x of A corresponds to the tensor
of B that is closest to `p*x + q`, with a factor p and an offset q for each channel: the one with the same name if it
fits, else any of the same shape. A tensor without such a counterpart is no fault if a later one has one: the tool
rewrote what lies between.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from fold.arrays import Arrays, Run
from fold.errors import BnfoldError
from fold.evaluate import Evaluator
from fold.graph import described
from fold.proof import relative_difference

SAMPLE = 64
"""Values of each channel on which counterparts are looked for."""
FEWEST = 6
"""Values of a channel below which a factor and an offset fit anything: such tensors must be equal."""


@dataclass(frozen=True)
class Layer:
    """A tensor of A, in the order of its nodes. `counterpart` is B's tensor that is closest, `difference` how far it is
    from it, relative to its largest value; `scaled` is true if B holds it with another scale or shift."""

    tensor: str
    node: str
    counterpart: str
    difference: float
    scaled: bool


@dataclass(frozen=True)
class Parting:
    """The first layer that parts, in A and in B; None where only an output itself differs. `last` is the last tensor of
    A that B has. `scaled` is the first layer before it whose tensor B holds with another scale or shift by channel.
    Tensors correspond if their `difference` is at most `tolerance`."""

    node: str | None
    counterpart: str | None
    last: str | None
    scaled: str | None
    layers: tuple[Layer, ...]
    tolerance: float

    @property
    def message(self) -> str:
        if self.node is None:
            return "no layer was found where they part"
        where = f"the first layer that parts is {self.node} of A"
        where += f", {self.counterpart} of B" if self.counterpart else ""
        after = f"; they agree up to {self.last}" if self.last else ""
        scaled = f"; before it, B scales or shifts channels from {self.scaled} on" if self.scaled else ""
        return where + after + scaled

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "message": self.message}


def find_parting(
    a: ir.Model, b: ir.Model, inputs: Arrays, feed: Run, outputs: Mapping[str, str], tolerance: float
) -> Parting:
    """Evaluate both graphs in float64 on `inputs` of A, which `feed` turns into those of B, and compare their tensors.

    Tensors correspond if they differ by at most `tolerance`, relative to the largest value.
    """
    # 1. The tensors of both
    ours, theirs = _tensors(a, inputs), _tensors(b, feed(inputs))
    by_shape: dict[tuple[int, ...], list[str]] = {}
    for name, array in theirs.items():
        by_shape.setdefault(array.shape, []).append(name)

    # 2. The counterpart of each tensor of A
    layers: dict[str, Layer] = {}
    used: set[str] = set()
    for producer in a.graph:
        for value in producer.outputs:
            name = value.name or ""
            if name not in ours:
                continue
            if name in outputs:
                other = outputs[name]
                found = (other, relative_difference(ours[name], theirs[other]) if other in theirs else np.inf, False)
            else:
                found = _closest(name, ours[name], theirs, by_shape.get(ours[name].shape, ()), tolerance)
            layers[name] = Layer(name, described(producer), *found)
            if found[1] <= tolerance:
                used.add(found[0])
    matched = {name for name, layer in layers.items() if layer.difference <= tolerance}

    # 3. The first node without a counterpart behind which there is none
    parting = _first_parted(a, set(layers), matched)
    if parting is None:
        return Parting(None, None, None, None, tuple(layers.values()), tolerance)
    before = _ancestors(parting)
    agreed = [layer for layer in layers.values() if layer.tensor in matched and layer.tensor in before]
    scaled = next((layer.node for layer in agreed if layer.scaled), None)
    node = _first_parted(b, set(theirs), used)
    return Parting(
        described(parting),
        None if node is None else described(node),
        agreed[-1].tensor if agreed else None,
        scaled,
        tuple(layers.values()),
        tolerance,
    )


def _tensors(model: ir.Model, inputs: Arrays) -> Arrays:
    """The float tensors that the nodes of a graph write, in float64, as far as they can be computed."""
    found: Arrays = {}

    def note(name: str, array: np.ndarray) -> None:
        if np.issubdtype(array.dtype, np.floating) and array.size:
            found[name] = array

    try:
        Evaluator(model)(inputs, on_tensor=note)
    except BnfoldError:
        if not found:
            raise
    return found


def _closest(
    name: str, array: np.ndarray, theirs: Arrays, same_shape: Iterable[str], tolerance: float
) -> tuple[str, float, bool]:
    """B's closest tensor, its distance, and whether it has another scale or shift."""
    if name in theirs and theirs[name].shape == array.shape:
        distance = relative_difference(array, theirs[name])
        if distance <= tolerance:
            return name, distance, False
    best = ("", np.inf, False)
    for other in same_shape:
        plain = relative_difference(array, theirs[other])
        if plain <= tolerance:
            return other, plain, False
        fitted = _fitted_distance(array, theirs[other])
        if other == name and fitted <= tolerance:  # the name decides among counterparts that fit
            return other, fitted, True
        if fitted < best[1]:
            best = (other, fitted, True)
    return best


def _fitted_distance(array: np.ndarray, other: np.ndarray) -> float:
    """The distance after the best factor and offset for each channel (axis 1), on a sample of each channel."""
    if array.ndim < 2:
        return np.inf
    x, y = (np.moveaxis(each, 1, 0).reshape(each.shape[1], -1) for each in (array, other))
    if x.shape[1] < FEWEST:
        return np.inf
    chosen = np.linspace(0, x.shape[1] - 1, min(SAMPLE, x.shape[1])).astype(int)
    x, y = x[:, chosen], y[:, chosen]
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        return np.inf
    size = np.abs(y).max(initial=0)
    if not size or not np.abs(x).max(initial=0):
        return np.inf  # a tensor of zeros corresponds to any
    centre, level = x.mean(axis=1, keepdims=True), y.mean(axis=1, keepdims=True)
    variance = ((x - centre) ** 2).sum(axis=1, keepdims=True)
    factor = ((x - centre) * (y - level)).sum(axis=1, keepdims=True) / np.where(variance > 0, variance, 1)
    return float(np.abs(y - level - factor * (x - centre)).max() / size)


def _first_parted(model: ir.Model, compared: set[str], matched: set[str]) -> ir.Node | None:
    """The first node that writes a compared tensor without a counterpart, and behind which no tensor has one."""
    reaches: set[ir.Value] = set()
    parted: ir.Node | None = None
    for node in reversed(list(model.graph)):
        agrees = any((value.name or "") in matched or value in reaches for value in node.outputs)
        if agrees:
            reaches.update(value for value in node.inputs if value is not None)
        elif any((value.name or "") in compared for value in node.outputs):
            parted = node
    return parted


def _ancestors(node: ir.Node) -> set[str]:
    """The names of all tensors that a node depends on."""
    found: set[str] = set()
    waiting = [value for value in node.inputs if value is not None]
    while waiting:
        value = waiting.pop()
        if (value.name or "") in found:
            continue
        found.add(value.name or "")
        producer = value.producer()
        waiting += [] if producer is None else [each for each in producer.inputs if each is not None]
    return found
