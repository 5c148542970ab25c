"""Names that a package offers and loads when they are first asked for.

A package whose modules need PyTorch, onnx or ONNX Runtime offers its names so: who imports one of them does not load
what the others need. Serving a folded graph never loads PyTorch.
"""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy_names(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """The `__getattr__` of a package: `homes` has the module, within the package, in which each name is defined."""

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{homes[name]}"), name)

    return get
