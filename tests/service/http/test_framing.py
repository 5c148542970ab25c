"""Where a request ends and the next begins: upgrades, pipelines, and heads that can be read in two ways (RFC 9112)."""

import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from service.telemetry import ThrottledLog
from support.service.rawclient import Client

UPGRADE = (b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAA")
"""As `curl --http2` and Java's HttpClient send them, to find out whether the server speaks HTTP/2."""
HEALTH = b"GET /v2/health/live HTTP/1.1\r\nHost: a\r\n\r\n"


@pytest.fixture
def client(service: Any) -> Iterator[Client]:
    found = Client(service)
    with found.socket:
        yield found


def head(*lines: bytes, path: bytes = b"/v2/models/free/infer") -> bytes:
    return b"\r\n".join(
        [b"POST " + path + b" HTTP/1.1", b"Host: a", b"Inference-Header-Content-Length: 0", *lines, b"", b""]
    )


def row(*numbers: float) -> bytes:
    """The body of a request for `free`, which answers the sum."""
    return np.array(numbers, np.float32).tobytes()


def in_chunks(body: bytes, *trailers: bytes) -> bytes:
    parts = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:3], body[3:]))
    return parts + b"\r\n".join([b"0", *trailers, b"", b""])


def sent(client: Client, whole: bytes, *cuts: int) -> None:
    for begin, end in zip([0, *cuts], [*cuts, len(whole)], strict=True):
        client.socket.sendall(whole[begin:end])
        if end < len(whole):
            assert lives(client.service), "the segment has been read before the next one is sent"


def lives(service: Any) -> bool:
    with (other := Client(service)).socket:
        other.socket.sendall(HEALTH)
        return other.read()[0] == 200


@pytest.mark.parametrize("form", ["length", "chunks"])
@pytest.mark.parametrize("cut", [None, 40, "head", "body"])
def test_an_upgrade_is_ignored_and_the_body_kept(client: Client, form: str, cut: Any) -> None:
    """RFC 9110, 7.8: a server may ignore it. The connection goes on as HTTP/1.1."""
    body = row(1, 2, 3)
    framing, content = (
        (b"Content-Length: 12", body) if form == "length" else (b"Transfer-Encoding: chunked", in_chunks(body))
    )
    start = head(*UPGRADE, framing)
    whole = start + content
    for _ in range(2):
        sent(client, whole, *([] if cut is None else [{"head": len(start), "body": len(start) + 5}.get(cut, cut)]))
        assert client.total() == 6
    client.socket.sendall(whole + head(b"Content-Length: 4") + row(7) + whole)
    assert [client.total() for _ in range(3)] == [6, 7, 6]


def test_an_upgrade_without_a_body_is_ignored(client: Client) -> None:
    for name in (b"h2c", b"websocket", b"TLS/1.0"):
        client.socket.sendall(HEALTH[:-2] + b"Connection: upgrade\r\nUpgrade: %s\r\n\r\n" % name)
        assert client.read()[0] == 200
    client.socket.sendall(HEALTH)
    assert client.read()[0] == 200


@pytest.mark.parametrize("together", [True, False], ids=["one segment", "two segments"])
def test_the_body_of_an_upgrade_is_no_request(client: Client, together: bool) -> None:
    """Otherwise it would reach paths that a proxy in front keeps to itself."""
    inner = b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n"
    start = head(*UPGRADE, b"Content-Length: %d" % len(inner))
    sent(client, start + inner, *([] if together else [len(start)]))
    status, _, body = client.read()
    assert (status, b"%d bytes came" % len(inner) in body) == (400, True), "it was read as a tensor"
    client.socket.sendall(HEALTH)
    assert client.read()[2] == b'{"live":true}', "nothing lies between the two answers"


@pytest.mark.parametrize("numbers", [1 << 14, 1 << 16], ids=["64 kB", "256 kB"])
def test_a_large_request_with_the_start_of_the_next_head(client: Client, numbers: int) -> None:
    body, second = row(*[1] * numbers), head(b"Content-Length: 8") + row(2, 3)
    whole = head(b"Content-Length: %d" % len(body)) + body
    for cut in (3, 60):
        sent(client, whole + second, len(whole) + cut)
        assert [client.total(), client.total()] == [numbers, 5]


def test_fifty_pipelined_requests_are_answered_in_their_order(client: Client) -> None:
    requests = [head(b"Content-Length: 4900") + row(number, *[0] * 1224) for number in range(50)]
    client.socket.sendall(b"".join(requests))
    assert [client.total() for _ in requests] == list(range(50))


