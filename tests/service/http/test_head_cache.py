"""The cache of request heads changes no answer, whatever a client sends and however the bytes are cut into pieces."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.http.head_cache import HEADS, LARGEST_HEAD, HeadCache, RequestHead
from support.service.rawclient import Client

INFER = b"/v2/models/free/infer"
PLAIN = [(b"host", b"a"), (b"content-length", b"8"), (b"inference-header-content-length", b"0")]


def request_of(numbers: list[float], *extra: bytes, start: bytes = b"POST " + INFER + b" HTTP/1.1") -> bytes:
    """One row for `free`, which answers their sum."""
    body = np.array(numbers, np.float32).tobytes()
    lines = [start, b"host: a", b"content-length: %d" % len(body), b"inference-header-content-length: 0", *extra]
    return b"\r\n".join([*lines, b"", body])


@pytest.fixture
def client(service: Any) -> Iterator[Client]:
    found = Client(service)
    with found.socket:
        yield found


def test_the_same_head_comes_again_and_again(service: Any, client: Client) -> None:
    for numbers in ([1, 2], [3, 4], [5, 6]):
        client.socket.sendall(request_of(numbers))
        assert client.total() == sum(numbers)
    other = Client(service)
    with other.socket:
        other.socket.sendall(request_of([7, 8]))
        assert other.total() == 15, "another connection knows it, too"
        other.socket.sendall(request_of([1, 2, 3]))
        assert other.total() == 6, "another length is another head"


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_however_a_stream_of_requests_is_cut(service: Any, data: st.DataObject) -> None:
    """Whole ones, pipelined ones, heads and bodies in pieces."""
    asked = data.draw(
        st.lists(
            st.tuples(st.lists(st.integers(0, 99), min_size=1, max_size=3), st.sampled_from([(), (b"x-a: b",)])),
            min_size=1,
            max_size=4,
        )
    )
    stream = b"".join(request_of([float(n) for n in numbers], *extra) for numbers, extra in asked)
    cuts = sorted(data.draw(st.sets(st.integers(1, len(stream) - 1), max_size=3)))
    client = Client(service)
    with client.socket:
        for begin, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
            client.socket.sendall(stream[begin:end])
        assert [client.total() for _ in asked] == [sum(numbers) for numbers, _ in asked]


@pytest.mark.parametrize("split", ["head", "body", "both"])
def test_a_known_head_whose_body_comes_later(client: Client, split: str) -> None:
    whole = request_of([1, 2])
    client.socket.sendall(whole)
    assert client.total() == 3
    cuts = {"head": [20], "body": [len(whole) - 3], "both": [20, len(whole) - 3]}[split]
    for begin, end in zip([0, *cuts], [*cuts, len(whole)], strict=True):
        client.socket.sendall(whole[begin:end])
    assert client.total() == 3


def test_empty_lines_before_a_request_are_no_head(client: Client) -> None:
    """The parser skips them, so bytes that begin with them must never match a cached head."""
    for _ in range(3):
        client.socket.sendall(b"\r\n\r\n" + request_of([1, 2]))
        assert client.total() == 3
    client.socket.sendall(b"\r\n\r\n" + b"GET /v2/health/live HTTP/1.1\r\nhost: a\r\n\r\n")
    assert client.read()[0] == 200


def test_a_connection_that_the_client_wants_closed_is_closed(client: Client) -> None:
    client.socket.sendall(request_of([1, 2]))
    assert client.total() == 3
    client.socket.sendall(request_of([1, 2], b"connection: close"))
    assert client.total() == 3
    assert client.socket.recv(10) == b""


def test_errors_come_again_as_well(client: Client) -> None:
    wrong = request_of([1, 2], start=b"POST /v2/models/nobody/infer HTTP/1.1")
    for _ in range(3):
        client.socket.sendall(wrong)
        status, _, body = client.read()
        assert status == 404
        assert b"no model is named 'nobody'" in body
    client.socket.sendall(request_of([1, 2]))
    assert client.total() == 3


def test_tokens_are_asked_for_every_time(repository: Any, start: Any) -> None:
    with start(repository, tokens="right") as guarded:
        client = Client(guarded)
        with client.socket:
            for _ in range(2):
                client.socket.sendall(request_of([1, 2], b"authorization: Bearer right"))
                assert client.total() == 3
                for extra in ((), (b"authorization: Bearer wrong",)):
                    client.socket.sendall(request_of([1, 2], *extra))
                    assert client.read()[0] == 401


def read(url: bytes = INFER, headers: list[tuple[bytes, bytes]] = PLAIN, limit: int = 100) -> RequestHead | None:
    return HeadCache(limit).parse(url, headers)


def test_what_takes_the_fast_path() -> None:
    assert read() == RequestHead(("free", None), PLAIN, 8, b"0")
    assert read(b"/v2/models/a/versions/7/infer", [(b"content-length", b"100")]) == RequestHead(
        ("a", "7"), [(b"content-length", b"100")], 100, None
    )
    for slow in ((b"content-encoding", b"gzip"), (b"transfer-encoding", b"chunked"), (b"expect", b"100-continue")):
        assert read(headers=[*PLAIN, slow]) is None
    for length in (b"0", b"101", b"-1", b"x", b"", b"9" * 16):
        assert read(headers=[(b"content-length", length)]) is None
    assert read(headers=[(b"host", b"a")]) is None
    for url in (INFER + b"?a=1", b"/v2/models/a%20b/infer", b"/v2/models/net", b"/v2/models/\xc3\xa9/infer"):
        assert read(url) is None


def test_predictions_take_the_fast_path_if_they_are_declared_to_be_json() -> None:
    url, length = b"/v1/models/a:predict", (b"content-length", b"9")
    for kind in (b"application/json", b"Application/JSON ; charset=utf-8"):
        headers = [length, (b"content-type", kind), (b"accept", b"*/*")]
        assert read(url, headers) == RequestHead(("a", None), headers, 9, None, "predict", "application/json", "*/*")
    for kind in (b"image/png", b"application/x-npy", b"application/x-www-form-urlencoded", b"application/json-seq"):
        assert read(url, [length, (b"content-type", kind)]) is None
    json = (b"content-type", b"application/json")
    assert read(url, [length]) is None, "it may be an array"
    assert read(url, [length, json, (b"accept", b"Application/X-NPY, */*")]) is None
    assert read(b"/v1/models/a", [length, json]) is None


def test_only_a_whole_head_is_kept() -> None:
    whole = request_of([1, 2])[:-8]
    head = RequestHead(("free", None), PLAIN, 8, b"0")
    cache = HeadCache(100)
    for raw in (
        b"\r\n\r\n",
        b"\r\n" + whole,
        whole.replace(b"host: a", b"host: a\r\n folded"),
        whole.replace(b"host: a", b"host: a\r\nx: y"),
        whole.replace(b"host: a\r\n", b""),
        whole.replace(b"host: a", b"host: " + b"a" * LARGEST_HEAD),
        b"",
    ):
        cache.add(raw, head)
        assert cache.find(raw) is None
    cache.add(whole, head)
    assert cache.find(whole) is head


def test_clients_cannot_fill_the_memory() -> None:
    cache = HeadCache(100)
    raws = [request_of([1, 2], b"x-request-id: %d" % number)[:-8] for number in range(3 * HEADS)]
    for raw in raws:
        cache.add(raw, RequestHead(("free", None), [*PLAIN, (b"x-request-id", b"1")], 8, b"0"))
    assert cache.find(raws[-1]) is not None
    assert sum(cache.find(raw) is not None for raw in raws) <= HEADS
