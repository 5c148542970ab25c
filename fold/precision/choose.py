"""Reduced precision: what of a graph can be float16 or bfloat16, and what must stay in float32, and why.

An operator stays, with Casts around it, if ONNX or the provider has none of the type, if it computes with shapes, or
if what it reads, writes or weighs with would overflow or vanish in the type, on the inputs of a proof. Each is named
with its reason in the manifest (docs/certificate.md).
"""

from collections.abc import Iterable, Iterator, Set
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import onnx
import onnx_ir as ir

from fold.arrays import Arrays
from fold.artifact import Manifest
from fold.errors import BnfoldError
from fold.evaluate import Evaluator
from fold.graph import FLOATS, VALUELESS, constant, display_name, is_standard
from fold.inputs import Family, draw_inputs
from fold.precision.formats import FORMATS, Format, Reduced
from fold.precision.lowering import (
    copied,
    floats,
    is_single,
    lower,
    prepared,
    retype,
    schema_of,
    takes,
    wanted_types,
    written,
)
from fold.runtime import PROVIDERS, Provider, open_session, placement, resolve_provider

FAMILIES: tuple[Family, ...] = ("normal", "single", "sparse")
"""Inputs on which ranges are looked at. Not the large offset, which is for algebra: no model was trained on such, and
layers would stay in float32 for its sake alone."""
ROWS = 3
HEADROOM = 4
"""How many times as large an activation may become, on other inputs, as it was seen to be."""


@dataclass(frozen=True)
class KeptFloat32:
    """A node that stays in float32: its layer as the user knows it, the first tensor that it writes, and why."""

    layer: str
    tensor: str
    reason: str


@dataclass(frozen=True)
class Precision:
    """In which type a graph is stored and served, and what stays in float32: an entry of the manifest."""

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


def reduce(model: ir.Model, precision: Reduced, inputs: Iterable[Arrays], provider: Provider) -> Precision:
    """Decide what of a graph can be of a reduced precision. Each of `inputs` is evaluated in float64.

    Raises `BnfoldError` in one line for a graph with subgraphs, and where no layer with weights would be of the type.
    """
    chosen, model = FORMATS[precision], prepared(model, precision)
    kept = decide(model, chosen, inputs, provider)
    staying = {entry.tensor: entry for entry in kept}
    heavy = [node for node in model.graph if any(_is_weight(node, i) for i in range(len(node.inputs)))]
    if heavy and all(written(node) in staying for node in heavy):
        first = staying[written(heavy[0])]
        raise BnfoldError(
            f"precision {precision}: on provider {resolve_provider(provider)} no layer with weights "
            f"can be {chosen.name} ({first.layer}: {first.reason}); use another --precision or --device"
        )
    return Precision(precision, kept)


def decide(model: ir.Model, chosen: Format, inputs: Iterable[Arrays], provider: Provider) -> tuple[KeptFloat32, ...]:
    """What stays in float32, in graph order."""
    largest = _largest(model, inputs)
    shapes = _of_shapes(model.graph)
    kept = []
    for node in model.graph:
        reason = (
            _untyped(node, chosen, model)
            or ("it computes with shapes" if node in shapes and floats(node) else None)
            or _out_of_range(node, chosen, largest)
        )
        if reason is not None:
            kept.append(KeptFloat32(display_name(node), written(node), reason))
    kept += _without_kernel(model, chosen, {entry.tensor for entry in kept}, provider)
    position = {written(node): index for index, node in enumerate(model.graph)}
    return tuple(sorted(kept, key=lambda entry: position[entry.tensor]))


def as_stored(exact: ir.Model, manifest: Manifest) -> ir.Model:
    """The exact graph as the manifest says that it is stored, with weights yet to be rounded."""
    if manifest.precision == "fp32" or manifest.precision == "tf32":  # noqa: PLR1714  # mypy narrows by these
        return exact
    return lower(exact, manifest.precision, Precision.of(manifest).tensors)


def ranged(manifest: Manifest, seed: int, given: Arrays | None = None) -> Iterator[Arrays]:
    """Inputs on which ranges are looked at: families that are drawn, pictures as they are served, and those given."""
    for index, family in enumerate(FAMILIES):
        yield draw_inputs(manifest.inputs, 1 if family == "single" else ROWS, seed + index, family=family)
    image = manifest.preprocessing
    if image is not None:
        drawn = draw_inputs(manifest.inputs, ROWS, seed)
        x = drawn[image.input]
        if x.ndim == 4:
            pixels = np.random.default_rng(seed).integers(0, 256, x.shape).astype(np.float64)
            pixels[:1], pixels[1:2] = 0, 255
            mean, std = (np.reshape(values, (-1, 1, 1)) for values in (image.mean, image.std))
            yield drawn | {image.input: ((pixels * image.scale - mean) / std).astype(x.dtype)}
    if given is not None:
        yield {name: array[:ROWS] if array.ndim else array for name, array in given.items()}


def _is_weight(node: ir.Node, index: int) -> bool:
    tensor = constant(node.inputs[index])
    return tensor is not None and tensor.dtype in FLOATS and len(tensor.shape) > 1


