"""Rewrites an exported program so that `torch.onnx.export` need not trace it again.

The exporter runs every operator of a program twice on tensors without values, which takes most of its time: once to
decompose operators, where writes in place become new tensors, and once to cast where types are mixed. Here the graph
itself is rewritten to what these make of it, for the operators that usual networks have:

    relu_(x); x is read later         y = relu(x); y is read later
    batch_norm in eval mode           _native_batch_norm_legit_no_training, the first of its three results
    adaptive pool to one position     mean over the positions
    transposed convolution            convolution
    flatten, reshape, chunk           view, split
    dropout in eval mode, a cast to the same type, contiguous   their input

Then nothing is left to decompose, and only a graph of several types is searched for casts. A program with anything else
goes the exporter's way.
"""

import copy
import operator
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import ExportGraphSignature, OutputKind

aten = torch.ops.aten

FRESH = frozenset(
    {
        *(aten.conv1d.default, aten.conv2d.default, aten.conv3d.default, aten.linear.default),
        *(aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input),
        *(aten.max_pool1d.default, aten.max_pool2d.default, aten.max_pool3d.default, aten.avg_pool1d.default),
        *(aten.layer_norm.default, aten.group_norm.default, aten.softmax.int),
        *(aten.upsample_nearest2d.vec, aten.upsample_bilinear2d.vec, aten.upsample_bicubic2d.vec),
    }
)
"""Composite operators whose result shares its memory with no other tensor. Of others only the code knows it."""
NUMBERS = (operator.add, operator.sub, operator.mul, operator.floordiv)
"""Of sizes."""


class UnfamiliarError(Exception):
    """The program has something that is not rewritten here; the text says what."""


def functional(program: ExportedProgram, note: Callable[[str], None]) -> ExportedProgram:
    """A program that computes the same and that the exporter need not trace again.

    `note` is told later if the exporter finds that it has to decompose an operator after all. The argument is not
    changed. Raises `UnfamiliarError` for a program that cannot be rewritten.
    """
    # 1. Rewrite a copy of the graph.
    if any(spec.kind is not OutputKind.USER_OUTPUT for spec in program.graph_signature.output_specs):
        raise UnfamiliarError("it changes its buffers or inputs")
    module = copy.deepcopy(program.graph_module)
    for node, given in zip(module.graph.nodes, program.graph.nodes, strict=True):
        node.name = given.name  # the copy gives another to `input` and to what else is built into Python
    _rewrite(module.graph)
    for node in module.graph.nodes:
        _check_known(node)
    # 2. Put it in the place of the program's.
    result = copy.copy(program)
    result._graph_module = module
    result._graph_signature = _renamed_outputs(program.graph_signature, module.graph)

    # 3. The exporter asks for decompositions, and then for the modules in which it looks for types to cast.
    def run_decompositions(table: Mapping[Any, Any] | None = None, **options: Any) -> ExportedProgram:
        for node in module.graph.nodes:
            if node.op == "call_function" and node.target in (table or {}):
                note(f"{node.target} is decomposed")
                decomposed: ExportedProgram = program.run_decompositions(dict(table or {}), **options)
                return decomposed
        if not any(map(_mixes_types, module.graph.nodes)):
            module.modules = lambda *arguments: iter(())
        return result

    result.run_decompositions = run_decompositions
    return result


def _rewrite(graph: fx.Graph) -> None:
    """Make a graph functional, and its operators those that decompositions lead to."""
    written: dict[fx.Node, fx.Node] = {}  # what a tensor became by the last write
    shared: set[fx.Node] = set()  # tensors whose memory may be that of another one

    def present(node: fx.Node) -> fx.Node:
        while node in written:
            node = written[node]
        return node

    for node in list(graph.nodes):
        node.args, node.kwargs = fx.map_arg((node.args, node.kwargs), present)
        if node.op == "placeholder" or node.target is operator.getitem:
            shared |= {node, *node.all_input_nodes}
        elif isinstance(node.target, torch._ops.OpOverload):
            if node.target in ASSERTIONS:
                graph.erase_node(node)
            elif node.target in REWRITTEN:
                other = REWRITTEN[node.target](graph, node)
                node.replace_all_uses_with(other)
                graph.erase_node(node)
                if _may_share(other):
                    shared |= {other, *other.all_input_nodes}
            elif node.target._schema.is_mutable:
                tensor = node.args[0]
                _write_anew(node, shared)
                written[tensor] = node
            elif _may_share(node):
                shared |= {node, *node.all_input_nodes}


