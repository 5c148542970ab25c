"""Evaluates a graph in float64, whatever the type of its weights, with onnx's reference implementation of operators.

This module runs the nodes itself to save memory: onnx's own loop keeps every tensor until the end, and every weight in
float64. Here a weight is widened only while a node reads it, and a tensor is freed after its last use.
"""

from collections import ChainMap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TypeVar

import numpy as np
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from fold.arrays import Arrays, widened
from fold.errors import BnfoldError, first_line
from fold.evaluate.deadline import Deadline
from fold.evaluate.operators import OPERATORS
from fold.graph import FLOATS, display_name, is_standard

OnTensor = Callable[[str, np.ndarray], np.ndarray | None]
T = TypeVar("T")

RANDOM = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)
"""Operators that draw other numbers in every run."""


def as_float64(model: ir.Model) -> ir.Model:
    """A copy of `model` in which all float tensors, weights and casts are float64.

    Weights keep their stored values and stay in memory in their stored type; each read widens them again.
    """
    model = model.clone()
    for graph in model.graphs():
        for value in graph.initializers.values():
            tensor = value.const_value
            if tensor is not None and tensor.dtype in FLOATS:
                value.const_value = _widened(tensor, value.name)
                value.type = ir.TensorType(ir.DataType.DOUBLE)  # a new type: clones share theirs with the original
        for value in (*graph.inputs, *(output for node in graph for output in node.outputs)):
            if value.type is not None:
                value.type = _wide_type(value.type)
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


def _wide_type(kind: ir.TypeProtocol) -> ir.TypeProtocol:
    """A float tensor's type as that of a float64 tensor, within sequences and optionals, too."""
    if isinstance(kind, ir.SequenceType | ir.OptionalType):
        return type(kind)(_wide_type(kind.elem_type))
    return ir.TensorType(ir.DataType.DOUBLE) if isinstance(kind, ir.TensorType) and kind.dtype in FLOATS else kind


TYPE_ATTRIBUTES = frozenset({"dtype", "output_datatype", "output_dtype", "softmax_precision", "to"})
"""Attributes that name the type of an output, or of an intermediate result. The reference rounds nothing to a
`stash_type`, and refuses other ones than float32."""
FLOAT_BY_DEFAULT = {
    "BlackmanWindow": "output_datatype",
    "HammingWindow": "output_datatype",
    "HannWindow": "output_datatype",
    "MelWeightMatrix": "output_datatype",
    "SequenceEmpty": "dtype",
}
"""Operators that write float32 where such an attribute is left out."""


def _widen_attributes(node: ir.Node) -> None:
    if not is_standard(node):
        return
    attributes = node.attributes
    for name, attribute in list(attributes.items()):
        if attribute.is_ref():
            continue
        if attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype in FLOATS:
            attributes[name] = _float64_tensor(name, attribute.as_tensor().numpy())
        elif node.op_type == "Constant" and name in ("value_float", "value_floats"):
            del attributes[name]
            attributes["value"] = _float64_tensor("value", np.asarray(attribute.value, np.float32))
        elif name in TYPE_ATTRIBUTES and ir.DataType(attribute.as_int()) in FLOATS:
            attributes[name] = ir.AttrInt64(name, ir.DataType.DOUBLE)
    if node.op_type == "ConstantOfShape" and "value" not in attributes:
        attributes["value"] = _float64_tensor("value", np.zeros(1))
    kind = FLOAT_BY_DEFAULT.get(node.op_type)
    if kind is not None and kind not in attributes:
        attributes[kind] = ir.AttrInt64(kind, ir.DataType.DOUBLE)


def _float64_tensor(name: str, array: np.ndarray) -> ir.Attr:
    return ir.AttrTensor(name, ir.tensor(array.astype(np.float64)))


