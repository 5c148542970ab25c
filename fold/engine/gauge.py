"""The gauge of every tensor: the variables and constraints that the laws write and the solver reads.

The folded graph carries each float tensor x as `p*x + q`, with one pair (p, q) for each channel. The laws say for each
node which constraints these gauges must satisfy so that the graph computes the same function. Constraints are between
variables: a scale variable is a p, a shift variable is a q.

A `Layout` records where the channels of a tensor are: it has a variable for each position along the axes on which the
gauge varies. It is permuted and reshaped as the tensor is, so channels are never guessed from equal sizes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from fold.engine.affine import Array, Gauge, Ids
from fold.engine.reasons import Code, Reason
from fold.graph import VALUELESS, constant, display_name, is_float, is_standard

BEHIND_SHARED, FROM_WEIGHTS, FROM_BATCHNORM, FROM_OTHERS, FROM_SCALE = 4, 3, 2, 1, 0
"""The order in which shift variables become unknowns to solve for, highest first: the output of a BatchNorm whose input
other nodes read too, the output of weights (a bias absorbs it), of other BatchNorms, of other nodes, and of a product
(which would need an additional sum)."""


@dataclass(frozen=True)
class Layout:
    """Variables of one tensor: `scale` and `shift` have its rank, and extent 1 or the tensor's own along each axis."""

    scale: Ids
    shift: Ids

    def map(self, move: Callable[[Ids], Ids]) -> "Layout":
        return Layout(move(self.scale), move(self.shift))


BEHIND = -1
"""In place of an input's index: a constant that is added to the node's output."""

IN_FRONT = -2
"""In place of an input's index: the value of one more input channel, behind the others, the same at all positions."""

Parameters = dict[tuple[ir.Node, int], Array]
"""New parameters in float64, by the node and which input of it they are (or BEHIND, IN_FRONT)."""

Steps = list[tuple[str, Array]]
"""Element-wise operators in order, each with one constant in float64, that replace a node."""


@dataclass(frozen=True)
class Absorber:
    """A node with parameters that can absorb gauges.

    `parameters(read, write)` takes the gauges of its input and of its output. It returns new parameters, or steps that
    replace all of `nodes`, or None where the node stays as it is. `attributes` are set together with new parameters.
    """

    node: ir.Node
    read: Layout
    write: Layout
    parameters: Callable[[Gauge, Gauge], Parameters | Steps | None]
    attributes: dict[str, float] = field(default_factory=dict)
    divides: bool = True
    """Whether its parameters divide by the scale of its input, which must then not be 0."""
    nodes: tuple[ir.Node, ...] = ()
    """All nodes, in order, where the absorber is a chain of several."""
    always: bool = False
    """Whether it may change although the gauges of its input and output are (1, 0)."""

    @property
    def source(self) -> ir.Value:
        """Its input that is not constant."""
        first = self.nodes[0] if self.nodes else self.node
        return next(value for value in first.inputs if value is not None and constant(value) is None)

    @property
    def result(self) -> ir.Value:
        return (self.nodes[-1] if self.nodes else self.node).outputs[0]


@dataclass(frozen=True)
class Candidate:
    """A map `v = s*u + t` that could be removed. Where it is kept, `absorber` gives its new parameters.

    A BatchNorm, as one node or written out, is `reported`; a single product or sum with a constant is not. `size` is
    the size of u by the BatchNorm's statistics, `|mean| + 3*sqrt(variance)`, and `size_of_v` that of v; both are None
    without statistics. `private` is true where no other node reads u. `dead` marks channels of scale 0 that need no
    equation, because the opened activations behind them write their constant. Arrays and layouts have shape [channels].
    """

    absorber: Absorber
    s: Array
    t: Array
    cause: int
    reported: bool = True
    size: Array | None = None
    size_of_v: Array | None = None
    private: bool = True
    dead: NDArray[np.bool_] | None = None

    @property
    def node(self) -> ir.Node:
        return self.absorber.node

    @property
    def u(self) -> Layout:
        return self.absorber.read

    @property
    def v(self) -> Layout:
        return self.absorber.write


@dataclass(frozen=True)
class Constraint:
    """`p = 1`, `p > 0`, `p_a = p_b`, or `sum(coefficient * q) = 0`, at every position of arrays of one shape [n]."""

    kind: Literal["one", "positive", "equal", "sum"]
    terms: tuple[tuple[float, Ids], ...]
    cause: int


