"""Which of the tests here run: all of them on a GPU, those that have a meaning on a CPU in a dry run.

The outcome of each test is a line of BNFOLD_GPU_TEST_REPORT as soon as it is known, so that a run that is ended early
leaves the others: `passed`, `failed`, `skipped` or `not run` (no time was left), a tab, and the test's name.
"""

import os
import time
from pathlib import Path

import pytest

from fold.runtime.devices import cuda_devices
from support.device import ON_GPU, UNTIL

OUT_OF_TIME = "no time was left"
REPORT: list[Path] = []


def pytest_configure(config: pytest.Config) -> None:
    if "BNFOLD_GPU_TEST_REPORT" in os.environ and not hasattr(config, "workerinput"):
        REPORT.append(Path(os.environ["BNFOLD_GPU_TEST_REPORT"]))
    if not config.pluginmanager.hasplugin("xdist"):  # a bare machine need not have it
        config.addinivalue_line("markers", "xdist_group(name): tests that run in one process")


@pytest.fixture(autouse=True, scope="session")
def _device() -> None:
    if ON_GPU and not cuda_devices():
        pytest.skip("no NVIDIA GPU; see scripts/gpu-check")


@pytest.fixture(autouse=True)
def _time() -> None:
    if time.time() > UNTIL:
        pytest.skip(OUT_OF_TIME)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" or report.outcome != "passed":
        outcome = "not run" if OUT_OF_TIME in str(report.longrepr) else report.outcome
        for path in REPORT:
            with path.open("a") as file:
                file.write(f"{outcome}\t{report.nodeid.rpartition('::')[2]}\n")
