"""Evaluates a graph in float64, whatever the type of its weights, with onnx's reference implementation of operators.

The nodes are run here, not by onnx, which would hold every tensor to the end and every weight twice as wide: a weight
is widened while a node reads it, and a tensor is forgotten behind its last reader.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TypeVar

import numpy as np
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from fold.arrays import widened
from fold.errors import BnfoldError, first_line
from fold.evaluate.operators import OPERATORS
from fold.graph import FLOATS

Watch = Callable[[str, np.ndarray], None]
T = TypeVar("T")


def as_float64(model: ir.Model) -> ir.Model:
    """A copy of `model` whose float tensors, weights and casts are all float64.

    Weights keep their stored values, and are held as they are stored: each is widened anew whenever it is read.
    """
    model = model.clone()
    for graph in model.graphs():
        for value in graph.initializers.values():
            tensor = value.const_value
            if tensor is not None and tensor.dtype in FLOATS:
                value.const_value = _widened(tensor, value.name)
                value.type = ir.TensorType(ir.DataType.DOUBLE)  # a new type: clones share theirs with the original
        for value in (*graph.inputs, *(output for node in graph for output in node.outputs)):
            if value.dtype in FLOATS:
                value.type = ir.TensorType(ir.DataType.DOUBLE)
    for body in (*model.graphs(), *model.functions.values()):
        for node in body:
            _widen_attributes(node)
    return model


def _widened(tensor: ir.TensorProtocol, name: str | None) -> ir.TensorProtocol:
    if tensor.dtype == ir.DataType.DOUBLE:
        return tensor
    shape = ir.Shape(tensor.shape.numpy())
    return ir.LazyTensor(partial(_in_float64, tensor), ir.DataType.DOUBLE, shape, cache=False, name=name)


def _in_float64(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    return ir.tensor(tensor.numpy().astype(np.float64))


def _widen_attributes(node: ir.Node) -> None:
    for name, attribute in list(node.attributes.items()):
        if attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype in FLOATS:
            array = attribute.as_tensor().numpy().astype(np.float64)
            node.attributes[name] = ir.AttrTensor(name, ir.tensor(array))
        elif node.op_type == "Cast" and name == "to" and ir.DataType(attribute.as_int()) in FLOATS:
            node.attributes[name] = ir.AttrInt64(name, ir.DataType.DOUBLE)


def evaluate(model: ir.Model, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Outputs of `model` by name, in float64; float inputs are taken as float64."""
    return Evaluator(model)(inputs)


class Evaluator:
    """A graph that was made ready for evaluation in float64 once. Raises `BnfoldError` where that is not possible."""

    def __init__(self, model: ir.Model) -> None:
        wide = as_float64(model)
        self._opset = model.opset_imports.get("", 1)
        self._weights = _take_weights(wide.graph)
        try:
            evaluator = ReferenceEvaluator(ir.to_proto(wide), new_ops=OPERATORS)
        except Exception as error:  # onnx's reference implementation raises many types
            raise self._failure(error) from error
        self.nodes: Sequence[OpRun] = evaluator.rt_nodes_
        self._outputs: list[str] = evaluator.output_names
        self._captured = [sorted(captured(node.onnx_node)) for node in self.nodes]
        self._forgotten = self._last_reads()

    def __call__(self, inputs: dict[str, np.ndarray], watch: Watch | None = None) -> dict[str, np.ndarray]:
        """Outputs by name. `watch` is called with the name and the array of each float tensor that a node writes."""

        def step(node: OpRun, read: list[np.ndarray | None], context: dict[str, np.ndarray]) -> Sequence[np.ndarray]:
            written = self.run(node, read, context)
            for name, array in zip(node.output, written, strict=False):
                if watch is not None and name and isinstance(array, np.ndarray) and array.dtype == np.float64:
                    watch(name, array)
            return written

        return self.walk(widened(inputs), self.weight, step)

    def weight(self, name: str) -> np.ndarray:
        """What an initializer holds, in float64 if it holds floats."""
        return self._weights[name].numpy()

    def run(
        self, node: OpRun, read: Sequence[np.ndarray | None], context: dict[str, np.ndarray]
    ) -> Sequence[np.ndarray]:
        """What one node writes. Raises `BnfoldError` where it fails."""
        try:
            run: Callable[..., Sequence[np.ndarray]] = node.run
            return run(*read, context=context) if node.need_context() else run(*read)
        except Exception as error:  # as above
            raise self._failure(error) from error

    def walk(
        self,
        inputs: dict[str, T],
        weight: Callable[[str], T],
        step: Callable[[OpRun, list[T | None], dict[str, T]], Sequence[T]],
    ) -> dict[str, T]:
        """The outputs by name, of whatever is carried along the graph: node by node in graph order.

        `inputs` stand for the graph's inputs, `weight` gives what stands for an initializer, and `step` what a node
        writes from what it reads (None where an input is left out) and what its subgraphs read of the graph around.
        """
        held = dict(inputs)

        def read(name: str) -> T:
            if name in held:
                return held[name]
            if name in self._weights:
                return weight(name)
            raise self._failure(ValueError(f"nothing gives {name!r}"))

        for node, within, forgotten in zip(self.nodes, self._captured, self._forgotten, strict=True):
            context = {name: read(name) for name in within if name in held or name in self._weights}
            written = step(node, [read(name) if name else None for name in node.input], context)
            held.update({name: value for name, value in zip(node.output, written, strict=False) if name})
            for name in forgotten:
                held.pop(name, None)
        return {name: read(name) for name in self._outputs}

    def _last_reads(self) -> list[list[str]]:
        """For each node the tensors that nobody reads behind it."""
        wanted, forgotten = set(self._outputs), []
        for node, within in zip(reversed(self.nodes), reversed(self._captured), strict=True):
            names = {*node.input, *within, *node.output}
            forgotten.append(sorted(names - wanted))
            wanted |= names
        return forgotten[::-1]

    def _failure(self, error: Exception) -> BnfoldError:
        return BnfoldError(
            f"the unfolded graph, of opset {self._opset}, cannot be evaluated in float64 by onnx's reference "
            f"implementation ({first_line(error)}), so nothing can be proven; export it with ONNX's own operators and "
            "a recent opset"
        )


def captured(node: onnx.NodeProto) -> set[str]:
    """The names that the subgraphs of a node read, of the graph around or their own."""
    graphs = [attribute.g for attribute in node.attribute if attribute.type == onnx.AttributeProto.GRAPH]
    return {name for graph in graphs for name in _names(graph)}


def _names(graph: onnx.GraphProto) -> Iterator[str]:
    yield from (output.name for output in graph.output)
    for node in graph.node:
        yield from filter(None, node.input)
        yield from captured(node)


def _take_weights(graph: ir.Graph) -> dict[str, ir.TensorProtocol]:
    """Turn the initializers of a graph into inputs without values, since a proto would hold their copies; what they
    held."""
    weights = {}
    for name, value in list(graph.initializers.items()):
        if value.const_value is not None:
            weights[name] = value.const_value
            del graph.initializers[name]
            value.const_value = None
            if not value.is_graph_input():
                graph.inputs.append(value)
    return weights
