"""The documents name what is there: every module in the tree of docs/design.md, and only paths and links that exist."""

import re
from pathlib import Path

import pytest

from support import ROOT

DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
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
    for path in (*(ROOT / "fold").rglob("*.py"), *(ROOT / "service").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if not parts[-1].startswith("__"):
            assert parts[-1] in drawn["/".join(parts[: 2 if len(parts) > 2 else 1])], path


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