def _may_share(node: fx.Node) -> bool:
    """Whether a result may be a view of an argument, or the argument itself."""
    if not isinstance(node.target, torch._ops.OpOverload) or isinstance(node.meta["val"], torch.SymInt):
        return False
    return _aliases(node.target) or (node.target._can_decompose() and node.target not in FRESH)


def _aliases(target: torch._ops.OpOverload) -> bool:
    told = any(argument.alias_info is not None for argument in target._schema.arguments)
    return told or torch.Tag.maybe_aliasing_or_mutating in target.tags


def _write_anew(node: fx.Node, shared: set[fx.Node]) -> None:
    """Make an operator that writes into its first argument one that writes a new tensor."""
    target, tensor = node.target, node.args[0]
    assert isinstance(target, torch._ops.OpOverload)
    packet = getattr(aten, target._schema.name.removeprefix("aten::").removesuffix("_"), None)
    overload = getattr(packet, target._overloadname, None)
    written = [
        argument for argument in target._schema.arguments if argument.alias_info and argument.alias_info.is_write
    ]
    plain = written == target._schema.arguments[:1] and not target._can_decompose()
    if overload is None or not plain or _aliases(overload):
        raise UnfamiliarError(f"{target} writes in place")
    if not isinstance(tensor, fx.Node) or tensor in shared:
        raise UnfamiliarError(f"{target} writes to memory that may be shared")
    if len(_types(node)) > 1:
        raise UnfamiliarError(f"{target} writes another type")
    node.target = overload


def _types(node: fx.Node) -> set[torch.dtype]:
    """The types of the tensors that a node reads."""
    values = (read.meta.get("val") for read in node.all_input_nodes)
    return {value.dtype for value in values if isinstance(value, torch.Tensor)}


def _check_known(node: fx.Node) -> None:
    """Raise `UnfamiliarError` for a node that decompositions would change, though it is in no table of them."""
    if node.op == "get_attr" or (node.op == "call_function" and not _is_known(node.target)):
        raise UnfamiliarError(f"{node.target} is not known")


def _is_known(target: Any) -> bool:
    if not isinstance(target, torch._ops.OpOverload):
        return target is operator.getitem or target in NUMBERS
    # Composite operators that may return a view are always decomposed: their code knows what they return.
    return not (target._can_decompose() and _aliases(target))


