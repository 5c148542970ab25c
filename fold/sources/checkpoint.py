"""Weights by name from a checkpoint on disk, without running code that nobody asked for.

A state_dict is read with `weights_only=True` or from safetensors, neither of which can run code.
"""

import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from fold.errors import BnfoldError

METADATA = "bnfold"
"""Key of a checkpoint under which training may leave defaults: `arch_args`, `inputs`, `labels`, `preprocessing`."""
WRAPPERS = ("state_dict", "model_state_dict", "model")
PREFIXES = ("module.", "_orig_mod.")


@dataclass(frozen=True)
class Checkpoint:
    """Tensors by name, and what the file says of itself under `bnfold`."""

    path: Path
    tensors: dict[str, torch.Tensor]
    metadata: dict[str, Any] = field(default_factory=dict)


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
