"""Which nodes of a graph can be float16 or bfloat16, and which must stay in float32, and why.

A node stays in float32, with Casts around it, if ONNX or the provider does not support its operator in the type, if it
computes with shapes, or if its weights, inputs or outputs would overflow or vanish in the type. The manifest names each
such node and its reason (docs/certificate.md).
"""

from collections.abc import Iterable, Iterator, Set
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import onnx
import onnx_ir as ir

from fold.arrays import Arrays, first_rows
from fold.artifact import Manifest
from fold.errors import BnfoldError
from fold.evaluate import Evaluator
from fold.graph import FLOATS, VALUELESS, constant, display_name, is_standard
from fold.inputs import Family, drawn_inputs
from fold.precision.formats import FORMATS, Format, ReducedPrecision
from fold.precision.lowering import (
    allows,
    copied,
    first_output,
    float32_tensors,
    is_float32,
    lower,
    prepare,
    retype,
    schema_of,
    wanted_types,
)
from fold.runtime import PROVIDERS, Provider, open_session, placement, resolve_provider

FAMILIES: tuple[Family, ...] = ("normal", "single", "sparse")
"""Inputs on which the ranges of activations are measured. The large offset is left out: it is for part A, no model was
trained on such inputs, and because of it alone layers would stay in float32."""
ROWS = 3
HEADROOM = 4
"""The largest activation that was seen, times this factor, must still fit into the type."""


@dataclass(frozen=True)
class KeptFloat32:
    """A node that stays in float32: its layer by the module's name, the first tensor that it writes, and the reason."""

    layer: str
    tensor: str
    reason: str


@dataclass(frozen=True)
class Precision:
    """The type in which a graph is stored and served, and what stays in float32: an entry of the manifest."""

    type: str = "fp32"
    kept_float32: tuple[KeptFloat32, ...] = ()

    @property
    def tensors(self) -> frozenset[str]:
        return frozenset(kept.tensor for kept in self.kept_float32)

    @classmethod
    def of(cls, manifest: Manifest) -> "Precision":
        entry = manifest.fold.get("precision", {})
        return cls(manifest.precision, tuple(KeptFloat32(**kept) for kept in entry.get("kept_float32", ())))

    def to_dict(self) -> dict[str, Any]:
        return {"type": self.type, "kept_float32": [asdict(kept) for kept in self.kept_float32]}


def reduce(
    model: ir.Model, precision: ReducedPrecision, inputs: Iterable[Arrays], provider: Provider
) -> tuple[ir.Model, Precision]:
    """The graph as `lower` takes it, and what of it stays in float32. Each of `inputs` is evaluated in float64.

    Raises `BnfoldError` in one line for a graph with subgraphs, and if no layer with weights would be of the type.
    """
    chosen, model = FORMATS[precision], prepare(model, precision)
    kept = keep_float32(model, chosen, inputs, provider)
    by_tensor = {entry.tensor: entry for entry in kept}
    weighted = [node for node in model.graph if any(_is_weight(node, i) for i in range(len(node.inputs)))]
    if weighted and all(first_output(node) in by_tensor for node in weighted):
        first = by_tensor[first_output(weighted[0])]
        raise BnfoldError(
            f"precision {precision}: on provider {resolve_provider(provider)} no layer with weights "
            f"can be {chosen.name} ({first.layer}: {first.reason}); use another --precision or --device"
        )
    return model, Precision(precision, kept)


def keep_float32(
    model: ir.Model, chosen: Format, inputs: Iterable[Arrays], provider: Provider
) -> tuple[KeptFloat32, ...]:
    """What stays in float32 of a graph that `prepare` made, in graph order."""
    largest = _largest_magnitudes(model, inputs)
    shape_nodes = _shape_nodes(model.graph)
    kept = []
    for node in model.graph:
        reason = (
            _unsupported(node, chosen, model)
            or ("it computes with shapes" if node in shape_nodes and float32_tensors(node) else None)
            or _out_of_range(node, chosen, largest)
        )
        if reason is not None:
            kept.append(KeptFloat32(display_name(node), first_output(node), reason))
    kept += _without_kernel(model, chosen, {entry.tensor for entry in kept}, provider)
    position = {first_output(node): index for index, node in enumerate(model.graph)}
    return tuple(sorted(kept, key=lambda entry: position[entry.tensor]))


