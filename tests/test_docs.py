"""The documents name what is there: every module, option and route, and only paths and links that exist."""

import ast
import re
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import typer

from fold.cli import app
from service.app import create_app
from service.settings import Settings
from support import ROOT

DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
MODULES = sorted((*(ROOT / "fold").rglob("*.py"), *(ROOT / "service").rglob("*.py")))
HISTORY = ROOT / "docs" / "decisions.md"


def tree() -> dict[str, set[str]]:
    """The words below each package, and below `fold` and `service` themselves, in the tree of docs/design.md."""
    drawn = (ROOT / "docs" / "design.md").read_text().split("```")[1]
    words: dict[str, set[str]] = {}
    top = package = ""
    for line in drawn.splitlines():
        if opened := re.match(r"(fold|service|models)/", line):
            top = package = opened[1]
        elif opened := re.match(r"[├└]── (\w+)(/?)", line):
            package = f"{top}/{opened[1]}" if opened[2] else top
        words.setdefault(package, set()).update(re.findall(r"\w+", line))
    return words


def test_every_module_stands_in_the_tree() -> None:
    drawn = tree()
    for path in MODULES:
        parts = path.relative_to(ROOT).with_suffix("").parts
        if not parts[-1].startswith("__"):
            assert parts[-1] in drawn["/".join(parts[: 2 if len(parts) > 2 else 1])], path


def test_the_layers_are_those_that_the_linter_checks() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = {contract["containers"][0]: contract["layers"] for contract in contracts if contract["type"] == "layers"}
    text = (ROOT / "docs" / "design.md").read_text()
    rows = re.findall(
        r"^\| (.*) \| (.*)\|$", text.split("| `fold` | `service` |\n|---|---|\n")[1].split("\n\n")[0], re.M
    )
    for package, column in (("fold", 0), ("service", 1)):
        written = [re.findall(r"`(\w+)`", row[column]) for row in rows]
        assert [line for line in written if line] == [layer.split(" | ") for layer in layers[package]]


def test_folders_and_functions_are_as_small_as_contributing_says() -> None:
    assert {folder for folder, files in Counter(path.parent for path in MODULES).items() if files > 12} == set()
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno is not None
                assert node.end_lineno - node.lineno < 80, f"{path}: {node.name}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    for target, _, anchor in re.findall(r"\]\(((?!https?:)[^)#]*)(#([^)]*))?\)", document.read_text()):
        file = (document.parent / target).resolve() if target else document
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in slugs, f"{target}#{anchor}"


@pytest.mark.parametrize("document", [path for path in DOCUMENTS if path != HISTORY], ids=lambda path: path.name)
def test_paths_of_the_project_exist(document: Path) -> None:
    for path in re.findall(
        r"`((?:fold|service|models|tests|deploy|scripts|benchmarks)/[\w./-]+)`", document.read_text()
    ):
        assert (ROOT / path).exists(), path


def test_every_option_of_every_command_is_documented() -> None:
    text = "".join(document.read_text() for document in DOCUMENTS)
    group: Any = typer.main.get_command(app)
    options = {option for command in group.commands.values() for one in command.params for option in one.opts}
    assert {option for option in options if option.startswith("--") and not re.search(rf"{option}\b", text)} == set()


def test_every_route_is_documented() -> None:
    """`GET /v2/models/NAME[/versions/N]/config` stands for two routes."""
    text = "".join(document.read_text() for document in DOCUMENTS)
    written = {re.escape(path) for path in re.findall(r"`(?:GET |POST )?(/[\w/:\[\]]*)`", text)}
    patterns = [path.replace(r"\[", "(?:").replace(r"\]", ")?") for path in written]
    for route in create_app(Settings(repository=Path("/no/such/folder"))).openapi()["paths"]:
        path = route.replace("{name}", "NAME").replace("{version}", "N")
        assert any(re.fullmatch(pattern, path) for pattern in patterns), path
