"""Finds the factory of an architecture, `module:callable` or `path/to/file.py:callable`, as a user names it.

The working directory comes before everything that is installed, also for folders without `__init__.py`, which Python
itself would search last. Otherwise a user's `models/` would lose to any installed package of that name.
"""

import difflib
import importlib
import importlib.util
import inspect
import pkgutil
import sys
import sysconfig
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from fold.errors import BnfoldError, first_line
from fold.sources.quiet import silenced

OURS = ("fold", "service")


@dataclass(frozen=True)
class Factory:
    """What makes a module, and the file with its code; None for a callable that is not written in Python."""

    make: Callable[..., nn.Module]
    file: Path | None


def load_architecture(spec: str) -> Factory:
    """Import the callable that `--arch` names. Raises `BnfoldError` with the nearest names if there is none.

    Its folder is put at the front of `sys.path` and stays there, for imports inside a factory.
    """
    place, _, attribute = spec.rpartition(":")
    if not place or not attribute:
        package, _, name = spec.rpartition(".")
        dotted = package and name != "py" and all(part.isidentifier() for part in spec.split("."))
        meant = f"; did you mean {package}:{name}?" if dotted else ""
        raise BnfoldError(
            f"--arch {spec}: expected module:callable or FILE.py:callable, such as models/net.py:make, or "
            f"transformers or timm for the class that config.json names{meant}"
        )
    module, found = import_named(place, attribute, f"--arch {spec}")
    if not callable(found):
        raise BnfoldError(
            f"--arch {spec}: {place} has no callable {attribute!r}{_nearest(attribute, _callables(module))}"
        )
    return Factory(found, defining_file(found, module))


def import_named(place: str, attribute: str, spec: str) -> tuple[ModuleType, object]:
    """Import a module, or a file, and take an attribute of it, also a dotted one. Returns both.

    `spec` is the option as it was given, for the `BnfoldError` with the nearest names if there is none.
    """
    try:
        with silenced():
            file = place.endswith(".py")
            module = _import_file(Path(place), spec) if file else _import_module(place, Path.cwd(), spec)
    except BnfoldError:
        raise
    except ModuleNotFoundError as error:
        if error.name is None or not f"{place}.".startswith(f"{error.name}."):
            raise BnfoldError(f"{spec}: {place} needs the module {error.name!r}; install it") from error
        near = _nearest(place, _modules_beside(place))
        if not near and "." not in error.name:
            near = f"; install {error.name} beside bnfold, or run bnfold in the folder that holds it"
        raise BnfoldError(f"{spec}: there is no module {place!r}{near}") from error
    except (Exception, SystemExit) as error:  # the user's module may raise anything, as a script that parses arguments
        raise BnfoldError(f"{spec}: importing {place} failed: {type(error).__name__}: {error}") from error
    found: object = module
    for part in attribute.split("."):
        try:
            found = getattr(found, part)
        except Exception as error:  # some packages import a part when it is asked for, which may fail
            if not isinstance(error, AttributeError):
                raise BnfoldError(f"{spec}: {place} cannot load {attribute}: {first_line(error)}") from error
            near = _in_a_part(place, attribute) or _nearest(part, _callables(found))
            raise BnfoldError(f"{spec}: {place} has no callable {attribute!r}{near}") from error
    return module, found


def _callables(owner: object) -> list[str]:
    """What may be meant by another name. A name that a package imports when it is asked for is not asked for."""
    own = getattr(owner, "__dict__", {})
    return [name for name in dir(owner) if not name.startswith("_") and (name not in own or callable(own[name]))]


def _in_a_part(package: str, attribute: str) -> str:
    """Which imported module of a package has the attribute: many keep their networks one level down."""
    parts = (name for name in sys.modules if name.startswith(f"{package}."))
    having = [name for name in parts if attribute in getattr(sys.modules[name], "__dict__", {})]
    return f"; did you mean {min(having, key=len)}:{attribute}?" if having else ""


