"""The application in another application of ASGI and on another server, as a user or Ray Serve mounts it: it loses
nothing."""

import logging
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.types import ASGIApp

from service.app import create_app
from service.settings import load_settings
from support.service.reloading import wait
from support.service.serving import PATIENCE

ORIGIN = "https://app.example"
ROW = {"inputs": [{"name": "image", "shape": [1, 1, 8, 8], "datatype": "FP32", "data": [0.5] * 64}]}


@contextmanager
def served_by_uvicorn(app: ASGIApp) -> Iterator[httpx.Client]:
    server = uvicorn.Server(uvicorn.Config(app, lifespan="on", log_config=None))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            wait(lambda: server.started or not thread.is_alive())
            with httpx.Client(base_url=f"http://127.0.0.1:{listener.getsockname()[1]}", timeout=PATIENCE) as client:
                yield client
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The lines of the access log."""
    lines: list[str] = []
    handler = logging.Handler()
    monkeypatch.setattr(handler, "emit", lambda record: lines.append(record.getMessage()))
    for name, value in (("handlers", [handler]), ("propagate", False), ("level", logging.INFO), ("_cache", {})):
        monkeypatch.setattr(logging.getLogger("bnfold.access"), name, value)
    return lines


def test_a_mounted_application_keeps_its_middleware(repository: Path, requests: list[str]) -> None:
    served = create_app(
        load_settings(repository=repository, models="net", device="cpu", access_log=True, cors_origins=ORIGIN)
    )

    @asynccontextmanager
    async def lifespan(host: Starlette) -> AsyncIterator[None]:
        async with served.router.lifespan_context(served):
            yield

    with served_by_uvicorn(Starlette(routes=[Mount("/models", served)], lifespan=lifespan)) as client:
        assert client.get("/models/v2/health/ready").status_code == 200
        answer = client.post("/models/v2/models/net/infer", json=ROW, headers={"Origin": ORIGIN, "X-Request-Id": "me"})
        assert answer.status_code == 200, answer.text
        assert answer.json()["outputs"][0]["shape"] == [1, 10]
        assert answer.headers["access-control-allow-origin"] == ORIGIN
        assert answer.headers["x-request-id"] == "me"
        assert [line for line in requests if "POST /models/v2/models/net/infer 200" in line]
        assert client.get("/models/v2/nothing").json()["error"].startswith("GET /")
    assert not served.is_ready()
