"""Which models of a repository are loaded at the start: all, those that are named, or none until a call asks."""

from pathlib import Path
from typing import Any

import pytest

from support.commands import assert_one_line, bnfold
from support.service.reloading import EXPLICIT, REQUEST, WATCH, call, index, right, states, table, wait
from support.service.serving import start

READY, UNLOADED = ("READY", ""), ("UNAVAILABLE", "not loaded yet")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a", "b", "table"):
        table(tmp_path / "repository", 1, name=name)
    return tmp_path / "repository"


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({}, {"a/1": READY, "b/1": READY, "table/1": READY}),
        ({"models": "*"}, {"a/1": READY, "b/1": READY, "table/1": READY}),
        ({"models": "table,a"}, {"a/1": READY, "table/1": READY}),
        ({**EXPLICIT, "models": None}, {"a/1": UNLOADED, "b/1": UNLOADED, "table/1": UNLOADED}),
        ({**EXPLICIT, "models": "b"}, {"a/1": UNLOADED, "b/1": READY, "table/1": UNLOADED}),
    ],
)
def test_what_is_loaded_at_the_start(folder: Path, settings: dict[str, Any], found: dict[str, tuple[str, str]]) -> None:
    with start(folder, **settings) as service:
        assert index(service) == found
        assert service.get("/v2/health/ready").status_code == 200


def test_calls_load_what_was_not_loaded_at_the_start(folder: Path) -> None:
    with start(folder, readiness="strict", **{**EXPLICIT, "models": None}) as service:
        assert any("BNFOLD_MODELS names some, or * for all, and calls load them" in line for line in service.lines)
        assert service.get("/v2/health/ready").status_code == 200, "a model that nobody asked for is not missing"
        answer = service.post("/v2/models/table/infer", json=REQUEST)
        assert (answer.status_code, answer.json()["error"]) == (503, "model table/1 is not ready: not loaded yet")
        assert call(service, "unload", "a") == (200, "")
        assert call(service, "load") == (200, "")
        assert right(service.post("/v2/models/table/infer", json=REQUEST).json()) == "1"
        assert states(service) == {"a/1": "UNAVAILABLE", "b/1": "UNAVAILABLE", "table/1": "READY"}


def test_a_folder_that_cannot_be_read_is_left_to_the_call_that_loads_it(folder: Path) -> None:
    (folder / "loop").symlink_to(folder / "loop")
    (folder / "empty").mkdir()
    with start(folder, **{**EXPLICIT, "models": "b"}) as service:
        assert states(service) == {"a/1": "UNAVAILABLE", "b/1": "READY", "table/1": "UNAVAILABLE"}
        status, error = call(service, "load", "empty")
        assert status == 404, error


def test_only_chosen_models_are_polled(folder: Path) -> None:
    """A poll looks at models by their names: when `table` has changed, `a` would have, too."""
    with start(folder, models="table", **WATCH) as service:
        table(folder, 2, name="a")
        table(folder, 2)
        wait(lambda: "table/2" in states(service))
        assert {name.split("/")[0] for name in states(service)} == {"table"}


@pytest.mark.parametrize("options", [[], ["--watch"]])
def test_a_model_that_is_not_there_is_one_line(folder: Path, options: list[str]) -> None:
    done = bnfold("serve", folder, "--models", "x,table,y", "--port", 0, *options)
    assert_one_line(done, f"models: {folder} has no x, y; here are: a, b, table")
    assert_one_line(bnfold("serve", folder, "--models", "../a"), "models (or BNFOLD_MODELS): String should match")
