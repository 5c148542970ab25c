"""Two processes test at once, a file each: the longest files go first, so that none is left over at the end."""

import functools
import os
import sys
import zlib
from types import ModuleType
from typing import Any
from unittest import mock

import pytest
from hypothesis import HealthCheck, settings

from support import ROOT

# The speed of a machine fails no test, and the same examples are drawn in every run: what lands passed with them.
settings.register_profile("bnfold", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("bnfold")

# Tests already run side by side. More threads in each only wait for each other, and a waiting one uses a core: a third
# of the time of what computes with PyTorch. It is read when the libraries are loaded, here and in processes of tests.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # so that processes, this one's workers too, need not compile again
# Processes that tests start find the networks in the checkout, from where they are not installed.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))

LONGEST = (
    "test_functional.py",
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


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """The weights that a test draws are those of every run."""
    if (torch := sys.modules.get("torch")) is not None:
        torch.manual_seed(zlib.crc32(item.path.name.encode()))


@pytest.fixture(autouse=True)
def _our_networks():
    """`--arch` takes a `models` of the user in place of ours. It goes, so that no later test finds it, and ours come
    back, so that no class is there twice."""

    def networks() -> dict[str, ModuleType]:
        return {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "models"}

    before = networks()
    yield
    for name, module in networks().items():
        if not str(module.__file__).startswith(str(ROOT)):
            del sys.modules[name]
    sys.modules.update(before)


@pytest.fixture(scope="session", autouse=True)
def _registry_of_the_exporter():
    """Each export reads PyTorch's 500 translations to ONNX again, half of the time that a small network takes. They
    do not change while the tests run, so they are read once."""
    if "torch" not in sys.modules:  # nothing that was collected exports
        yield
        return
    from torch.onnx._internal.exporter._registration import ONNXRegistry  # noqa: PLC0415  # only where it is loaded

    with mock.patch.object(ONNXRegistry, "from_torchlib", staticmethod(functools.cache(ONNXRegistry.from_torchlib))):
        yield


@pytest.fixture(scope="session", autouse=True)
def _cheap_folds():
    """Folds in this process load a user's file here and draw no pictures, which takes as long as the rest of a small
    fold. A test in which ONNX Runtime crashes or does not end asks for `own_process`."""
    from fold.reports import write_html  # noqa: PLC0415  # libraries read OMP_NUM_THREADS when they are loaded
    from support.trial import TrialHere  # noqa: PLC0415

    def without_pictures(*arguments: Any) -> None:
        with mock.patch("fold.reports.pictures.draw", return_value=[]):
            write_html(*arguments)

    with (
        mock.patch("fold.sources.onnx.Trial", TrialHere),
        mock.patch("fold.convert.write_html", without_pictures),
    ):
        yield


@pytest.fixture(scope="module")
def own_process():
    """Files of a user are run in a process of their own, as outside of tests."""
    from fold.runtime import Trial  # noqa: PLC0415

    with mock.patch("fold.sources.onnx.Trial", Trial):
        yield


@pytest.fixture(scope="module")
def pictures():
    """Reports have their pictures."""
    from fold.reports import write_html  # noqa: PLC0415

    with mock.patch("fold.convert.write_html", write_html):
        yield