def as_stored(exact: ir.Model, manifest: Manifest) -> ir.Model:
    """The exact graph in the types of the stored one, by the manifest; its weights are not rounded yet."""
    if manifest.precision == "fp32" or manifest.precision == "tf32":  # noqa: PLR1714  # mypy narrows by these
        return exact
    return lower(prepare(exact, manifest.precision), manifest.precision, Precision.of(manifest).tensors)


def range_inputs(manifest: Manifest, seed: int, given: Arrays | None = None) -> Iterator[Arrays]:
    """Inputs on which ranges are measured: drawn families, random images if the model takes images, and `given`."""
    for index, family in enumerate(FAMILIES):
        yield drawn_inputs(manifest, 1 if family == "single" else ROWS, seed + index, family)
    image = manifest.preprocessing
    if image is not None:
        drawn = drawn_inputs(manifest, ROWS, seed)
        x = drawn[image.input]
        if x.ndim == 4:
            pixels = np.random.default_rng(seed).integers(0, 256, x.shape).astype(np.float64)
            pixels[:1], pixels[1:2] = 0, 255
            mean, std = (np.reshape(values, (-1, 1, 1)) for values in (image.mean, image.std))
            yield drawn | {image.input: ((pixels * image.scale - mean) / std).astype(x.dtype)}
    if given is not None:
        yield first_rows(given, ROWS)


def _is_weight(node: ir.Node, index: int) -> bool:
    tensor = constant(node.inputs[index])
    return tensor is not None and tensor.dtype in FLOATS and len(tensor.shape) > 1


def _unsupported(node: ir.Node, chosen: Format, model: ir.Model) -> str | None:
    """Why a node that reads or writes floats cannot be of the type, whatever its numbers; None if it can."""
    values = [value for value in (*node.inputs, *node.outputs) if value is not None and value.name != ""]
    unknown = [value.name for value in values if value.type is None]
    if unknown:
        return f"the type of {unknown[0]} is not known"
    if not any(value.dtype in FLOATS for value in values):
        return None
    if any(value.dtype in FLOATS and not isinstance(value.type, ir.TensorType) for value in values):
        return "it handles sequences of tensors"
    if not float32_tensors(node):
        return None
    if not is_standard(node):
        return f"{node.domain} {node.op_type} is not an operator of ONNX itself"
    if node.op_type != "Cast" and any(value.dtype == ir.DataType.DOUBLE for value in values):
        return "it computes in float64"
    if "dtype" in node.attributes or not (node.op_type == "Cast" or any(map(is_float32, node.inputs))):
        return f"{node.op_type} has an attribute that sets the type of its output"
    opset = model.opset_imports.get("", 1)
    try:
        schema = schema_of(node, model)
    except onnx.defs.SchemaError:
        return f"opset {opset} has no {node.op_type}"
    reads = [i for i, value in enumerate(node.inputs) if is_float32(value)]
    allowed = [i for i in reads if allows(schema, schema.inputs, i, chosen)]
    writes = [i for i, value in enumerate(node.outputs) if is_float32(value)]
    if (reads and not allowed) or not all(allows(schema, schema.outputs, i, chosen) for i in writes):
        return f"{node.op_type} of opset {opset} takes no {chosen.name}"
    return None


def _shape_nodes(graph: ir.Graph) -> set[ir.Node]:
    """Nodes that compute with shapes alone: sizes of large tensors must not be rounded."""
    found, shapes = set[ir.Node](), set[ir.Value]()
    for node in graph:
        read = [value for value in node.inputs if value is not None and constant(value) is None]
        if node.op_type in VALUELESS or (read and shapes.issuperset(read)):
            found.add(node)
            shapes.update(node.outputs)
    return found


def _largest_magnitudes(model: ir.Model, inputs: Iterable[Arrays]) -> dict[str, float]:
    """The largest finite magnitude of each float input and computed tensor, by name."""
    found: dict[str, float] = {}

    def note(name: str, array: np.ndarray) -> None:
        size = np.abs(array[np.isfinite(array)]).max(initial=0)
        found[name] = max(found.get(name, 0.0), float(size))

    evaluate = Evaluator(model)
    for arrays in inputs:
        for name, array in arrays.items():
            if np.issubdtype(array.dtype, np.floating):
                note(name, array.astype(np.float64))
        evaluate(arrays, note)
    return found


