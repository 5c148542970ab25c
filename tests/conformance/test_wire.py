"""What no client library would send, over a socket: each time one clear refusal in JSON, and the server goes on."""

import gzip
import json
import zlib
from typing import Any

import httpx
import numpy as np
import pytest

from support.service.handmade import binary_request, first, fixed, refused
from support.service.target import Model, Target, arrays_of, wire

BOMB_BYTES = 1 << 28


@pytest.mark.parametrize("length", ["-1", "1e3", "twelve", "", "99999999", "99999999999999999999999"])
def test_the_header_length(any_model: Model, length: str) -> None:
    """Point 5: not an integer, negative, or longer than the body."""
    document, tensors = binary_request(any_model, any_model.draw())
    refused(any_model.infer(document, *tensors, length=length), "Length")


def test_a_header_length_that_cuts_the_json(any_model: Model) -> None:
    """Point 5."""
    document, tensors = binary_request(any_model, any_model.draw())
    refused(any_model.infer(document, *tensors, length=5))


def test_without_a_header_length_all_is_json(any_model: Model) -> None:
    """Point 5: the tensors behind it make it no JSON."""
    document, tensors = binary_request(any_model, any_model.draw())
    refused(any_model.infer(json.dumps(document).encode() + b"".join(tensors) + b"\0"))


def test_data_and_binary_size(model: Model) -> None:
    """Point 5: exactly one of both."""
    arrays = model.draw()
    name = next(iter(arrays))
    document, tensors = binary_request(model, arrays, data=[0])
    refused(model.infer(document, *tensors), name)
    document, tensors = binary_request(model, arrays)
    del document["inputs"][0]["parameters"]
    refused(model.infer(document, *tensors[1:]), name)


def test_bytes_that_are_missing_or_left_over(model: Model) -> None:
    """Point 5: 400 that names the numbers."""
    document, tensors = binary_request(model, model.draw())
    total = sum(map(len, tensors))
    refused(model.infer(document, *tensors, b"abc"), "3")
    if total:
        refused(model.infer(document, *tensors[:-1], tensors[-1][:-1]), str(len(tensors[-1])))


@pytest.mark.parametrize("change", [-1, 1, 4, "text", -(1 << 40)])
def test_a_binary_size_that_is_not_the_shapes(model: Model, change: Any) -> None:
    """Point 5: `binary_data_size ≠ prod(shape)·itemsize`, 400 that names the numbers."""
    name = fixed(model)
    arrays = first(model, model.draw(2), name)
    size = arrays[name].nbytes
    said = change if isinstance(change, str) else size + change
    document, tensors = binary_request(model, arrays, parameters={"binary_data_size": said})
    refused(model.infer(document, *tensors), name, str(said), str(size))


@pytest.mark.parametrize("depth", [100, 100_000])
def test_nesting_is_bounded(any_model: Model, depth: int) -> None:
    """Point 5."""
    refused(any_model.infer(b'{"inputs": ' + b"[" * depth + b"]" * depth + b"}"))
    refused(any_model.infer(b'{"a": ' * depth + b"1" + b"}" * depth))


@pytest.mark.parametrize(
    "body", [b"", b"null", b"[]", b"3", b'"x"', b"{", b"{}", b'{"inputs": {}}', b'{"inputs": [7]}', b"\xff\xfe{}"]
)
def test_bodies_that_are_no_request(any_model: Model, body: bytes) -> None:
    """Points 3 and 5."""
    refused(any_model.infer(body))


def test_a_tensor_alone_as_the_body(model: Model) -> None:
    """Binary tensors: header value 0, the body is only the tensor; one input, batch 1."""
    if len(model.inputs) != 1:
        arrays = model.draw()
        refused(model.infer(b"", *(wire(array) for array in arrays.values()), length=0))
        return
    [(name, tensor)] = model.inputs.items()
    free = sum(size == -1 for size in tensor["shape"]) - model.batched
    if tensor["datatype"] == "BYTES" or free > 1:
        pytest.skip("several sizes would be right for such a body")
    arrays = model.draw(1)
    document, tensors = binary_request(model, arrays)
    alone = model.infer(b"", wire(arrays[name]), length=0)
    for output, array in arrays_of(model.infer(document, *tensors)).items():
        np.testing.assert_array_equal(arrays_of(alone)[output], array)
    refused(model.infer(b"", wire(arrays[name]) + b"\0", length=0), name)


@pytest.mark.parametrize("kind", [None, "application/json", "application/octet-stream", "text/plain", "x"])
def test_the_content_type_does_not_matter(any_model: Model, kind: str | None) -> None:
    """Point 1: sync sends none, aio says octets even of JSON; the body is read as what it is."""
    if kind in ("text/plain", "x") and not any_model.target.ours:
        pytest.skip("what a server does with another media type is its own")
    document, tensors = any_model.request(any_model.draw())
    assert any_model.infer(document, *tensors, Content_Type=kind).status_code == 200


def test_bodies_in_chunks(model: Model) -> None:
    """Point 11."""
    document, tensors = binary_request(model, model.draw())
    header = json.dumps(document).encode()
    whole = header + b"".join(tensors)
    cuts = [whole[:1], whole[1 : len(header) - 3], whole[len(header) - 3 :], b""]
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(cut), cut) for cut in cuts if cut) + b"0\r\n\r\n"
    answer = model.infer(document, *tensors)
    parts = httpx.URL(model.target.url)
    lines = [
        f"POST {parts.path.rstrip('/')}{model.path}/infer HTTP/1.1",
        f"Host: {parts.netloc.decode()}",
        "Transfer-Encoding: chunked",
        f"Inference-Header-Content-Length: {len(header)}",
    ]
    chunked = model.target.send("\r\n".join([*lines, "", ""]).encode() + chunks)
    assert chunked.content == answer.content


