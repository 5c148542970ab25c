"""Builds the module that `--arch` names, and loads a checkpoint's weights into it."""

import ast
import importlib.util
import inspect
import json
import pkgutil
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from fold.errors import BnfoldError, first_line
from fold.sources.architecture.configuration import LIBRARIES, described_by, from_configuration, with_configuration
from fold.sources.architecture.factory import import_named, load_architecture
from fold.sources.architecture.fit import fit
from fold.sources.architecture.plain import make_plain
from fold.sources.checkpoint.checkpoint import Checkpoint
from fold.sources.quiet import silenced

NAMED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*[.:][A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


def parse_arch_args(arguments: Iterable[str]) -> dict[str, Any]:
    """`key=value` pairs. A value is JSON or a Python literal if it parses as one, the Python object that it names
    (`module:name`, or a dotted name in a module that is imported, `torch.nn.SiLU`), else text."""
    parsed = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or not key.isidentifier():
            raise BnfoldError(f"--arch-arg {argument}: expected key=value, such as channels=16")
        parsed[key] = _value(value, argument)
    return parsed


@dataclass(frozen=True)
class Built:
    """The module in eval mode and plain (`make_plain`), the checkpoint under the names of the module, the file with the
    code of the architecture, and the arguments that it was called with, as JSON."""

    module: nn.Module
    checkpoint: Checkpoint
    file: Path | None
    arguments: dict[str, Any]


def build_module(checkpoint: Checkpoint, arch: str, arch_args: Sequence[str], config: Path | None = None) -> Built:
    """Call the architecture and load the checkpoint into it.

    `arch_args` are as `parse_arch_args` takes them, and come before those in the checkpoint's metadata. `config` is the
    configuration that lies beside the weights.
    Raises `BnfoldError` that lists missing and unexpected keys and different shapes, with the likely cause.
    """
    # 1. Find the architecture. Its module is imported before the arguments, which may name a part of it.
    factory = None if arch in LIBRARIES else load_architecture(arch)
    given = checkpoint.metadata.get("arch_args")
    arguments = {**(given if isinstance(given, dict) else {}), **parse_arch_args(arch_args)}
    # 2. Call it.
    try:
        with silenced():
            if factory is None:
                factory, called = from_configuration(arch, config, arguments), {}
            else:
                called = with_configuration(factory, config, arguments, arch)
            module = factory.make(**called)
    except BnfoldError:
        raise
    except (Exception, SystemExit) as error:  # the user's constructor may raise anything
        given = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        raise BnfoldError(
            f"--arch {arch}: calling it with ({given}) failed: {first_line(error)}; check --arch-arg"
        ) from error
    if not isinstance(module, nn.Module):
        raise BnfoldError(f"--arch {arch}: returned a {type(module).__name__}, expected a torch.nn.Module")
    # 3. Load the weights.
    module.float()  # before the weights are loaded, which a module in half precision would round
    fitted = fit(checkpoint, arch, module.state_dict(), _parameters(factory.make))
    with silenced():
        module.load_state_dict(fitted.tensors, strict=False)
    return Built(make_plain(module), fitted, factory.file, _recorded(arguments, arch_args))


def _recorded(arguments: Mapping[str, Any], arch_args: Sequence[str]) -> dict[str, Any]:
    """The arguments for a manifest: an object of Python by its name, as it was given."""
    texts = dict(argument.split("=", 1) for argument in arch_args)
    recorded = {}
    for key, value in arguments.items():
        try:
            json.dumps(value)
            recorded[key] = value
        except (TypeError, ValueError):
            recorded[key] = texts.get(key, str(value))
    return recorded


def whole_module(checkpoint: Checkpoint, config: Path | None = None) -> nn.Module:
    """The module that the file holds, in eval mode and plain.

    Raises `BnfoldError` if it holds only weights, and says what `config`, the configuration beside them, names.
    """
    if checkpoint.module is None:
        library = described_by(config)
        what = "module:callable, such as torchvision.models:resnet18 or path/to/net.py:Net"
        if library is not None:
            what = f"{library}, whose class is in the config.json beside them"
        raise BnfoldError(f"{checkpoint.path}: holds only weights; name their architecture with --arch {what}")
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


def _value(value: str, argument: str) -> Any:
    for parse in (json.loads, ast.literal_eval):
        try:
            return parse(value)
        except (ValueError, SyntaxError):
            continue
    return _named(value, argument) if NAMED.fullmatch(value) else value


def _named(value: str, argument: str) -> Any:
    """The object that a text names; the text itself if its first part is no module.

    With a colon the module is imported, and must have the object. A dotted name, which may as well be the name of a
    file, is only looked up in what is imported already.
    """
    top = value.partition(":")[0].partition(".")[0]
    if ":" in value:
        known = top in sys.modules or importlib.util.find_spec(top) is not None
        place, _, attribute = value.partition(":")
        return import_named(place, attribute, f"--arch-arg {argument}")[1] if known else value
    if top not in sys.modules:
        return value
    try:
        found = pkgutil.resolve_name(value)
    except (ImportError, AttributeError, ValueError):
        return value
    return value if isinstance(found, ModuleType) else found