def _untyped(node: ir.Node, chosen: Format, model: ir.Model) -> str | None:
    """Why a node that has to do with floats cannot be of the type, whatever its numbers."""
    values = [value for value in (*node.inputs, *node.outputs) if value is not None and value.name != ""]
    unknown = [value.name for value in values if value.type is None]
    if unknown:
        return f"the type of {unknown[0]} is not known"
    if not any(value.dtype in FLOATS for value in values):
        return None
    if any(value.dtype in FLOATS and not isinstance(value.type, ir.TensorType) for value in values):
        return "it handles sequences of tensors"
    if not floats(node):
        return None
    if not is_standard(node):
        return f"{node.domain} {node.op_type} is no operator of ONNX's own"
    if node.op_type != "Cast" and any(value.dtype == ir.DataType.DOUBLE for value in values):
        return "it computes in float64"
    if "dtype" in node.attributes or not (node.op_type == "Cast" or any(map(is_single, node.inputs))):
        return f"{node.op_type} chooses the type of what it writes itself"
    opset = model.opset_imports.get("", 1)
    try:
        schema = schema_of(node, model)
    except onnx.defs.SchemaError:
        return f"opset {opset} has no {node.op_type}"
    reads = [i for i, value in enumerate(node.inputs) if is_single(value)]
    taken = [i for i in reads if takes(schema, schema.inputs, i, chosen)]
    writes = [i for i, value in enumerate(node.outputs) if is_single(value)]
    if (reads and not taken) or not all(takes(schema, schema.outputs, i, chosen) for i in writes):
        return f"{node.op_type} of opset {opset} takes no {chosen.name}"
    return None


def _of_shapes(graph: ir.Graph) -> set[ir.Node]:
    """Nodes that compute with shapes alone: what they say of large tensors must not be rounded."""
    found, written = set[ir.Node](), set[ir.Value]()
    for node in graph:
        read = [value for value in node.inputs if value is not None and constant(value) is None]
        if node.op_type in VALUELESS or (read and written.issuperset(read)):
            found.add(node)
            written.update(node.outputs)
    return found


def _largest(model: ir.Model, inputs: Iterable[Arrays]) -> dict[str, float]:
    """The largest finite magnitude of each float tensor that is given or computed, by name."""
    found: dict[str, float] = {}

    def on_tensor(name: str, array: np.ndarray) -> None:
        size = np.abs(array[np.isfinite(array)]).max(initial=0)
        found[name] = max(found.get(name, 0.0), float(size))

    evaluate = Evaluator(model)
    for arrays in inputs:
        for name, array in arrays.items():
            if np.issubdtype(array.dtype, np.floating):
                on_tensor(name, array.astype(np.float64))
        evaluate(arrays, on_tensor)
    return found


def _out_of_range(node: ir.Node, chosen: Format, largest: dict[str, float]) -> str | None:
    for value in floats(node):
        tensor = constant(value)
        if tensor is not None:
            size = np.abs(tensor.numpy().astype(np.float64))
            if (size[np.isfinite(size)] > chosen.largest).any():
                return f"its weights reach {size.max():.3g}, and {chosen.name} ends at {chosen.largest:.6g}"
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
    """Nodes whose operator a session refuses in the type, or runs elsewhere: each kind is tried in a graph of one."""
    where = resolve_provider(provider)
    open_session(onnx.parser.parse_model(_ANY).SerializeToString(), provider=where)  # raises if it is not there
    tried: dict[str, str | None] = {}
    for node in model.graph:
        if not floats(node) or written(node) in kept:
            continue
        if node.op_type not in tried:
            tried[node.op_type] = _refusal(node, chosen, model, where)
        reason = tried[node.op_type]
        if reason is not None:
            yield KeptFloat32(display_name(node), written(node), reason)


_ANY = '<ir_version: 8, opset_import: ["": 15]> g (float[1] x) => (float[1] y) { y = Identity(x) }'


def _refusal(node: ir.Node, chosen: Format, model: ir.Model, where: Literal["cpu", "cuda"]) -> str | None:
    reason = f"provider {where} has no {chosen.name} kernel for {node.op_type}"
    try:
        session = open_session(_alone(node, chosen, model), provider=where, record_placement=True)
    except BnfoldError:
        return reason
    return reason if set(placement(session)) - {PROVIDERS[where]} else None


def _alone(node: ir.Node, chosen: Format, model: ir.Model) -> bytes:
    """A graph of one node of the type. Its weights are inputs; what is of another type and constant stays so."""
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
    written = [value for value in node.outputs if value.name]
    alone = ir.Node("", node.op_type, read, node.attributes.values(), num_outputs=len(node.outputs))
    retype(alone, chosen.dtype)
    for index, value in enumerate(node.outputs):
        alone.outputs[index].name = f"y{index}" if value.name else ""
        alone.outputs[index].type = ir.TensorType(chosen.dtype) if is_single(value) else value.type
        alone.outputs[index].shape = value.shape
    outputs = [value for value in alone.outputs if value.name]
    assert len(outputs) == len(written)
    opsets = {"": model.opset_imports.get("", 1)}
    graph = ir.Graph(inputs, outputs, nodes=[alone], initializers=initializers, opset_imports=opsets, name="alone")
    content: bytes = ir.to_proto(ir.Model(graph, ir_version=model.ir_version)).SerializeToString()
    return content