def _out_of_range(node: ir.Node, chosen: Format, largest: dict[str, float]) -> str | None:
    """Why the numbers of a node do not fit into the type; None if they do."""
    for value in float32_tensors(node):
        tensor = constant(value)
        if tensor is not None:
            size = np.abs(tensor.numpy().astype(np.float64))
            if (size[np.isfinite(size)] > chosen.largest).any():
                return f"its weights reach {size.max():.3g}, and the largest {chosen.name} is {chosen.largest:.6g}"
            if 2 * (size[size > 0] < chosen.least).sum() > (size > 0).sum():
                return f"most of its weights lie below {chosen.least:.3g} and would vanish in {chosen.name}"
            continue
        reached = largest.get(value.name or "", 0.0)
        if reached > chosen.largest / HEADROOM:
            return f"its activations reach {reached:.3g}, more than 1/{HEADROOM} of {chosen.largest:.6g}"
        if 0 < reached < chosen.normal:
            return f"its activations reach {reached:.3g} at most, and would vanish in {chosen.name}"
    return None


def _without_kernel(model: ir.Model, chosen: Format, kept: Set[str], provider: Provider) -> Iterator[KeptFloat32]:
    """Nodes whose operator a session refuses in the type, or runs elsewhere: each operator is tried in a graph of one
    node."""
    where = resolve_provider(provider)
    open_session(onnx.parser.parse_model(_ANY).SerializeToString(), provider=where)  # raises if the provider is missing
    tried: dict[str, str | None] = {}
    for node in model.graph:
        if not float32_tensors(node) or first_output(node) in kept:
            continue
        if node.op_type not in tried:
            tried[node.op_type] = _refusal(node, chosen, model, where)
        reason = tried[node.op_type]
        if reason is not None:
            yield KeptFloat32(display_name(node), first_output(node), reason)


_ANY = '<ir_version: 8, opset_import: ["": 15]> g (float[1] x) => (float[1] y) { y = Identity(x) }'


def _refusal(node: ir.Node, chosen: Format, model: ir.Model, where: Literal["cpu", "cuda"]) -> str | None:
    """Why the provider does not run a node of the type; None if it does."""
    reason = f"provider {where} has no {chosen.name} kernel for {node.op_type}"
    try:
        session = open_session(_single_node_model(node, chosen, model), provider=where, record_placement=True)
    except BnfoldError:
        return reason
    return reason if set(placement(session)) - {PROVIDERS[where]} else None


def _single_node_model(node: ir.Node, chosen: Format, model: ir.Model) -> bytes:
    """A model of this one node, converted to the type. Weights that change their type become inputs; other constants
    stay."""
    read, initializers, inputs = list[ir.Value | None](), list[ir.Value](), list[ir.Value]()
    for index, (value, wanted) in enumerate(zip(node.inputs, wanted_types(node, chosen, model), strict=True)):
        if value is None:
            read.append(None)
            continue
        tensor = constant(value) if wanted != chosen.dtype else None
        new = ir.Value(name=f"x{index}", type=value.type, shape=value.shape, const_value=copied(tensor))
        if wanted is not None:
            new.type = ir.TensorType(wanted)
        (inputs if tensor is None else initializers).append(new)
        read.append(new)
    alone = ir.Node("", node.op_type, read, node.attributes.values(), num_outputs=len(node.outputs))
    retype(alone, chosen.dtype)
    for index, value in enumerate(node.outputs):
        alone.outputs[index].name = f"y{index}" if value.name else ""
        alone.outputs[index].type = ir.TensorType(chosen.dtype) if is_float32(value) else value.type
        alone.outputs[index].shape = value.shape
    outputs = [value for value in alone.outputs if value.name]
    opsets = {"": model.opset_imports.get("", 1)}
    graph = ir.Graph(inputs, outputs, nodes=[alone], initializers=initializers, opset_imports=opsets, name="alone")
    content: bytes = ir.to_proto(ir.Model(graph, ir_version=model.ir_version)).SerializeToString()
    return content
