"""A process that may open few files: clients are told before it has none left, and no model is blamed for it."""

import asyncio
import resource
import socket
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.errors import OutOfFilesError
from service.repository.polling import Poller
from service.repository.repository import Repository
from service.settings import Settings
from support.service.reloading import EXPLICIT, REQUEST, TOKEN, right, table
from support.service.serving import PATIENCE, SERVE

FILES = 200
HEALTH = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n"
NO_FILES = "the service has no file descriptors left; try again later, or raise the limit of open files (ulimit -n)"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    table(tmp_path / "repository", 1)
    return tmp_path / "repository"


def status(connection: socket.socket) -> bytes:
    connection.sendall(HEALTH)
    return connection.recv(4096)[9:12]


def test_connections_beyond_the_files_get_503_and_one_line_says_so(
    folder: Path, start_process: Callable[..., Any]
) -> None:
    limit = f"import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, ({FILES}, {FILES}))\n"
    with start_process(folder, code=limit + SERVE) as service, ExitStack() as held:
        connect = lambda: socket.create_connection(("127.0.0.1", service.port), timeout=PATIENCE)  # noqa: E731
        connections = [held.enter_context(closing(connect())) for _ in range(3 * FILES)]
        answers = [status(connection) for connection in connections]
        assert answers == [b"200"] * 150 + [b"503"] * 450
        assert service.process.poll() is None
    limited = "bnfold: at most 150 connections are taken, not 4096: 200 files may be open; raise the limit (ulimit -n)"
    assert service.lines[0] == limited
    assert service.said == ["bnfold: 150 connections are open, and further ones are answered with 503"]


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="Linux only")
def test_without_files_a_load_is_503_and_no_reason_for_a_model(folder: Path, start_process: Callable[..., Any]) -> None:
    """All files are taken from the running process, and given back."""
    with (
        start_process(folder, **EXPLICIT) as service,
        httpx.Client(base_url=service.url, headers=TOKEN, timeout=PATIENCE) as client,
    ):
        load = "/v2/repository/models/table/load"
        assert client.post(load).status_code == 200
        table(folder, 2)
        (folder / "table" / "1" / "report.html").write_text("a report")
        limits = resource.prlimit(service.process.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(service.process.pid, resource.RLIMIT_NOFILE, (3, limits[1]))
        for path in (load, "/models/table/versions/1/report", "/"):
            answer = client.post(path) if path == load else client.get(path)
            assert (answer.status_code, answer.json()["error"]) == (503, NO_FILES), path
        assert right(client.post("/v2/models/table/infer", json=REQUEST).json()) == "1"
        (entry,) = client.post("/v2/repository/index").json()
        assert (entry["state"], entry["reason"]) == ("READY", "")
        resource.prlimit(service.process.pid, resource.RLIMIT_NOFILE, limits)
        assert client.post(load).status_code == 200
        assert right(client.post("/v2/models/table/infer", json=REQUEST).json()) == "2"
    assert not any("Traceback" in line or "Too many" in line for line in service.lines)


def test_polling_tries_again_what_found_no_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And says it once."""
    from service.repository import polling, repository  # noqa: PLC0415

    said: list[str] = []
    monkeypatch.setattr(polling.log, "warning", lambda text, *arguments: said.append(text % arguments))

    async def follow() -> None:
        served = Repository(Settings(repository=folder, device="cpu", threads=1, repository_control="watch"))
        poller = Poller(served)
        served.load()
        table(folder, 2)
        with monkeypatch.context() as without:
            without.setattr(repository, "open_versions", no_files)
            await poller.poll()
            await poller.poll()
        assert [(str(entry), entry.reason) for entry in served.entries()] == [("table/1", "")]
        await poller.poll()
        assert served.find("table").version == "2"
        await served.drain()

    asyncio.run(follow())
    assert [line for line in said if "cannot be polled" in line] == [
        f"bnfold: the repository cannot be polled, and all models serve on: {NO_FILES}"
    ]


def no_files(*arguments: Any, **options: Any) -> Any:
    raise OutOfFilesError
