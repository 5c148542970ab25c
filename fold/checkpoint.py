"""From a file on disk to an eval-mode module, without running code that nobody asked for.

A state_dict is read with `weights_only=True` or from safetensors, neither of which can run code, and loaded into the
architecture that the user names. A `torch.export` archive is scanned before it is opened: entries that would be
unpickled are refused.
"""

import ast
import difflib
import importlib
import inspect
import json
import pickle
import pkgutil
import sys
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from fold.errors import BnfoldError
from fold.export import quiet

METADATA = "bnfold"
"""Key of a checkpoint under which training may leave defaults: `arch_args`, `inputs`, `labels`, `preprocessing`."""
WRAPPERS = ("state_dict", "model_state_dict", "model")
PREFIXES = ("module.", "_orig_mod.")
DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "float16": torch.float16,
    "int64": torch.int64,
    "int32": torch.int32,
}
LISTED = 5


@dataclass(frozen=True)
class Checkpoint:
    """Tensors by name, and what the file says of itself under `bnfold`."""

    path: Path
    tensors: dict[str, torch.Tensor]
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class InputShape:
    """One `--input`: a shape without the batch, and perhaps the argument's name and type."""

    name: str | None
    shape: tuple[int, ...]
    dtype: torch.dtype


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a state_dict (`.pt`, `.pth`, `.ckpt`, `.bin`, `.safetensors`), also inside the usual wrappers.

    Raises `BnfoldError` for a file that is none, or that would have to run code to be read.
    """
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    if not isinstance(content, Mapping):
        raise BnfoldError(f"{path}: holds a {type(content).__name__}, expected a state_dict; save model.state_dict()")
    metadata: Any = content.get(METADATA, {})
    state: Mapping[Any, Any] = content
    for wrapper in WRAPPERS:
        inner = content.get(wrapper)
        if isinstance(inner, Mapping) and any(isinstance(value, torch.Tensor) for value in inner.values()):
            state = inner
            break
    tensors = {str(key): value for key, value in state.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        raise BnfoldError(f"{path}: holds no tensors, expected a state_dict; save model.state_dict()")
    for prefix in PREFIXES:
        if all(key.startswith(prefix) for key in tensors):
            tensors = {key.removeprefix(prefix): tensor for key, tensor in tensors.items()}
    return Checkpoint(path, tensors, dict(metadata) if isinstance(metadata, Mapping) else {})


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
    """`key=value` pairs. A value is a number, a list, true, false, null or a Python literal where it reads as one,
    else text."""
    parsed = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or not key.isidentifier():
            raise BnfoldError(f"--arch-arg {argument}: expected key=value, such as channels=16")
        parsed[key] = _literal(value)
    return parsed


def parse_input(text: str) -> InputShape:
    """`3,224,224` or `name:3,224,224:float32`."""
    parts = text.split(":")
    name = parts.pop(0) if len(parts) > 1 and not parts[0].replace(",", "").isdigit() else None
    shape, dtype = parts[0], parts[1] if len(parts) > 1 else "float32"
    sizes = [size.strip() for size in shape.split(",")] if shape else []
    if not all(size.isdigit() and int(size) > 0 for size in sizes) or dtype not in DTYPES or len(parts) > 2:
        raise BnfoldError(
            f"--input {text}: expected a shape without the batch, 3,224,224 or name:3,224,224:float32 "
            f"(types: {', '.join(DTYPES)})"
        )
    return InputShape(name, tuple(int(size) for size in sizes), DTYPES[dtype])


def build_module(checkpoint: Checkpoint, arch: str, arguments: Mapping[str, Any]) -> nn.Module:
    """Call the architecture and load the checkpoint into it; the module comes back in eval mode.

    Raises `BnfoldError` that lists missing and unexpected keys and shapes that differ.
    """
    factory = load_architecture(arch)
    try:
        module = factory(**arguments)
    except Exception as error:  # the user's constructor may raise anything
        given = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        raise BnfoldError(f"--arch {arch}: calling it with ({given}) failed: {error}; check --arch-arg") from error
    if not isinstance(module, nn.Module):
        raise BnfoldError(f"--arch {arch}: returned a {type(module).__name__}, expected a torch.nn.Module")
    _check_fit(checkpoint, arch, module.state_dict())
    module.load_state_dict(checkpoint.tensors, strict=False)
    return module.eval()


def example_inputs(module: nn.Module, shapes: Iterable[InputShape]) -> tuple[torch.Tensor, ...]:
    """Example tensors with a batch of 2, in the order of `forward`'s arguments where names are given."""
    shapes = list(shapes)
    names = list(inspect.signature(module.forward).parameters)
    unknown = [shape.name for shape in shapes if shape.name is not None and shape.name not in names]
    if unknown:
        raise BnfoldError(f"--input {unknown[0]}: forward has no argument of that name; it takes {', '.join(names)}")
    if all(shape.name is not None for shape in shapes):
        shapes.sort(key=lambda shape: names.index(shape.name or ""))
    generator = torch.Generator().manual_seed(0)
    return tuple(
        torch.randn(2, *shape.shape, generator=generator).to(shape.dtype)
        if shape.dtype.is_floating_point
        else torch.zeros(2, *shape.shape, dtype=shape.dtype)
        for shape in shapes
    )


