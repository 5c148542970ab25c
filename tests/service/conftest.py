"""The models of `served`, and the service in front of them. `folded` is a repository that `bnfold fold` wrote, with
certificate and canary.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support.service import served, serving


@pytest.fixture(scope="session")
def make_net() -> Callable[..., None]:
    """Publishes a network into a repository: `make_net(folder, name, wrong=…, other=…, version=…)`."""
    return served.net


@pytest.fixture(scope="session")
def make_slow() -> Callable[..., None]:
    """Publishes `slow` into a repository: `make_slow(folder, quick=…, rows=…)`."""
    return served.slow


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All the models above."""
    folder = tmp_path_factory.mktemp("repository")
    for publish in (served.net, served.echo, served.slow, served.others, served.kinds, served.broken):
        publish(folder)
    return folder


@pytest.fixture(scope="session")
def folded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with `net`, versions 1 and 2, folded from an `.onnx`: copy it before changing anything."""
    from fold.convert import Target, convert  # noqa: PLC0415  # what it imports few tests need
    from fold.sources.source import Source  # noqa: PLC0415  # what it imports few tests need

    folder = tmp_path_factory.mktemp("folded")
    served.net(folder / "source")
    for version in (1, 2):
        source = Source(folder / "source" / "net" / "1" / "unfolded.onnx")
        assert convert(source, Target(folder / "repository", "net", version), provider="cpu").path is not None
    return folder / "repository"


@pytest.fixture(scope="session")
def start() -> serving.Start:
    """Starts the service on a thread: `with start(repository, queue_rows=4) as service`."""
    return serving.start


@pytest.fixture(scope="session")
def start_process() -> Callable[..., Any]:
    """Starts the service as a process of its own, for what only a process has."""
    return serving.start_process


@pytest.fixture(scope="session")
def service(repository: Path) -> Iterator[serving.Service]:
    """One service in front of all models, for the tests that leave it as it was."""
    with serving.start(repository) as running:
        yield running


@pytest.fixture
def wrong_relu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The float64 evaluator of this process computes |x| for Relu."""
    from onnx.reference.op_run import OpRun  # noqa: PLC0415  # what it imports few tests need

    from fold.evaluate import float64  # noqa: PLC0415  # what it imports few tests need

    relu = type("Relu", (OpRun,), {"_run": lambda self, x: (abs(x),)})
    monkeypatch.setattr(float64, "OPERATORS", [*(o for o in float64.OPERATORS if o.__name__ != "Relu"), relu])
