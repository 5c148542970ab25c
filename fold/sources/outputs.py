"""The nesting of a module's outputs: a name for each tensor, and containers of built-in types."""

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument
from torch.utils import _pytree as pytree


def output_names(program: ExportedProgram) -> list[str]:
    """Names of the output tensors, in the order of the program.

    `output` for one tensor, `output_0`, `output_1` in a tuple, `logits` for a key, `aux.logits` and `aux_0` where
    containers are nested. An output that is None or a number has no name.
    """
    spec = _signature(program).out_spec
    kept = [not isinstance(one.arg, ConstantArgument) for one in program.graph_signature.output_specs]
    kept = kept[len(kept) - spec.num_leaves :]  # buffers that the module changes come first
    paths = [path for path, _ in pytree.tree_flatten_with_path(_leaves(spec))[0]]
    names = [_name(path) for path, tensor in zip(paths, kept, strict=True) if tensor]
    if len(names) == 1 and names[0].startswith("output_"):
        return ["output"]
    return names


def with_plain_outputs(program: ExportedProgram) -> ExportedProgram:
    """The program with mappings in place of named tuples, dataclasses and other types of the user.

    An archive with such a type can be opened only where the type is registered.
    """
    signature = _signature(program)
    plain = _plain(_leaves(signature.out_spec))
    if pytree.tree_leaves(plain) == list(range(signature.out_spec.num_leaves)):
        entry = copy.copy(program.module_call_graph[0])
        entry.signature = dataclasses.replace(signature, out_spec=pytree.tree_structure(plain))
        program._module_call_graph = [entry, *program.module_call_graph[1:]]
    return program


def _signature(program: ExportedProgram) -> Any:
    return program.module_call_graph[0].signature


def _leaves(spec: pytree.TreeSpec) -> Any:
    return pytree.tree_unflatten(list(range(spec.num_leaves)), spec)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {key: _plain(inner) for key, inner in value._asdict().items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, tuple | list):
        return (
            type(value)(_plain(inner) for inner in value) if type(value) in (tuple, list) else list(map(_plain, value))
        )
    return value


def _name(path: tuple[Any, ...]) -> str:
    name = ""
    for entry in path:
        step = getattr(entry, "key", getattr(entry, "name", getattr(entry, "idx", None)))
        joined = f"_{step}" if isinstance(step, int) else f".{step}"
        name = f"{name}{joined}" if name else f"output{joined}" if isinstance(step, int) else str(step)
    return name or "output_"
