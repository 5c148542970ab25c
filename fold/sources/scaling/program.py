"""Input scaling inserted into a program of `torch.export`, between an input and all its consumers.

The program is edited, not traced again, so that its dynamic sizes and the names of its weights do not change.
"""

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import ExportGraphSignature, InputKind, InputSpec, TensorArgument

from fold.errors import BnfoldError, first_line
from fold.graph import SCALE, SHIFT
from fold.inputs import ALREADY, InputScaling, ResolvedScaling
from fold.sources.quiet import silenced

aten = torch.ops.aten


def scale_program(
    program: ExportedProgram, wanted: InputScaling, metadata: dict[str, Any]
) -> tuple[ExportedProgram, ResolvedScaling]:
    """A copy that takes bytes under the input's name; s and t are buffers of the input's dtype.

    `metadata` are the defaults that the checkpoint stores. Raises `BnfoldError` if there is no such input, or if its
    channels do not fit.
    """
    if SCALE in program.state_dict:
        raise BnfoldError(ALREADY)
    module, signature = _copied(program)
    graph: fx.Graph = module.graph
    inputs = _inputs(graph, signature)
    resolved = wanted.resolve(metadata, [n for n, node in inputs.items() if node.meta["val"].is_floating_point()])
    x = inputs[resolved.input]
    taken, readers = x.meta["val"], list(x.users)
    sizes = [size if isinstance(size, int) else None for size in taken.shape]
    constants = [torch.tensor(array, dtype=taken.dtype) for array in resolved.constants(sizes)]
    buffers = dict(zip((SCALE, SHIFT), constants, strict=True))
    s, t = (_add_buffer(graph, signature, name, tensor, taken.fake_mode) for name, tensor in buffers.items())
    _insert(graph, x, s, t, resolved, readers)
    module.recompile()
    try:
        with silenced():
            changed = program._update(module, signature, state_dict=program.state_dict | buffers)
    except Exception as error:  # its checks raise many types
        raise BnfoldError(
            f"--normalize: the exported program cannot be changed ({first_line(error)}); scale the input inside the "
            "module"
        ) from error
    return changed, resolved if len(sizes) != 4 else replace(resolved, layout=resolved.layout or "nchw")


def sizes_as_sent(
    program: ExportedProgram, sizes: Sequence[Sequence[int | str]], resolved: ResolvedScaling
) -> list[Sequence[int | str]]:
    """The sizes of the inputs without the batch; those of the scaled input are in the layout that clients send."""
    names = _inputs(program.graph, program.graph_signature)
    return [
        resolved.as_sent(["", *own])[1:] if name == resolved.input else own
        for name, own in zip(names, sizes, strict=False)
    ]


def _copied(program: ExportedProgram) -> tuple[fx.GraphModule, ExportGraphSignature]:
    with silenced():
        module, signature = copy.deepcopy(program.graph_module), copy.deepcopy(program.graph_signature)
    for copied, node in zip(module.graph.nodes, program.graph.nodes, strict=True):
        copied.name = node.name  # a copy avoids names of Python builtins, such as input, and the signature holds them
    return module, signature


def _placeholders(graph: fx.Graph) -> list[fx.Node]:
    return [node for node in graph.nodes if node.op == "placeholder"]


def _inputs(graph: fx.Graph, signature: ExportGraphSignature) -> dict[str, fx.Node]:
    """The input tensors, by their names in the exported ONNX graph."""
    return {
        str(node.target): node
        for node, spec in zip(_placeholders(graph), signature.input_specs, strict=True)
        if spec.kind == InputKind.USER_INPUT and isinstance(node.meta["val"], torch.Tensor)
    }


def _add_buffer(
    graph: fx.Graph, signature: ExportGraphSignature, name: str, tensor: torch.Tensor, fakes: Any
) -> fx.Node:
    """Add a buffer behind the existing ones and before the inputs."""
    first = [spec.kind for spec in signature.input_specs].index(InputKind.USER_INPUT)
    with graph.inserting_before(_placeholders(graph)[first]):
        node = graph.placeholder(f"b_{name}")
    node.meta["val"] = fakes.from_tensor(tensor, static_shapes=True)
    added = InputSpec(InputKind.BUFFER, TensorArgument(node.name), name, persistent=True)
    signature.input_specs.insert(first, added)
    return node


def _insert(
    graph: fx.Graph, x: fx.Node, s: fx.Node, t: fx.Node, resolved: ResolvedScaling, readers: list[fx.Node]
) -> None:
    """Change a float input to bytes, and let `readers` read `x*s + t`. Fake tensors carry shapes and dtypes."""
    taken, behind = x.meta["val"], _placeholders(graph)[-1].next
    permutation, fakes = resolved.permutation(), taken.fake_mode

    def step(operator: Any, *arguments: Any) -> fx.Node:
        with graph.inserting_before(behind), fakes:
            node = graph.call_function(operator, arguments)
            node.meta["val"] = operator(*(a.meta["val"] if isinstance(a, fx.Node) else a for a in arguments))
        node.meta["nn_module_stack"] = {}
        return node

    with fakes:
        x.meta = {"val": torch.empty(resolved.as_sent(taken.shape), dtype=torch.uint8)}
    pixels = x if permutation is None else step(aten.permute.default, x, list(permutation))
    floats = step(aten.to.dtype, pixels, taken.dtype)
    scaled = step(aten.add.Tensor, step(aten.mul.Tensor, floats, s), t)
    for reader in readers:
        reader.replace_input_with(x, scaled)