def _mixes_types(node: fx.Node) -> bool:
    """Whether a node may need a cast: it reads tensors of other types than float32, or an integer in place of one."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    for argument, value in zip(node.target._schema.arguments, node.args, strict=False):
        given = value.meta.get("val") if isinstance(value, fx.Node) else value
        if str(argument.type) in ("Tensor", "number", "Optional[number]") and isinstance(given, int | torch.SymInt):
            return True
    return not _types(node) <= {torch.float32}


def _renamed_outputs(signature: ExportGraphSignature, graph: fx.Graph) -> ExportGraphSignature:
    """The signature with the names of the nodes that the graph returns now."""
    specs = [
        replace(spec, arg=replace(spec.arg, name=node.name)) if isinstance(node, fx.Node) else spec
        for spec, node in zip(signature.output_specs, graph.output_node().args[0], strict=True)  # type: ignore[arg-type]
    ]
    return ExportGraphSignature(signature.input_specs, specs)


def _called(graph: fx.Graph, node: fx.Node, target: Any, args: tuple[Any, ...], value: Any) -> fx.Node:
    """A new node before `node`, with its place in the source."""
    with graph.inserting_before(node):
        new = graph.call_function(target, args)
    new.meta = {**node.meta, "val": value}
    return new


def _batch_norm(graph: fx.Graph, node: fx.Node) -> fx.Node:
    *tensors, training, momentum, eps, _ = node.args
    if training:
        raise UnfamiliarError(f"{node.target} computes its statistics")
    value = node.meta["val"]
    three = (value, value.new_empty(0), value.new_empty(0))
    target = aten._native_batch_norm_legit_no_training.default
    return _called(
        graph, node, operator.getitem, (_called(graph, node, target, (*tensors, momentum, eps), three), 0), value
    )


def _adaptive_pool(graph: fx.Graph, node: fx.Node) -> fx.Node:
    tensor, sizes = node.args
    if any(size != 1 for size in sizes):  # type: ignore[union-attr]
        raise UnfamiliarError(f"{node.target} to {sizes} is not known")
    axes = [-1 - axis for axis in range(len(sizes))]  # type: ignore[arg-type]
    return _called(graph, node, aten.mean.dim, (tensor, axes, True), node.meta["val"])


def _same(graph: fx.Graph, node: fx.Node) -> fx.Node:
    """The input of a node that returns it."""
    tensor = node.args[0]
    assert isinstance(tensor, fx.Node)
    return tensor


def _dropout(graph: fx.Graph, node: fx.Node) -> fx.Node:
    if node.args[2]:
        raise UnfamiliarError(f"{node.target} draws random numbers")
    return _same(graph, node)


def _cast(graph: fx.Graph, node: fx.Node) -> fx.Node:
    if len(node.args) > 2 or node.kwargs or _types(node) != {node.args[1]}:
        raise UnfamiliarError(f"{node.target} is not known")
    return _same(graph, node)


def _contiguous(graph: fx.Graph, node: fx.Node) -> fx.Node:
    if node.kwargs:
        raise UnfamiliarError(f"{node.target} in another order is not known")
    tensor = _same(graph, node)
    return tensor if tensor.meta["val"].is_contiguous() else _copy(graph, node, tensor)


def _copy(graph: fx.Graph, node: fx.Node, tensor: fx.Node) -> fx.Node:
    copied = _called(graph, node, aten.clone.default, (tensor,), tensor.meta["val"].contiguous())
    copied.kwargs = {"memory_format": torch.contiguous_format}
    return copied


def _view(graph: fx.Graph, node: fx.Node) -> fx.Node:
    """A view, of a copy where the places of the numbers in memory allow none."""
    tensor, value = _same(graph, node), node.meta["val"]
    sizes = [size if isinstance(size, int) else -1 for size in value.shape]
    if sizes.count(-1) > 1:
        raise UnfamiliarError(f"{node.target} to several free sizes is not known")
    try:
        tensor.meta["val"].view(value.shape)
    except ValueError:
        return _called(graph, node, aten._unsafe_view.default, (_copy(graph, node, tensor), sizes), value)
    return _called(graph, node, aten.view.default, (tensor, sizes), value)


def _transposed_convolution(graph: fx.Graph, node: fx.Node) -> fx.Node:
    arguments = node.target._schema.arguments  # type: ignore[union-attr]
    given = {argument.name: argument.default_value for argument in arguments}
    given |= dict(zip(given, node.args, strict=False)) | node.kwargs
    order = ("input", "weight", "bias", "stride", "padding", "dilation")
    arguments = (*(given[name] for name in order), True, given["output_padding"], given["groups"])
    return _called(graph, node, aten.convolution.default, arguments, node.meta["val"])


def _split(graph: fx.Graph, node: fx.Node) -> fx.Node:
    axis = node.args[2] if len(node.args) > 2 else 0
    size = node.meta["val"][0].shape[axis]
    if not isinstance(size, int):
        raise UnfamiliarError(f"{node.target} along a free size is not known")
    return _called(graph, node, aten.split.Tensor, (node.args[0], size, axis), node.meta["val"])


REWRITTEN: dict[Any, Callable[[fx.Graph, fx.Node], fx.Node]] = {
    aten.batch_norm.default: _batch_norm,
    aten.adaptive_avg_pool2d.default: _adaptive_pool,
    aten.adaptive_avg_pool3d.default: _adaptive_pool,
    aten.dropout.default: _dropout,
    aten.dropout_.default: _dropout,
    aten.feature_dropout.default: _dropout,
    aten.alpha_dropout.default: _dropout,
    aten.to.dtype: _cast,
    aten.contiguous.default: _contiguous,
    aten.flatten.using_ints: _view,
    aten.reshape.default: _view,
    aten.reshape_as.default: _view,
    aten.conv_transpose1d.default: _transposed_convolution,
    aten.conv_transpose2d.input: _transposed_convolution,
    aten.conv_transpose3d.input: _transposed_convolution,
    aten.chunk.default: _split,
}
"""Each returns the node that takes the place of the node, which may be one of its inputs."""
ASSERTIONS = frozenset({aten._assert_tensor_metadata.default, aten._assert_scalar.default, aten._assert_async.msg})
"""Checks of a program, which the exporter leaves out."""
