"""The error of each layer: how far the tensors of the unfolded and of the folded graph are from float64.

R is the unfolded graph in float64; U and F are the unfolded and the stored folded graph in ONNX Runtime on the CPU,
node by node. A tensor of the folded graph is compared with `p*R + q`, which it should carry. Time and memory are
bounded: a few rows of input and a sample of each tensor are used.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
import onnx_ir as ir

from fold.arrays import Arrays, row_count
from fold.engine import Gauge, TensorSize
from fold.evaluate import Evaluator
from fold.graph import display_name, infer_shapes, is_float
from fold.runtime import open_graph, run

OBSERVED_ROWS = 8
"""Rows of input, at most."""
ROWS_BYTES = 1 << 26
"""Bytes of observed activations, above which fewer rows are used; a single row may need more."""
SAMPLE = 10_000
"""Numbers of a tensor that are used; a larger tensor is sampled."""
LAYERS = 300
"""The most tensors that are compared; of more, these are chosen at even distances."""

T = TypeVar("T")


@dataclass(frozen=True)
class Layer:
    """The largest error of one tensor, relative to its largest value, without ONNX Runtime's optimisations. `folded` is
    None where the folded graph has no such tensor."""

    name: str
    unfolded: float
    folded: float | None


@dataclass(frozen=True)
class LayerErrors:
    """The layers in the order of the graph, chosen from `tensors` tensors, on `rows` rows of input."""

    layers: tuple[Layer, ...]
    tensors: int
    rows: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Sampled(NamedTuple):
    """Some numbers of a tensor, in float64, and the tensor's shape."""

    values: np.ndarray
    shape: tuple[int, ...]


Samples = dict[str, Sampled]


def layer_errors(
    unfolded: ir.Model,
    folded: ir.Model,
    carried: Mapping[str, Gauge],
    inputs: Arrays,
    halt: Callable[[], None] = lambda: None,
) -> LayerErrors:
    """Compare the layers of both graphs on the first rows of `inputs`.

    `carried` is that of `fold.engine.fold_graph`: the gauges of the folded graph's tensors. `halt` is called at each
    tensor, and may end it by an exception.

    Raises `BnfoldError` if a graph cannot be evaluated. No argument is changed.
    """
    unfolded, folded = unfolded.clone(), folded.clone()
    for model in (unfolded, folded):
        infer_shapes(model)
    sampler = LayerSampler(unfolded)
    few = first_free(inputs, unfolded.graph, sampler.rows)
    _, R = sampler.exact(few, halt)
    halt()
    U = sampler.run(unfolded, few)
    halt()
    F = sampler.run(folded, few)
    return LayerErrors(tuple(sampler.errors(R, U, F, carried)), sampler.tensors, row_count(few))


class LayerSampler:
    """Chooses the tensors of an unfolded graph that are compared, those of `also` among them, and samples them. Shapes
    must have been inferred. `tensors` counts those to choose from; `rows` of input are used."""

    def __init__(self, unfolded: ir.Model, also: AbstractSet[str] = frozenset()) -> None:
        found = _tensors(unfolded)
        self._unfolded = unfolded
        self._labels = {name: label for name, (label, _) in found.items()}
        self._chosen = {name for name, _ in evenly(list(found.items()), LAYERS)} | also
        self.tensors = len(found)
        sizes = sum(found[name][1] for name in self._chosen if name in found)
        self.rows = max(1, min(OBSERVED_ROWS, ROWS_BYTES // max(sizes, 1)))

    def exact(self, inputs: Arrays, halt: Callable[[], None] = lambda: None) -> tuple[Arrays, Samples]:
        """The outputs in float64, and samples of R."""
        samples: Samples = {}

        def keep(name: str, array: np.ndarray) -> None:
            halt()
            if name in self._chosen:
                samples[name] = sample(array)

        return Evaluator(self._unfolded)(inputs, on_tensor=keep), samples

    def run(self, model: ir.Model, inputs: Arrays) -> Samples:
        """Samples of those tensors that the graph has, without ONNX Runtime's optimisations."""
        model = model.clone()
        values = [value for node in model.graph for value in node.outputs if value.name in self._chosen]
        floats = [value for value in values if is_float(value)]
        model.graph.outputs.extend(value for value in floats if not value.is_graph_output())
        given = {name: array for name, array in inputs.items() if np.issubdtype(array.dtype, np.floating)}
        arrays = given | run(open_graph(model, optimised=False), inputs)
        return {name: sample(array) for name, array in arrays.items() if name in self._chosen}

    def errors(self, R: Samples, U: Samples, F: Samples, carried: Mapping[str, Gauge]) -> Iterator[Layer]:
        for name, label in self._labels.items():
            if name in R and name in U:
                known = name in F and name in carried and F[name].shape == R[name].shape
                folded = _relative(_carried(R[name], carried[name]), F[name].values) if known else None
                unfolded = _relative(R[name].values, U[name].values)
                if unfolded is not None:
                    yield Layer(label, unfolded, folded)


def evenly(items: Sequence[T], most: int) -> list[T]:
    """At most `most` items at even distances, with the first and the last."""
    if len(items) <= most:
        return list(items)
    return [items[round(index)] for index in np.linspace(0, len(items) - 1, most)]


def first_free(inputs: Arrays, graph: ir.Graph, rows: int) -> Arrays:
    """At most `rows` rows of the inputs whose first axis is free."""
    free = {value.name for value in graph.inputs if value.shape and not isinstance(value.shape[0], int)}
    return {name: array[:rows] if name in free else array for name, array in inputs.items()}


def sample(array: np.ndarray) -> Sampled:
    """A sample of a tensor: the same elements for all tensors of one size."""
    flat = array.reshape(-1)
    flat = flat if flat.size <= SAMPLE else flat[_places(flat.size)]
    return Sampled(flat.astype(np.float64), array.shape)


def _places(size: int) -> np.ndarray:
    return np.sort(np.random.default_rng(size).integers(0, size, SAMPLE))


def _tensors(model: ir.Model) -> dict[str, tuple[str, int]]:
    """For each float tensor that a node computes: the layer's name, and the bytes of a row (0: not known)."""
    return {
        value.name: (display_name(node), TensorSize.of(value).bytes() or 0)
        for node in model.graph
        if node.op_type != "Constant"
        for value in node.outputs
        if value.name and is_float(value)
    }


def _carried(sampled: Sampled, gauge: Gauge) -> np.ndarray:
    """`p*R + q` at the sampled positions."""
    places = _places(size) if (size := math.prod(sampled.shape)) > SAMPLE else np.arange(size)
    at = np.unravel_index(places, sampled.shape) if sampled.shape else ()
    p, q = (np.broadcast_to(part, sampled.shape)[at] for part in gauge)
    with np.errstate(invalid="ignore"):  # where p is infinite, anything may be carried
        return np.asarray(p * sampled.values + q)


def _relative(right: np.ndarray, other: np.ndarray) -> float | None:
    """The largest difference relative to the largest value; None for a tensor of zeros or without finite numbers."""
    finite = np.isfinite(right) & np.isfinite(other)
    size = np.abs(right[finite]).max(initial=0)
    return float(np.abs(other - right)[finite].max() / size) if size else None
