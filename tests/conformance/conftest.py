"""The Open Inference Protocol v2 as clients need it (docs/protocol.md), checked against any server:

    pytest tests/conformance --url http://host:port --grpc-url host:port --model NAME

Without `--url` our own service is started on small models. A test is skipped, and says why, where the server or the
model has not what it needs.
"""

from collections.abc import Iterator

import pytest

from support.service import served, serving
from support.service.target import Model, Target

OWN = ("net", "echo", "pair", "pick", "free", "single", "text", "upper")
"""Of our own small models those on which the tests run; together they have all that a test may need."""


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("conformance")
    group.addoption("--url", help="the server to check, http://host:port[/prefix]; our own if left out")
    group.addoption("--grpc-url", default="", help="the same server over gRPC, host:port; not checked if left out")
    group.addoption("--model", help="a model of that server; any that is ready if left out")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`model` is each model that is tested, `any_model` one of them, for what does not depend on it."""
    url = metafunc.config.getoption("--url", default=None)
    names = OWN if url is None else (metafunc.config.getoption("--model", default=None) or "",)
    if "model" in metafunc.fixturenames:
        metafunc.parametrize("model", names, indirect=True, scope="session")
    if "any_model" in metafunc.fixturenames:
        metafunc.parametrize("any_model", names[:1], indirect=True, scope="session")


@pytest.fixture(scope="session")
def target(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    url = pytestconfig.getoption("--url", default=None)
    if url is not None:
        yield Target(url.rstrip("/"), pytestconfig.getoption("--grpc-url").split("://")[-1])
        return
    repository = tmp_path_factory.mktemp("repository")
    for publish in (served.net, served.echo, served.others, served.kinds):
        publish(repository)
    served.net(repository, version=2)
    with serving.start(repository, grpc_port=0, version_policy="all") as service:
        yield Target(service.url, service.grpc)


@pytest.fixture(scope="session")
def model(target: Target, request: pytest.FixtureRequest) -> Model:
    return find(target, request.param)


@pytest.fixture(scope="session")
def any_model(target: Target, request: pytest.FixtureRequest) -> Model:
    return find(target, request.param)


def find(target: Target, name: str) -> Model:
    if not name:
        ready = target.post("/v2/repository/index", json={"ready": True}).json()
        if not ready:
            pytest.skip("no model of this server is ready")
        name = ready[0]["name"]
    return Model(target, name)