@pytest.mark.parametrize(("encoding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_compressed_bodies(model: Model, encoding: str, pack: Any) -> None:
    """Point 2: lengths are those of the uncompressed body; what is broken or goes on behind its end is refused."""
    document, tensors = binary_request(model, model.draw(2))
    header = json.dumps(document).encode()
    body = pack(header + b"".join(tensors))
    plain = model.infer(document, *tensors)
    answer = model.infer(body, length=len(header), Content_Encoding=encoding)
    assert answer.content == plain.content
    refused(model.infer(body[:-6], length=len(header), Content_Encoding=encoding))
    refused(model.infer(header, length=len(header), Content_Encoding=encoding))
    refused(model.infer(body, length=len(body) + 10_000, Content_Encoding=encoding))


def test_an_unknown_encoding(any_model: Model) -> None:
    """Point 2: 415."""
    for encoding in ("br", "zstd", "compress", "gzip, gzip"):
        refused(any_model.infer(b"anything", Content_Encoding=encoding), status=415)


@pytest.mark.parametrize(("encoding", "window"), [("gzip", 31), ("deflate", 15)])
def test_bombs(target: Target, any_model: Model, encoding: str, window: int) -> None:
    """Point 2: a few hundred kilobytes that unpack to a quarter of a gigabyte."""
    packer = zlib.compressobj(9, wbits=window)
    million = bytes(1 << 20)
    bomb = b"".join([*(packer.compress(million) for _ in range(BOMB_BYTES >> 20)), packer.flush()])
    answer = any_model.infer(bomb, Content_Encoding=encoding)
    refused(answer, status=400 if answer.status_code == 400 else 413)
    assert target.get("/v2/health/live").status_code == 200


def test_a_client_that_leaves_in_the_middle(target: Target, any_model: Model) -> None:
    """Point 11: nobody else notices."""
    document, tensors = binary_request(any_model, any_model.draw())
    with target.connect() as connection:
        parts = httpx.URL(target.url)
        head = (
            f"POST {parts.path.rstrip('/')}{any_model.path}/infer HTTP/1.1\r\nHost: h\r\nContent-Length: 1000\r\n\r\n"
        )
        connection.sendall(head.encode() + b'{"inputs"')
    assert any_model.infer(document, *tensors).status_code == 200


def test_a_connection_outlives_a_refusal(any_model: Model) -> None:
    """Point 3: the next request on it is answered as if nothing had been."""
    path = f"{httpx.URL(any_model.target.url).path.rstrip('/')}{any_model.path}"
    bad = f"POST {path}/infer HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nno!".encode()
    good = f"GET {path} HTTP/1.1\r\nHost: h\r\n\r\n".encode()
    with any_model.target.connect() as connection:
        connection.sendall(bad)
        refused(any_model.target.read(connection))
        connection.sendall(good)
        assert any_model.target.read(connection).json() == any_model.metadata


def raw_request(model: Model, *lines: str) -> bytes:
    """A right request in JSON as bytes; `lines` are further headers."""
    document, tensors = model.request(model.draw())
    if tensors:
        pytest.skip("this model takes no JSON")
    parts, body = httpx.URL(model.target.url), json.dumps(document).encode()
    start = f"POST {parts.path.rstrip('/')}{model.path}/infer HTTP/1.1"
    head = [start, f"Host: {parts.netloc.decode()}", f"Content-Length: {len(body)}", *lines, "", ""]
    return "\r\n".join(head).encode() + body


@pytest.mark.parametrize("apart", [False, True], ids=["one segment", "two segments"])
def test_an_upgrade_to_http_2_keeps_the_body(any_model: Model, *, apart: bool) -> None:
    """As `curl --http2` and Java's HttpClient send it: a server that does not upgrade answers as if it were not there
    (RFC 9110, 7.8), and takes no body for a request."""
    upgrade = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA")
    whole = raw_request(any_model, *upgrade)
    cut = whole.index(b"\r\n\r\n") + 4 if apart else len(whole)
    with any_model.target.connect() as connection:
        connection.sendall(whole[:cut])
        any_model.target.get("/v2/health/live")  # the first segment has been read meanwhile
        connection.sendall(whole[cut:])
        answer = any_model.target.read(connection)
        if answer.status_code == 101:
            pytest.skip("this server speaks HTTP/2")
        assert answer.json()["model_name"] == any_model.name
        connection.sendall(raw_request(any_model))
        assert any_model.target.read(connection).json()["model_name"] == any_model.name


def test_pipelined_requests(any_model: Model) -> None:
    """HTTP/1.1 (RFC 9112, 9.3.2): all are answered."""
    one = raw_request(any_model)
    with any_model.target.connect() as connection:
        connection.sendall(one * 50)
        received, name = b"", b'"model_name"'  # once in each answer
        while received.count(name) < 50 and (part := connection.recv(1 << 16)):
            received += part
    assert (received.count(b"HTTP/1.1 200"), received.count(name)) == (50, 50)
