"""Names of a package whose modules are loaded when a name is first used.

The faces of packages that need PyTorch, onnx or ONNX Runtime are lazy: importing one name does not load what other
names need. Serving a folded graph never loads PyTorch.
"""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy_names(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """The `__getattr__` of a package: `homes` maps each name to the module, within the package, that defines it."""

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{homes[name]}"), name)

    return get
