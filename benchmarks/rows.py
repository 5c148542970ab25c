"""Results of a run as JSON lines. A row is written when it is there, so that a run that was stopped goes on."""

import json
from pathlib import Path
from typing import Any


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def latest(path: Path) -> list[dict[str, Any]]:
    """The last row of each name: a later run may examine it again."""
    return list({row["name"]: row for row in read(path)}.values())


def append(path: Path, row: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(row) + "\n")