def defining_file(factory: Callable[..., Any], module: ModuleType) -> Path | None:
    """The file with the code of a callable, that of `module` if it has none of its own; None if that is not Python."""
    try:
        found = inspect.getsourcefile(inspect.unwrap(factory))
    except TypeError:  # a functools.partial, or a callable implemented in C
        found = getattr(module, "__file__", None)
    file = Path(found) if found else None
    return file if file is not None and file.is_file() else None


def _import_module(name: str, folder: Path, spec: str) -> ModuleType:
    """Import a dotted name: from `folder` if it holds the module, else from where Python finds it."""
    _put_first(folder)
    top = name.partition(".")[0]
    if _holds(folder, name):
        _forget_others(top, folder, spec)
        found = None if top in sys.modules else PathFinder.find_spec(top, [str(folder)])
        if found is not None:
            package = sys.modules[top] = importlib.util.module_from_spec(found)
            try:
                if found.loader is not None:  # a folder without __init__.py has none
                    found.loader.exec_module(package)
            except BaseException:
                sys.modules.pop(top, None)
                raise
        module = importlib.import_module(name)
        if not _lies_in(module, folder):  # the finder of an editable install goes by the full name alone
            del sys.modules[name]
            raise ModuleNotFoundError(f"{folder} has no module {name}", name=name)
        return module
    return importlib.import_module(name)


def _import_file(file: Path, spec: str) -> ModuleType:
    """Import a file: under its dotted name if it lies in a package, else like a script, beside the files around it."""
    file = file.absolute()
    if not file.is_file():
        near = _nearest(file.name, [other.name for other in file.parent.glob("*.py")])
        raise BnfoldError(f"{spec}: there is no file {file}{near}")
    parts, root = [file.stem], file.parent
    while (root / "__init__.py").is_file():
        parts, root = [root.name, *parts], root.parent
    if len(parts) > 1 and all(part.isidentifier() for part in parts):
        name = ".".join(parts[:-1] if file.name == "__init__.py" else parts)
        return _import_module(name, root, spec)
    _put_first(file.parent)
    name = f"bnfold_arch_{file.stem}"  # not the stem, which may be the name of a module that others import
    found = importlib.util.spec_from_file_location(name, file)
    assert found is not None
    assert found.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def _put_first(folder: Path) -> None:
    if sys.path[:1] != [str(folder)]:
        sys.path.insert(0, str(folder))
    importlib.invalidate_caches()


def _holds(folder: Path, name: str) -> bool:
    """Whether the folder has the module, or a package of its first part. A folder without Python files is neither."""
    top, *rest = name.split(".")
    path = folder.joinpath(top, *rest)
    return (
        (folder / f"{top}.py").is_file()
        or path.with_name(f"{path.name}.py").is_file()
        or (path / "__init__.py").is_file()
        or next((folder / top).glob("*.py"), None) is not None
    )


def _forget_others(top: str, folder: Path, spec: str) -> None:
    """Let go of modules of the same name from another place, such as from an earlier working directory."""
    loaded = sys.modules.get(top)
    if top in OURS or top in sys.stdlib_module_names or (loaded is not None and _is_installed(loaded)):
        raise BnfoldError(
            f"{spec}: bnfold itself uses a module named {top}; rename yours, or give its file, --arch "
            "path/to/FILE.py:callable"
        )
    if loaded is not None and not _lies_in(loaded, folder):
        for name in [name for name in sys.modules if name == top or name.startswith(f"{top}.")]:
            del sys.modules[name]


def _is_installed(module: ModuleType) -> bool:
    installed = [Path(sysconfig.get_path(key)) for key in ("purelib", "platlib")]
    return any(place.is_relative_to(folder) for place in _places(module) for folder in installed)


def _lies_in(module: ModuleType, folder: Path) -> bool:
    return bool(places := _places(module)) and places[0].is_relative_to(folder)


def _places(module: ModuleType) -> Sequence[Path]:
    file = getattr(module, "__file__", None)
    return [Path(file)] if file else [Path(place) for place in getattr(module, "__path__", [])]


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