@pytest.mark.parametrize(
    ("bad", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET /v2 HTTP/1.1\r\n\r\n", 400),
        (b"GET /v2 HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 70_000 + b"\r\n\r\n", 431),
        (head(b"Transfer-Encoding: chunked") + b"zz\r\n", 400),
    ],
    ids=["no HTTP", "no Host", "a long head", "a bad chunk"],
)
def test_what_came_before_a_bad_request_is_answered_first(client: Client, bad: bytes, status: int) -> None:
    good = head(b"Content-Length: 8")
    client.socket.sendall(b"".join(good + row(number, 1) for number in range(5)) + bad + good + row(9, 9))
    assert [client.total() for _ in range(5)] == [1, 2, 3, 4, 5]
    assert client.read()[0] == status
    assert client.ends(), "what follows a bad request is not read"


SHOWN = [b"Host: a", b"Content-Length: 0"]


@pytest.mark.parametrize(
    ("line", "headers", "status"),
    [
        (b"GET /v2 HTTP/1.1", [], 400),
        (b"GET /v2 HTTP/1.1", [b"Host: a", b"Host: a"], 400),
        (b"GET /v2 HTTP/1.0", [b"Host: a", b"Host: b"], 400),
        (b"GET /v2 HTTP/1.1", [b"Host: a b"], 400),
        (b"GET /v2 HTTP/1.1", [b"Host: a/b"], 400),
        (b"GET /v2 HTTP/2.0", SHOWN, 505),
        (b"GET /v2 HTTP/0.9", SHOWN, 505),
        (b"GET /v2", [], 505),
        (b"GET /v2 HTTP/1.2", SHOWN, 400),
        (b"PRI * HTTP/2.0", [], 400),
        (b"CONNECT a:80 HTTP/1.1", SHOWN, 501),
        (b"POST /v2/repository/index HTTP/1.1", [b"Host: a", b"Transfer-Encoding: gzip, chunked"], 501),
        (
            b"POST /v2/repository/index HTTP/1.1",
            [b"Host: a", b"Transfer-Encoding: gzip", b"Transfer-Encoding: chunked"],
            501,
        ),
        (b"POST /v2/repository/index HTTP/1.1", [b"Host: a", b"Transfer-Encoding: identity"], 400),
        (b"POST /v2/repository/index HTTP/1.1", [b"Host: a", b"Transfer-Encoding: xchunked"], 400),
        (b"POST /v2/repository/index HTTP/1.1", [b"Host: a", b"Transfer-Encoding: chunked, gzip"], 400),
        (b"POST /v2/repository/index HTTP/1.1", [b"Host: a", b"Transfer-Encoding: chunked, chunked"], 400),
        (b"POST /v2/repository/index HTTP/1.0", [b"Transfer-Encoding: chunked"], 400),
        (b"POST /v2/repository/index HTTP/1.1", [*SHOWN, b"Transfer-Encoding: chunked"], 400),
        (b"POST /v2/repository/index HTTP/1.1", [b"Host: a", b"Transfer-Encoding: chunked", b"Content-Length: 5"], 400),
        (b"POST /v2/repository/index HTTP/1.1", [*SHOWN, b"Content-Length: 0"], 400),
        (b"POST /v2/repository/index HTTP/1.1", [b"Host: a", b"Content-Length: +0"], 400),
        (b"POST /v2/repository/index HTTP/1.1", [b"Host: a", b"Content-Length : 0"], 400),
        (b"POST /v2/repository/index HTTP/1.1", [b"Host: a", b"X: a", b" folded", b"Content-Length: 0"], 400),
    ],
    ids=lambda value: b" ".join(value).decode() if isinstance(value, list) else None,
)
def test_heads_that_are_refused(client: Client, line: bytes, headers: list[bytes], status: int) -> None:
    client.socket.sendall(b"\r\n".join([line, *headers, b"", b"0\r\n\r\n"]))
    found, start, body = client.read()
    assert found == status, body
    assert b"connection: close" in start
    assert body.startswith(b'{"error":')
    assert client.ends()


@pytest.mark.parametrize(
    "headers",
    [[b"Host: a", b"TE: gzip, chunked"], [b"Host: "], [b"Host: [::1]:8000"], [b"Host: a_b.c:80", b"TE: trailers"]],
    ids=lambda lines: b" ".join(lines).decode(),
)
def test_heads_that_are_taken(client: Client, headers: list[bytes]) -> None:
    """TE says which codings the client would take; answers have none but chunks, and those need no word."""
    client.socket.sendall(b"\r\n".join([b"GET /v2/health/live HTTP/1.1", *headers, b"", b""]))
    assert client.read()[0] == 200


def test_trailers_are_no_headers(client: Client) -> None:
    client.socket.sendall(
        head(b"Transfer-Encoding: chunked", b"Trailer: Inference-Header-Content-Length")
        + in_chunks(row(4, 5), b"Inference-Header-Content-Length: 999", b"Content-Encoding: gzip")
    )
    assert client.total() == 9


def test_a_bad_request_is_logged(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ThrottledLog, "LINES", 1 << 30)
    client.socket.sendall(b"nonsense\r\n\r\n")
    assert client.read()[0] == 400
    said = "bnfold: a request of 127.0.0.1 was refused with 400: Invalid method encountered"
    assert any(line.startswith(said) for line in client.service.lines)


def test_warnings_that_clients_cause_are_few(caplog: pytest.LogCaptureFixture) -> None:
    said = ThrottledLog("some log")
    with caplog.at_level(logging.WARNING, "some log"):
        for number in range(100):
            said.warning("client %d", number, now=5 + number / 100)
        said.warning("client %d", 100, now=6)
        said.warning("client %d", 101, now=6.5)
    more = " (lines left out before this one: 97)"
    assert caplog.messages == [f"bnfold: client {n}{more if n == 100 else ''}" for n in (0, 1, 2, 100, 101)]