def load_program(path: Path, *, trust: bool = False) -> ExportedProgram:
    """Open a `torch.export` archive. Without `trust`, one with an entry that would be unpickled is refused."""
    if not trust:
        _refuse_pickles(path)
    try:
        with quiet(), path.open("rb") as stream:
            return torch.export.load(stream)
    except OSError as error:
        raise BnfoldError(f"{path}: cannot be read ({error.strerror})") from error
    except Exception as error:  # torch.export raises many types for a damaged archive
        raise BnfoldError(f"{path}: is no torch.export archive that this PyTorch reads: {error}") from error


def _refuse_pickles(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = [entry.filename for entry in archive.infolist() if entry.file_size]  # empty ones are not loaded
            configs = [name for name in names if name.endswith("_config.json")]
            pickled = [name for name in configs if _uses_pickle(json.loads(archive.read(name)))]
    except OSError as error:
        raise BnfoldError(f"{path}: cannot be read ({error.strerror})") from error
    except (zipfile.BadZipFile, ValueError) as error:
        raise BnfoldError(f"{path}: is no torch.export archive ({error}); write one with torch.export.save") from error
    # Sample inputs are pickled; so may be the serialized_*.pt of archives from before PyTorch 2.8, and custom objects.
    pickled += [name for name in names if name.endswith((".pt", ".pkl")) or "/custom_obj" in name]
    if pickled:
        raise BnfoldError(
            f"{path}: {pickled[0]} would be unpickled, which can run code; "
            "pass --trust if you know where the file comes from"
        )


def _uses_pickle(value: Any) -> bool:
    if isinstance(value, dict):
        return value.get("use_pickle") is True or any(_uses_pickle(inner) for inner in value.values())
    return isinstance(value, list) and any(_uses_pickle(inner) for inner in value)


def _read_torch(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise BnfoldError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except pickle.UnpicklingError as error:
        if "Weights only load failed" in str(error) and ("GLOBAL" in str(error) or "Unsupported" in str(error)):
            raise BnfoldError(
                f"{path}: is a pickle that wants to run code, and is not opened; save model.state_dict() instead"
            ) from error
        raise BnfoldError(
            f"{path}: is no PyTorch checkpoint; expected what torch.save(model.state_dict()) writes"
        ) from error
    except Exception as error:  # a foreign or truncated file makes torch.load raise many types
        raise BnfoldError(
            f"{path}: is no PyTorch checkpoint; expected what torch.save(model.state_dict()) writes"
        ) from error


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError  # noqa: PLC0415
    from safetensors.torch import load_file  # noqa: PLC0415

    try:
        return load_file(path)
    except OSError as error:
        raise BnfoldError(f"{path}: cannot be read ({error.strerror or error}); check the path") from error
    except SafetensorError as error:
        raise BnfoldError(f"{path}: is no safetensors file: {error}") from error


def _check_fit(checkpoint: Checkpoint, arch: str, expected: Mapping[str, torch.Tensor]) -> None:
    given = checkpoint.tensors
    # Checkpoints of before PyTorch 0.4.1 do not count batches, and eval mode does not need the count.
    missing = [key for key in expected if key not in given and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in given if key not in expected]
    shapes = [
        f"{key} is {list(given[key].shape)} in the checkpoint, {list(tensor.shape)} in the architecture"
        for key, tensor in expected.items()
        if key in given and given[key].shape != tensor.shape
    ]
    problems = [
        f"{len(keys)} {what}: {', '.join(keys[:LISTED])}{', …' if len(keys) > LISTED else ''}"
        for what, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        if keys
    ]
    if problems:
        raise BnfoldError(f"{checkpoint.path}: does not fit --arch {arch}: {'; '.join(problems)}; check --arch-arg")


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
