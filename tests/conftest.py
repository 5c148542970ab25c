"""Two processes test at once, a file each: the longest files go first, so that none is left over at the end."""

import os

import pytest

from support import ROOT

# Processes that tests start find the networks in the checkout, from where they are not installed.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))

LONGEST = (
    "test_readme.py",
    "test_architectures.py",
    "test_certificate.py",
    "test_known_defects.py",
    "test_cli.py",
    "test_reload.py",
    "test_faults.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))
