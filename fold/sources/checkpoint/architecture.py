"""Builds the module that `--arch` names, and loads a checkpoint's weights into it."""

import ast
import difflib
import importlib
import inspect
import json
import pkgutil
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fold.errors import BnfoldError
from fold.sources.checkpoint.checkpoint import Checkpoint
from fold.sources.checkpoint.fit import fit
from fold.sources.checkpoint.plain import make_plain
from fold.sources.quiet import silenced


def load_architecture(spec: str) -> Callable[..., nn.Module]:
    """Import `module:callable`, the working directory included. The nearest names are told if there is none."""
    module_name, _, attribute = spec.partition(":")
    if not module_name or not attribute:
        raise BnfoldError(f"--arch {spec}: expected module:callable, such as models.resnet:resnet")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise BnfoldError(f"--arch {spec}: {module_name} needs the module {error.name!r}; install it") from error
        near = _nearest(module_name, _modules_beside(module_name))
        raise BnfoldError(f"--arch {spec}: there is no module {module_name!r}{near}") from error
    except Exception as error:  # the user's module may raise anything while it is imported
        raise BnfoldError(f"--arch {spec}: importing {module_name} failed: {type(error).__name__}: {error}") from error
    factory = getattr(module, attribute, None)
    if not callable(factory):
        names = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        raise BnfoldError(f"--arch {spec}: {module_name} has no callable {attribute!r}{_nearest(attribute, names)}")
    return factory  # type: ignore[no-any-return]


def parse_arch_args(arguments: Iterable[str]) -> dict[str, Any]:
    """`key=value` pairs. A value is JSON or a Python literal if it parses as one, else text."""
    parsed = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or not key.isidentifier():
            raise BnfoldError(f"--arch-arg {argument}: expected key=value, such as channels=16")
        parsed[key] = _literal(value)
    return parsed


def build_module(checkpoint: Checkpoint, arch: str, arguments: Mapping[str, Any]) -> tuple[nn.Module, Checkpoint]:
    """Call the architecture and load the checkpoint into it.

    The module is returned in eval mode and plain (`make_plain`), with the checkpoint under the names of the module.
    Raises `BnfoldError` that lists missing and unexpected keys and different shapes, with the likely cause.
    """
    factory = load_architecture(arch)
    try:
        with silenced():
            module = factory(**arguments)
    except Exception as error:  # the user's constructor may raise anything
        given = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        raise BnfoldError(f"--arch {arch}: calling it with ({given}) failed: {error}; check --arch-arg") from error
    if not isinstance(module, nn.Module):
        raise BnfoldError(f"--arch {arch}: returned a {type(module).__name__}, expected a torch.nn.Module")
    module.float()  # before the weights are loaded, which a module in half precision would round
    fitted = fit(checkpoint, arch, module.state_dict(), _parameters(factory))
    with silenced():
        module.load_state_dict(fitted.tensors, strict=False)
    return make_plain(module), fitted


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


def _nearest(name: str, candidates: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(candidates), n=3, cutoff=0.4)
    return f"; did you mean {' or '.join(near)}?" if near else ""


def _modules_beside(name: str) -> list[str]:
    """Modules in the same package, or top-level modules of the working directory."""
    package, _, _ = name.rpartition(".")
    if not package:
        return [module.name for module in pkgutil.iter_modules([str(Path.cwd())])]
    try:
        parent = importlib.import_module(package)
    except ModuleNotFoundError:
        return _modules_beside(package)
    return [f"{package}.{module.name}" for module in pkgutil.iter_modules(getattr(parent, "__path__", []))]