def evaluate(model: ir.Model, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Outputs of `model` by name, in float64; float inputs are converted to float64."""
    return Evaluator(model)(inputs)


class Evaluator:
    """A graph prepared once for evaluation in float64. Raises `BnfoldError` if the graph cannot be evaluated."""

    def __init__(self, model: ir.Model) -> None:
        drawing = next((node for node in model.graph.all_nodes() if is_standard(node) and node.op_type in RANDOM), None)
        if drawing is not None:
            raise BnfoldError(
                f"{display_name(drawing)}: operator {drawing.op_type} draws other numbers in every run, so nothing can "
                "be proven; export the model in eval mode, without it"
            )
        wide = as_float64(model)
        self._opset = model.opset_imports.get("", 1)
        self._weights = _take_weights(wide.graph)
        try:
            evaluator = ReferenceEvaluator(ir.to_proto(wide), new_ops=OPERATORS)
        except Exception as error:  # onnx's reference implementation raises many types
            raise self._failure(error) from error
        self._nodes: Sequence[OpRun] = evaluator.rt_nodes_
        self._outputs: list[str] = evaluator.output_names
        self._captured = [sorted(captured(node.onnx_node)) for node in self._nodes]
        self._last_used = self._last_uses()

    def __call__(self, inputs: Arrays, on_tensor: OnTensor | None = None, on_weight: OnTensor | None = None) -> Arrays:
        """Outputs by name. `on_tensor` gets the name and the array of each float tensor that a node writes, `on_weight`
        of each float initializer, whenever it is read; an array that it returns takes the tensor's place. Raises
        `TooLongError` if it takes more than its time."""
        return self.each({"": inputs}, on_tensor, on_weight)[""]

    def each(
        self, families: Mapping[str, Arrays], on_tensor: OnTensor | None = None, on_weight: OnTensor | None = None
    ) -> dict[str, Arrays]:
        """The outputs for each of several inputs. Each node runs for all of them in turn, and its weights are read
        once."""
        with Deadline() as deadline:
            return self._each(families, deadline, on_tensor, on_weight)

    def _each(
        self,
        families: Mapping[str, Arrays],
        deadline: Deadline,
        on_tensor: OnTensor | None,
        on_weight: OnTensor | None,
    ) -> dict[str, Arrays]:
        held = {name: widened(inputs) for name, inputs in families.items()}
        for node, within, last_used in zip(self._nodes, self._captured, self._last_used, strict=True):
            deadline.check(node.onnx_node.name or node.op_type)
            weights = self._read((*node.input, *within), held, on_weight)
            for values in held.values():
                known = ChainMap(values, weights)
                context = {name: known[name] for name in within if name in known}
                written = self._run(node, [self._found(known, name) if name else None for name in node.input], context)
                for name, array in zip(node.output, written, strict=False):
                    if name:
                        values[name] = _replaced(name, array, on_tensor)
                for name in last_used:
                    values.pop(name, None)
            weights.clear()  # before those of the next node are read
        weights = self._read(self._outputs, held, on_weight)
        return {
            family: {name: self._found(ChainMap(values, weights), name) for name in self._outputs}
            for family, values in held.items()
        }

    def _read(self, names: Iterable[str], held: Mapping[str, Arrays], on_weight: OnTensor | None) -> Arrays:
        """Those of the names that are initializers and that some family does not hold."""
        read = {name for name in names if name in self._weights and any(name not in each for each in held.values())}
        return {name: _replaced(name, as_text(self._weights[name].numpy()), on_weight) for name in read}

    def _found(self, known: Mapping[str, np.ndarray], name: str) -> np.ndarray:
        if name not in known:
            raise self._failure(ValueError(f"no input or node gives {name!r}"))
        return known[name]

    def _run(
        self, node: OpRun, read: Sequence[np.ndarray | None], context: dict[str, np.ndarray]
    ) -> Sequence[np.ndarray]:
        """The outputs of one node. Raises `BnfoldError` if its operator fails."""
        try:
            run: Callable[..., Sequence[np.ndarray]] = node.run
            with np.errstate(all="ignore"):  # infinities are results
                written = run(*read, context=context) if node.need_context() else run(*read)
            return [as_text(value) for value in written]
        except BnfoldError:
            raise
        except Exception as error:  # as above
            raise self._failure(error) from error

    def _last_uses(self) -> list[list[str]]:
        """For each node the tensors that no later node reads."""
        wanted, last_used = set(self._outputs), []
        for node, within in zip(reversed(self._nodes), reversed(self._captured), strict=True):
            names = {*node.input, *within, *node.output}
            last_used.append(sorted(names - wanted))
            wanted |= names
        return last_used[::-1]

    def _failure(self, error: Exception) -> BnfoldError:
        return BnfoldError(
            f"the unfolded graph, of opset {self._opset}, cannot be evaluated in float64 by onnx's reference "
            f"implementation ({first_line(error)}), so nothing can be proven; export it with ONNX's own operators and "
            "a recent opset"
        )


def _replaced(name: str, value: np.ndarray, by: OnTensor | None) -> np.ndarray:
    """A tensor, or what `by` returns in its place if it is an array of floats."""
    if by is None or not isinstance(value, np.ndarray) or value.dtype != np.float64:
        return value
    other = by(name, value)
    return value if other is None else other


def as_text(value: T) -> T | np.ndarray:
    """Text as an array of `str`: onnx's operators write and read bytes, too, or text of a fixed length."""
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "OSU":
        return value
    texts = [item.decode() if isinstance(item, bytes) else item for item in value.reshape(-1).tolist()]
    array = np.empty(len(texts), object)
    array[:] = texts
    return array.reshape(value.shape)


def captured(node: onnx.NodeProto) -> set[str]:
    """The names that the subgraphs of a node read: outer values, and values of their own."""
    graphs = [attribute.g for attribute in node.attribute if attribute.type == onnx.AttributeProto.GRAPH]
    return {name for graph in graphs for name in _names(graph)}


def _names(graph: onnx.GraphProto) -> Iterator[str]:
    yield from (output.name for output in graph.output)
    for node in graph.node:
        yield from filter(None, node.input)
        yield from captured(node)


def _take_weights(graph: ir.Graph) -> dict[str, ir.TensorProtocol]:
    """Turn the initializers of a graph into inputs, because a proto would hold copies of them; their values by name."""
    weights = {}
    for name, value in list(graph.initializers.items()):
        if value.const_value is not None:
            weights[name] = value.const_value
            del graph.initializers[name]
            value.const_value = None
            if not value.is_graph_input():
                graph.inputs.append(value)
    return weights
