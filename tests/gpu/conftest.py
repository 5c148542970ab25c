"""Which of the tests here run: all of them on a GPU, those that have a meaning on a CPU in a dry run."""

import time

import pytest

from fold.runtime.devices import cuda_devices
from support.device import ON_GPU, UNTIL


def pytest_configure(config: pytest.Config) -> None:
    if not config.pluginmanager.hasplugin("xdist"):  # a bare machine need not have it
        config.addinivalue_line("markers", "xdist_group(name): tests that run in one process")


@pytest.fixture(autouse=True, scope="session")
def _device() -> None:
    if ON_GPU and not cuda_devices():
        pytest.skip("no NVIDIA GPU; see scripts/gpu-check")


@pytest.fixture(autouse=True)
def _time() -> None:
    if time.time() > UNTIL:
        pytest.skip("no time was left")
