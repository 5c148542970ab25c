"""The connection class builds on internals of uvicorn and httptools, so only tested versions are allowed."""

import tomllib
from importlib.metadata import version

import pytest
from packaging.requirements import Requirement

from support import ROOT

REQUIREMENTS = {
    requirement.name: requirement
    for requirement in map(Requirement, tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"])
}


@pytest.mark.parametrize("name", ["uvicorn", "httptools"])
def test_the_installed_version_is_one_that_the_connection_class_was_tested_with(name: str) -> None:
    allowed = REQUIREMENTS[name].specifier
    assert {each.operator for each in allowed} == {">=", "<"}
    assert version(name) in allowed, (
        f"{name} {version(name)} is installed, {name}{allowed} is expected: run tests/service/http "
        "and test_lifecycle.py with it, then move the bound in pyproject.toml"
    )
