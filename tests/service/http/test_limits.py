"""What clients may not do: come in too many, be too slow, say too much. Raw sockets, for no library would do it."""

import json
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from service.telemetry import ThrottledLog
from support.service.serving import PATIENCE

INFER = "/v2/models/net/infer"
ROW = {"inputs": [{"name": "image", "shape": [1, 1, 8, 8], "datatype": "FP32", "data": [0.5] * 64}]}
HEALTH = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture(scope="module")
def strict(repository: Path, start: Callable[..., Any]) -> Iterator[Any]:
    limits = {"request_seconds": 1, "max_header_bytes": 2048, "max_body_bytes": 1 << 24}
    with start(repository, **limits) as service:
        yield service


def connect(service: Any) -> socket.socket:
    return socket.create_connection(("127.0.0.1", service.port), timeout=PATIENCE)


def everything(connection: socket.socket) -> bytes:
    """All that comes until the other end closes."""
    parts = []
    try:
        while part := connection.recv(1 << 16):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


def lives(connection: socket.socket) -> bool:
    """Whether a request is answered, of which head and body may come apart."""
    connection.sendall(HEALTH)
    answer = b""
    while not answer.endswith(b'{"live":true}') and (part := connection.recv(1000)):
        answer += part
    return answer.startswith(b"HTTP/1.1 200")


def let_go(connection: socket.socket, sent: bytes) -> bool:
    """Whether the other end closes while this one goes on sending."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        try:
            connection.sendall(sent)
        except TimeoutError:
            return False
        except OSError:
            return True
        time.sleep(0.02)
    return False


def refused(answer: bytes) -> tuple[int, str]:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"connection: close" in head
    return int(head.split()[1]), json.loads(body)["error"]


def test_a_head_that_does_not_end_is_431(strict: Any) -> None:
    with closing(connect(strict)) as connection:
        connection.sendall(b"GET /v2 HTTP/1.1\r\nHost: x\r\n")
        for number in range(100):
            try:
                connection.sendall(b"X-Number-%d: %s\r\n" % (number, b"x" * 64))
            except OSError:
                break
        assert refused(everything(connection)) == (431, "the head has more than the 2048 bytes that are taken")


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"POST /v2/models/net/infer HTTP/1.1\r\nHost: x\r\n",
        b"POST /v2/models/net/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{",
        HEALTH + b"GET /v2",
    ],
    ids=["nothing", "half a head", "half a body", "half of a second request"],
)
def test_a_client_that_stops_in_the_middle_is_408(strict: Any, sent: bytes) -> None:
    with closing(connect(strict)) as connection:
        connection.sendall(sent)
        answer = everything(connection)
        assert refused(answer[answer.rindex(b"HTTP/1.1") :]) == (408, "no whole request came within 1 seconds")


def test_a_body_that_trickles_is_408_however_often_a_byte_comes(strict: Any) -> None:
    with closing(connect(strict)) as connection:
        connection.sendall(b"POST /v2/models/net/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n")
        assert let_go(connection, b" ")


def test_a_client_that_does_not_read_is_let_go(strict: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It asks for far more than the kernel's buffers hold, and reads nothing of it."""
    monkeypatch.setattr(ThrottledLog, "LINES", 1 << 30)
    with closing(connect(strict)) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        assert let_go(connection, b"GET /docs HTTP/1.1\r\nHost: x\r\n\r\n" * 200)
    assert strict.get("/v2/health/live").status_code == 200
    assert [line for line in strict.lines if not line.startswith("bnfold: ")] == [], "no traceback is logged"
    said = [line for line in strict.lines if "read nothing of its answer" in line]
    assert len(said) == 1
    assert said[0].startswith("bnfold: a client read nothing of its answer for 1 seconds; its connection was closed")


def test_one_connection_too_many_is_503_and_the_others_are_served(repository: Path, start: Callable[..., Any]) -> None:
    with start(repository, max_connections=40) as service:
        held = [connect(service) for _ in range(40)]
        try:
            for connection in held:
                assert lives(connection)
            with closing(connect(service)) as connection:
                assert refused(everything(connection)) == (503, "40 connections are open already; try again later")
            assert lives(held[0])
        finally:
            for connection in held:
                connection.close()


def test_slow_clients_keep_no_other_waiting(repository: Path, start: Callable[..., Any]) -> None:
    """Two hundred of them hold connections open while another is served as if it were alone."""
    with start(repository) as service:
        slow = [connect(service) for _ in range(200)]
        try:
            for connection in slow:
                connection.sendall(b"POST /v2/models/net/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n")
            with httpx.Client(base_url=service.url, timeout=PATIENCE) as client:
                for _ in range(50):
                    assert client.post(INFER, json=ROW).status_code == 200
        finally:
            for connection in slow:
                connection.close()


def test_over_tls_it_serves_as_without(repository: Path, start: Callable[..., Any], tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    openssl = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    names = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*openssl, *names], check=True, capture_output=True)
    with start(repository, tls_certificate=certificate, tls_key=key) as service:
        assert service.url.startswith("https://")
        trusted = ssl.create_default_context(cafile=str(certificate))
        with httpx.Client(base_url=service.url, verify=trusted, timeout=PATIENCE) as client:
            plain = client.post(INFER, json=ROW)
            assert plain.status_code == 200
            assert np.isfinite(plain.json()["outputs"][0]["data"]).all()


@pytest.mark.parametrize("given", [{"tls_certificate": "a.pem"}, {"tls_certificate": "a.pem", "tls_key": "b.pem"}])
def test_tls_without_its_files_is_one_line(
    repository: Path, start_process: Callable[..., Any], given: dict[str, str]
) -> None:
    with start_process(repository, ready=False, **given) as service:
        assert service.process.wait(PATIENCE) == 2
    (line,) = service.lines[-1:]
    assert line.startswith("bnfold: ")
    assert "tls_" in line or "a.pem" in line
    assert not any("Traceback" in line for line in service.lines)