class Gauges:
    """A layout for every float tensor, the constraints between the variables, the absorbers, and the candidates.

    `opened` are the nodes that may be rewritten as other operators so that a BatchNorm can be removed. `pads` has the
    Pad that a convolution pads for, by the convolution.
    """

    def __init__(self, opened: frozenset[ir.Node], pads: Mapping[ir.Node, ir.Node]) -> None:
        self.opened = opened
        self.pads = pads
        self.dead: dict[ir.Value, tuple[NDArray[np.bool_], Array]] = {}
        """By the input of an opened activation: where it is constant, and the constants; both of the layout's shape."""
        self.absorbers: list[Absorber] = []
        self.candidates: list[Candidate] = []
        self.kept: dict[ir.Node, Reason] = {}
        """BatchNorms that have no constant scale and shift, with the reason."""
        self.causes: list[Reason] = []
        """The reasons of constraints and candidates. A `cause` is an index into this list."""
        self.constraints: list[Constraint] = []
        self.scale_count = 0
        self.layouts: dict[ir.Value, Layout] = {}
        """By float tensor, for the nodes whose laws were applied."""
        self.stored_in_float16: list[Layout] = []
        """Of tensors that a Cast reads or writes in float16, and in another float type on its other side."""
        self._absorbing: set[ir.Node] = set()
        self._shift_preferences: list[tuple[int, int]] = []  # (how many, their preference)
        self._shift_count = 0

    @property
    def shift_preferences(self) -> Ids:
        """For each shift variable its preference as the unknown to solve for."""
        counts = [count for count, _ in self._shift_preferences]
        return np.repeat([preference for _, preference in self._shift_preferences], counts).astype(np.int64)

    # What a law reads.

    def known(self, node: ir.Node) -> bool:
        """Whether the law of another node has covered this one too."""
        return any(value in self.layouts for value in node.outputs)

    def private(self, value: ir.Value) -> bool:
        """Whether a tensor comes from weights and has a single reader, so that a shift of it affects no other node."""
        waiting = [value]
        while waiting:
            value = waiting.pop()
            producer = value.producer()
            readers = [reader for reader, _ in value.uses() if not _asks_for_shape(reader)]
            if producer is None or len(readers) != 1 or value.is_graph_output():
                return False
            if producer not in self._absorbing:
                waiting += [v for v in producer.inputs if v is not None and is_float(v) and constant(v) is None]
        return True

    def of(self, value: ir.Value) -> Layout:
        """The layout of a tensor. One that no law has written (a constant) is carried as it is."""
        if value not in self.layouts:
            self.pin(value, Reason(Code.CONSTANT_TENSOR, value.name or "?"))
        return self.layouts[value]

    def uniform(self, value: ir.Value, axes: Sequence[int], cause: int) -> Layout:
        """Demand one gauge along `axes`; the layout has extent 1 there."""

        def flatten(ids: Ids, kind: Literal["equal", "sum"]) -> Ids:
            for axis in axes:
                first, rest = np.split(ids, [1], axis=axis)
                if rest.size:
                    self._constrain(kind, cause, (1.0, rest), (-1.0, first))
                ids = first
            return ids

        layout = self.of(value)
        return Layout(flatten(layout.scale, "equal"), flatten(layout.shift, "sum"))

    def along(self, value: ir.Value, axis: int, size: int, cause: int) -> Layout:
        """Demand one gauge along all axes but one; the layout along that one has shape [size]."""
        rank = self.of(value).scale.ndim
        others = [other for other in range(rank) if other != axis % rank]
        return self.uniform(value, others, cause).map(lambda ids: np.broadcast_to(ids.reshape(-1), (size,)))

    @staticmethod
    def nothing() -> Layout:
        """The empty layout: for an absorber that has no gauged input."""
        return Layout(np.empty(0, np.int64), np.empty(0, np.int64))

    # What a law writes.

    def cause(self, node: ir.Node, code: Code, details: Mapping[str, float | str] | None = None) -> int:
        """Note that a node demands something; returns the index of this reason in `causes`."""
        return self._note(Reason(code, display_name(node), details or {}))

    def set(self, value: ir.Value, layout: Layout) -> None:
        self.layouts[value] = layout

    def fresh(self, shape: tuple[int, ...], preference: int = FROM_OTHERS) -> Layout:
        """New variables for a tensor that can have any gauge."""
        size = int(np.prod(shape))
        scale = np.arange(self.scale_count, self.scale_count + size).reshape(shape)
        self.scale_count += size
        return Layout(scale, self.fresh_shift(shape, preference))

    def fresh_shift(self, shape: tuple[int, ...], preference: int = FROM_OTHERS) -> Ids:
        size = int(np.prod(shape))
        shift = np.arange(self._shift_count, self._shift_count + size).reshape(shape)
        self._shift_count += size
        self._shift_preferences.append((size, preference))
        return shift

    def fresh_along(self, value: ir.Value, axis: int, size: int, preference: int) -> Layout:
        """New variables along one axis of `value`; returns them with shape [size]."""
        layout = self.fresh((size,), preference)
        rank = _rank(value)
        shape = tuple(size if other == axis % rank else 1 for other in range(rank))
        self.set(value, layout.map(lambda ids: ids.reshape(shape)))
        return layout

    def positive(self, scale: Ids, cause: int) -> None:
        """`p > 0`."""
        self._constrain("positive", cause, (1.0, scale))

    def equal(self, a: Ids, b: Ids, cause: int) -> None:
        """`p_a = p_b`."""
        self._constrain("equal", cause, (1.0, a), (-1.0, b))

    def zero(self, shift: Ids, cause: int) -> None:
        """`q = 0`."""
        self._constrain("sum", cause, (1.0, shift))

    def sum(self, cause: int, *terms: tuple[float, Ids]) -> None:
        """`sum(coefficient * q) = 0`."""
        self._constrain("sum", cause, *terms)

    def pin(self, value: ir.Value, reason: Reason) -> None:
        """Carry a tensor as it is: `p = 1` and `q = 0`. A tensor without a layout gets one."""
        if value not in self.layouts:
            self.set(value, self.fresh((1,) * _rank(value)))
        self.fixed(self.layouts[value], self._note(reason))

    def boundary(
        self, node: ir.Node, code: Code = Code.NO_LAW, details: Mapping[str, float | str] | None = None
    ) -> None:
        """A node without a law, or one that its law does not cover: everything around it is carried as it is."""
        reason = Reason(code, display_name(node), {"operator": node.op_type, **(details or {})})
        for value in (*node.inputs, *node.outputs):
            if value is not None and is_float(value):
                self.pin(value, reason)

    def absorb(self, absorber: Absorber, writer: ir.Node | None = None) -> None:
        """Add a node with weights. `writer` is the node that writes its output, where that is another one."""
        self.absorbers.append(absorber)
        self._absorbing.add(writer or absorber.node)

    def absorbs_shifts(self, node: ir.Node) -> None:
        """Note that a node absorbs any shift of its output, as weights do."""
        self._absorbing.add(node)

    def rewritable(self, absorber: Absorber) -> None:
        """Add a node that is rewritten as others where its gauge needs that."""
        self.absorbers.append(absorber)

    def fixed(self, layout: Layout, cause: int) -> None:
        """`p = 1` and `q = 0`."""
        self._constrain("one", cause, (1.0, layout.scale))
        self._constrain("sum", cause, (1.0, layout.shift))

    def keep(self, node: ir.Node, reason: Reason) -> None:
        """A BatchNorm that cannot be expressed as scale and shift at all."""
        self.kept[node] = reason
        self.boundary(node, Code.KEPT_BATCHNORM)

    def _note(self, reason: Reason) -> int:
        self.causes.append(reason)
        return len(self.causes) - 1

    def _constrain(
        self, kind: Literal["one", "positive", "equal", "sum"], cause: int, *terms: tuple[float, Ids]
    ) -> None:
        arrays = np.broadcast_arrays(*(ids for _, ids in terms))
        flat = tuple((factor, ids.reshape(-1)) for (factor, _), ids in zip(terms, arrays, strict=True))
        self.constraints.append(Constraint(kind, flat, cause))


def _asks_for_shape(node: ir.Node) -> bool:
    return node.op_type in VALUELESS and is_standard(node)


def _rank(value: ir.Value) -> int:
    return 0 if value.shape is None else len(value.shape)
