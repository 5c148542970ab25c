"""Fills the templates of pages and pictures. Whatever a file called its tensors stays text in them."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fold.errors import BnfoldError, shown


def render(template: str, values: Mapping[str, Any], filters: Mapping[str, Callable[..., str]] = {}) -> str:
    """A template of this package with `values`, which are escaped and hold no control characters."""
    from jinja2 import Environment, PackageLoader  # noqa: PLC0415

    environment = Environment(
        loader=PackageLoader("fold.reports"), autoescape=True, trim_blocks=True, lstrip_blocks=True, finalize=shown
    )
    environment.filters |= filters
    return environment.get_template(template).render(values)


def check_picture(path: Path) -> None:
    """Raise `BnfoldError` if no picture can be written to a path, before minutes are spent on measuring."""
    if path.suffix != ".svg":
        raise BnfoldError(f"--picture {path}: expected a file name that ends in .svg")
    if not path.parent.is_dir():
        raise BnfoldError(f"--picture {path}: there is no folder {path.parent}; create it first")
    if path.is_dir():
        raise BnfoldError(f"--picture {path}: is a folder; expected a file name")


def write_svg(path: Path, template: str, values: Mapping[str, Any]) -> None:
    """Write a template as one SVG without external parts. Raises `BnfoldError` if it cannot be written."""
    check_picture(path)
    try:
        path.write_text(render(template, values), encoding="utf-8")
    except OSError as error:
        raise BnfoldError(f"--picture {path}: cannot be written ({error.strerror})") from error
