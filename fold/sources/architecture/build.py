"""Builds the module that `--arch` names, and loads a checkpoint's weights into it."""

import ast
import inspect
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fold.errors import BnfoldError
from fold.sources.architecture.factory import load_architecture
from fold.sources.architecture.fit import fit
from fold.sources.architecture.plain import make_plain
from fold.sources.checkpoint.checkpoint import Checkpoint
from fold.sources.quiet import silenced


def parse_arch_args(arguments: Iterable[str]) -> dict[str, Any]:
    """`key=value` pairs. A value is JSON or a Python literal if it parses as one, else text."""
    parsed = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or not key.isidentifier():
            raise BnfoldError(f"--arch-arg {argument}: expected key=value, such as channels=16")
        parsed[key] = _literal(value)
    return parsed


def build_module(
    checkpoint: Checkpoint, arch: str, arguments: Mapping[str, Any]
) -> tuple[nn.Module, Checkpoint, Path | None]:
    """Call the architecture and load the checkpoint into it.

    Returns the module in eval mode and plain (`make_plain`), the checkpoint under the names of the module, and the file
    with the code of the architecture.
    Raises `BnfoldError` that lists missing and unexpected keys and different shapes, with the likely cause.
    """
    factory = load_architecture(arch)
    try:
        with silenced():
            module = factory.make(**arguments)
    except Exception as error:  # the user's constructor may raise anything
        given = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        raise BnfoldError(f"--arch {arch}: calling it with ({given}) failed: {error}; check --arch-arg") from error
    if not isinstance(module, nn.Module):
        raise BnfoldError(f"--arch {arch}: returned a {type(module).__name__}, expected a torch.nn.Module")
    module.float()  # before the weights are loaded, which a module in half precision would round
    fitted = fit(checkpoint, arch, module.state_dict(), _parameters(factory.make))
    with silenced():
        module.load_state_dict(fitted.tensors, strict=False)
    return make_plain(module), fitted, factory.file


def whole_module(checkpoint: Checkpoint) -> nn.Module:
    """The module that the file holds, in eval mode and plain. Raises `BnfoldError` if it holds only weights."""
    if checkpoint.module is None:
        raise BnfoldError(f"{checkpoint.path}: holds only weights; name their architecture with --arch module:callable")
    if isinstance(checkpoint.module, torch.jit.ScriptModule):
        raise BnfoldError(
            f"{checkpoint.path}: is a TorchScript archive, of which only the weights are used; name their "
            "architecture with --arch module:callable"
        )
    return make_plain(checkpoint.module)


def _parameters(factory: Callable[..., nn.Module]) -> list[str]:
    try:
        return list(inspect.signature(factory).parameters)
    except (TypeError, ValueError):  # a callable implemented in C has none
        return []


def _literal(value: str) -> Any:
    for parse in (json.loads, ast.literal_eval):
        try:
            return parse(value)
        except (ValueError, SyntaxError):
            continue
    return value
