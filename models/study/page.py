"""Writes the results of the studies: a picture and a JSON for each, and one page that needs no network."""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, select_autoescape

from fold.errors import BnfoldError
from fold.reports.svg import SVG, inline, styled
from models.study.section import Numbers, Study, Table


@dataclass(frozen=True)
class Entry:
    """One study on the page; `svg` is in the page, `numbers` in a file beside it."""

    name: str
    heading: str
    about: str
    seen: str
    svg: str
    tables: tuple[Table, ...]
    numbers: dict[str, Any]


def entry(study: Study[Any], found: Numbers) -> Entry:
    """Draw the result of a study. The same numbers give the same bytes."""
    with styled():
        section = study.show(found)
        svg = inline(section.figure, f"picture-{study.name}", study.heading, section.seen)
    return Entry(study.name, study.heading, study.about, section.seen, svg, section.tables, found.to_dict())


def prepare(out: Path) -> None:
    """Make the folder before anything is computed. Raises `BnfoldError` if that fails."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        incoming = _incoming(out)
        incoming.mkdir()
        incoming.rmdir()
    except OSError as error:
        raise _unwritable(out, error) from error


def write(out: Path, entries: list[Entry], *, seed: int) -> Path:
    """Write all files into `out`. They appear once all are written, the page last. Returns its path."""
    incoming = _incoming(out)
    try:
        incoming.mkdir()
        try:
            names = [_write_entry(incoming, one, seed) for one in entries]
            (incoming / "index.html").write_text(_page(entries, seed), encoding="utf-8")
            for name in (*(file for both in names for file in both), "index.html"):
                (incoming / name).replace(out / name)
        finally:
            shutil.rmtree(incoming, ignore_errors=True)
    except OSError as error:
        raise _unwritable(out, error) from error
    return out / "index.html"


def _incoming(out: Path) -> Path:
    return out / f".incoming-{os.getpid()}"


def _unwritable(out: Path, error: OSError) -> BnfoldError:
    return BnfoldError(f"{out}: cannot be written ({error.strerror}); choose another --out")


def _write_entry(folder: Path, one: Entry, seed: int) -> tuple[str, str]:
    picture, numbers = f"{one.name}.svg", f"{one.name}.json"
    (folder / picture).write_text(_standalone(one.svg), encoding="utf-8")
    content = {"study": one.name, "seed": seed, "seen": one.seen, "numbers": one.numbers}
    (folder / numbers).write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return picture, numbers


def _standalone(svg: str) -> str:
    """A picture as a separate file: black on white, because it cannot know the page's colours."""
    ground = '<rect width="100%" height="100%" fill="#fff"/>'
    opened = svg.replace("<svg ", f'<svg xmlns="{SVG}" stroke-linejoin="round" ', 1)
    return opened.replace("</desc>", f"</desc>{ground}", 1) + "\n"


def _page(entries: list[Entry], seed: int) -> str:
    environment = Environment(
        loader=PackageLoader("models.study"), autoescape=select_autoescape(), trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("page.html").render(entries=entries, seed=seed)
