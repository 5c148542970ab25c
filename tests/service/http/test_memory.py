"""Memory of requests: what is counted, what is refused, and that all of it is given back. Raw sockets send bodies that
no client library would leave half sent.
"""

import gc
import gzip
import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from service.grpc.messages import ModelInferRequest, ModelInferResponse
from service.http.connection import HttpConnection
from support.service import serving
from support.service.serving import PATIENCE

LIMIT = 4 << 20
HEAD = b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n%s\r\n"
INFER, PREDICT = b"/v2/models/net/infer", b"/v1/models/net:predict"
JSON = b"Content-Type: application/json\r\n"


@pytest.fixture(scope="module")
def small(repository: Path, start: Callable[..., Any]) -> Iterator[Any]:
    """A service whose requests may take 4 MiB together."""
    with start(repository, max_bytes_in_flight=LIMIT, grpc_port=0) as service:
        yield service


def connect(service: Any) -> socket.socket:
    return socket.create_connection(("127.0.0.1", service.port), timeout=PATIENCE)


def answer(connection: socket.socket) -> tuple[int, bytes, dict[str, Any]]:
    content = b""
    while b"\r\n\r\n" not in content:
        content += connection.recv(1 << 16)
    head, _, body = content.partition(b"\r\n\r\n")
    length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    while len(body) < length:
        body += connection.recv(1 << 16)
    return int(head.split()[1]), head, json.loads(body)


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.005)


def in_flight(service: Any) -> float:
    return float(service.metric("bnfold_bytes_in_flight"))


@pytest.mark.parametrize("more", [b"", b"Expect: 100-continue\r\n", b"Content-Encoding: gzip\r\n"])
@pytest.mark.parametrize("path", [INFER, PREDICT])
def test_a_body_that_does_not_fit_is_503_before_it_is_read(small: Any, path: bytes, more: bytes) -> None:
    with closing(connect(small)) as connection:
        connection.sendall(HEAD % (path, LIMIT + 1, JSON + more))
        status, head, content = answer(connection)
    assert status == 503
    assert b"retry-after: 1" in head
    assert content["error"] == (
        "4194305 bytes do not fit: requests may take 4194304 (BNFOLD_MAX_BYTES_IN_FLIGHT), 0 are in use; "
        "try again later"
    )
    assert in_flight(small) == 0


def test_the_connection_of_a_refused_body_serves_on(small: Any) -> None:
    with closing(connect(small)) as connection:
        connection.sendall(HEAD % (INFER, LIMIT + 1, JSON))
        assert answer(connection)[0] == 503
        connection.sendall(bytes(LIMIT + 1))
        connection.sendall(HEAD % (PREDICT, 2, JSON) + b"{}")
        assert answer(connection)[0] == 400


def test_bodies_count_together_and_are_given_back(small: Any) -> None:
    """Two of 3 MB do not fit at a time, one after the other they do."""
    with closing(connect(small)) as first, closing(connect(small)) as second:
        first.sendall(HEAD % (INFER, 3 << 20, JSON) + b"{")
        until(lambda: in_flight(small) == 3 << 20)
        second.sendall(HEAD % (INFER, 3 << 20, JSON))
        assert answer(second)[0] == 503
        first.sendall(b" " * ((3 << 20) - 1))
        assert answer(first)[0] == 400
        until(lambda: in_flight(small) == 0)
        second.sendall(b" " * (3 << 20) + HEAD % (INFER, 3 << 20, JSON) + b"{" * (3 << 20))
        assert answer(second)[0] == 400


def test_what_a_body_unpacks_to_counts(small: Any) -> None:
    bomb = gzip.compress(bytes(LIMIT + 1))
    reply = small.post(INFER.decode(), content=bomb, headers={"Content-Encoding": "gzip"})
    assert (reply.status_code, reply.headers["retry-after"]) == (503, "1")


def test_gzip_of_several_members_is_one_body(small: Any) -> None:
    row = {"instances": np.zeros((1, 1, 8, 8)).tolist()}
    parts = [gzip.compress(part) for part in (json.dumps(row).encode(), b" " * 100_000, b"")]
    reply = small.post(PREDICT.decode(), content=b"".join(parts), headers={"Content-Encoding": "gzip"})
    assert reply.status_code == 200, reply.text


def test_a_chunked_body_counts_as_it_comes(small: Any) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(LIMIT // (1 << 18) + 2):
            yield b" " * (1 << 18)

    assert small.post(INFER.decode(), content=chunks()).status_code == 503


def test_an_image_counts_as_it_is_decoded(small: Any, tmp_path: Path) -> None:
    Image.new("L", (1000, 1000)).save(tmp_path / "large.png")
    content = (tmp_path / "large.png").read_bytes()
    assert len(content) < 10_000
    reply = small.post(PREDICT.decode(), content=content, headers={"Content-Type": "image/png"})
    assert reply.status_code == 503
    assert reply.json()["error"].startswith("8000000 bytes do not fit")


LONG, WIDE, EMPTY = ["x" * 1200] * 2000, ["x" * 450 + "\U0001f600"] * 2000, [""] * 80_000
"""Their bytes fit, and the strings beside them do not: two bytes a character, five, and 72 bytes a string."""


def packed(words: list[str]) -> bytes:
    return b"".join(len(word.encode()).to_bytes(4, "little") + word.encode() for word in words)


def of_infer(words: list[str], **more: Any) -> dict[str, Any]:
    return {"inputs": [{"name": "x", "shape": [len(words) // 2, 2], "datatype": "BYTES", **more}]}


def send_words(service: Any, form: str, words: list[str]) -> tuple[int, Any]:
    """Status and answer over HTTP."""
    if form == "binary":
        content = packed(words)
        header = json.dumps(of_infer(words, parameters={"binary_data_size": len(content)})).encode()
        length = {"Inference-Header-Content-Length": str(len(header))}
        reply = service.post("/v2/models/text/infer", content=header + content, headers=length)
    elif form == "infer":
        reply = service.post("/v2/models/text/infer", json=of_infer(words, data=words))
    else:
        reply = service.post("/v1/models/text:predict", json={"instances": np.reshape(words, (-1, 2)).tolist()})
    if reply.status_code == 503:
        assert reply.headers["retry-after"] == "1"
    answer = reply.json()
    return reply.status_code, answer.get("error") or answer.get("predictions") or answer["outputs"][0]["data"]


@pytest.mark.parametrize("form", ["binary", "infer", "predict"])
@pytest.mark.parametrize("words", [LONG, WIDE, EMPTY], ids=["long", "wide", "empty"])
def test_strings_count_as_they_are_in_memory(small: Any, form: str, words: list[str]) -> None:
    status, answer = send_words(small, form, words)
    if words is EMPTY and form == "predict":
        assert (status, "more than a request for this model can have" in answer) == (400, True)
    else:
        assert status == 503
        assert "bytes do not fit: requests may take 4194304 (BNFOLD_MAX_BYTES_IN_FLIGHT)" in answer
    until(lambda: in_flight(small) == 0)
    status, answer = send_words(small, form, words[:1000])
    assert (status, np.ravel(answer).tolist()) == (200, [f"{word}!" for word in words[:1000]])
    until(lambda: in_flight(small) == 0)


@pytest.mark.parametrize("typed", [False, True])
@pytest.mark.parametrize("words", [LONG, WIDE, EMPTY], ids=["long", "wide", "empty"])
def test_strings_of_a_call_count_as_they_are_in_memory(small: Any, words: list[str], typed: bool) -> None:
    import grpc  # noqa: PLC0415  # few tests need it

    def message(words: list[str]) -> bytes:
        request = ModelInferRequest(model_name="text")
        tensor = request.inputs.add(name="x", datatype="BYTES", shape=[len(words) // 2, 2])
        if typed:
            tensor.contents.bytes_contents.extend(word.encode() for word in words)
        else:
            request.raw_input_contents.append(packed(words))
        return bytes(request.SerializeToString())

    with grpc.insecure_channel(small.grpc) as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        with pytest.raises(grpc.RpcError, match="bytes do not fit") as caught:
            call(message(words))
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        assert {("retry-after", "1"), ("grpc-retry-pushback-ms", "1000")} <= set(caught.value.trailing_metadata())
        until(lambda: in_flight(small) == 0)
        answer = ModelInferResponse.FromString(call(message(words[:1000])))
        assert answer.raw_output_contents[0] == packed([f"{word}!" for word in words[:1000]])
        until(lambda: in_flight(small) == 0)


def test_a_call_that_does_not_fit_is_unavailable(small: Any) -> None:
    import grpc  # noqa: PLC0415  # few tests need it

    with grpc.insecure_channel(small.grpc) as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        with pytest.raises(grpc.RpcError, match="bytes do not fit") as caught:
            call(bytes(LIMIT + 1))
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("more", [b"", b"Content-Encoding: gzip\r\n"])
def test_clients_that_leave_within_a_body_leave_nothing_behind(repository: Path, start: Any, more: bytes) -> None:
    """The collector of reference cycles is off, so it is not what frees them."""
    left = 'bnfold_errors_total{kind="client_gone",model="net",version="1"}'
    with start(repository) as service:
        assert service.get("/v2/health/live").status_code == 200
        gc.collect()
        gc.disable()
        try:
            for _ in range(10):
                with closing(connect(service)) as connection:
                    connection.sendall(HEAD % (INFER, 2 << 20, JSON + more) + bytes(1 << 20))
            until(lambda: service.metric(left) == 10)
            until(lambda: in_flight(service) == 0)
            until(lambda: sum(type(thing) is HttpConnection for thing in gc.get_objects()) <= 1)
        finally:
            gc.enable()


ROWS = np.random.default_rng(5).normal(size=(1000, 1, 8, 8)).astype(np.float32)


def scores(service: Any, rows: np.ndarray) -> np.ndarray:
    """By binary tensors, which are not parsed."""
    tensor = {"name": "image", "shape": rows.shape, "datatype": "FP32", "parameters": {"binary_data_size": rows.nbytes}}
    header = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    reply = service.post(
        INFER.decode(),
        content=header + rows.tobytes(),
        headers={"Inference-Header-Content-Length": str(len(header))},
    )
    length = int(reply.headers["Inference-Header-Content-Length"])
    return np.frombuffer(reply.content[length:], np.float32).reshape(-1, 10)


@pytest.mark.parametrize("more", [{}, {"Content-Encoding": "gzip"}], ids=["plain", "gzip"])
@pytest.mark.parametrize("form", ["nested", "flat"])
def test_large_json_is_answered_as_binary_tensors_are(service: Any, form: str, more: dict[str, str]) -> None:
    expected = scores(service, ROWS)
    data = ROWS.tolist() if form == "nested" else ROWS.ravel().tolist()
    tensor = {"name": "image", "shape": ROWS.shape, "datatype": "FP32", "data": data}
    rows = ROWS.tolist() if form == "nested" else ROWS.reshape(1000, 64).tolist()
    headers = {"Content-Type": "application/json", **more}
    for path, body in ((INFER, {"inputs": [tensor]}), (PREDICT, {"instances": rows})):
        content = json.dumps(body).encode()
        assert len(content) > 1 << 20
        reply = service.post(path.decode(), content=gzip.compress(content) if more else content, headers=headers)
        answer = reply.json()
        found = answer["predictions"] if "predictions" in answer else answer["outputs"][0]["data"]
        assert np.allclose(np.reshape(found, (-1, 10)), expected, atol=1e-5)
    until(lambda: in_flight(service) == 0)


def test_large_json_of_texts(service: Any) -> None:
    words = [f'{number} é \\ " [{{' * 9 for number in range(2000)]
    for path, body in (
        ("/v2/models/text/infer", {"inputs": [{"name": "x", "shape": [1000, 2], "datatype": "BYTES", "data": words}]}),
        ("/v1/models/text:predict", {"instances": np.reshape(words, (1000, 2)).tolist()}),
    ):
        answer = service.post(path, json=body).json()
        found = answer["predictions"] if "predictions" in answer else answer["outputs"][0]["data"]
        assert np.ravel(found).tolist() == [f"{word}!" for word in words]


@pytest.mark.parametrize(
    ("model", "rows", "reason"),
    [
        ("text", b'["' + b"x" * (5 << 20) + b'","b"]', "a string of more than 4194304 bytes"),
        ("text", b"[0." + b"0" * (1 << 20) + b',"b"]', "more than 262144 bytes without a comma"),
        ("free", (b"[" + b"1," * 499 + b"1],") * 600 + b"[1]", "numbers the data is nested in another way"),
        ("free", b"[]," * 300_000 + b'["a"]', "the JSON has more than 262144 lists and objects"),
    ],
    ids=["a string", "a number", "numbers", "lists"],
)
def test_what_would_take_long_is_refused(service: Any, model: str, rows: bytes, reason: str) -> None:
    body = b'{"instances":[' + rows + b"]}"
    reply = service.post(f"/v1/models/{model}:predict", content=body, headers={"Content-Type": "application/json"})
    assert reply.status_code == 400
    assert reason in reply.json()["error"]


def test_an_error_names_its_place_in_the_whole_body(service: Any) -> None:
    content = json.dumps({"instances": ROWS.tolist()}).encode()
    place = len(content) // 2
    place = content.index(b"]", place)
    reply = service.post(
        PREDICT.decode(), content=content[:place] + b"x" + content[place:], headers={"Content-Type": "application/json"}
    )
    assert reply.status_code == 400
    assert reply.json()["error"].endswith(f"line 1 column {place + 1} (char {place})")


@pytest.mark.parametrize(
    "body",
    [
        b'{"instances":[' + b"[]," * 3_000_000 + b"[]]}",
        b'{"instances":[' + b"1," * 2_000_000 + b"1]}",
        b'{"instances":[' + (b"[" + b"0.5," * 2_000 + b"1],") * 1_000 + b'["1"]]}',  # wrong at its end
    ],
    ids=["lists", "numbers", "rows"],
)
def test_others_are_answered_while_a_body_is_read(service: Any, body: bytes) -> None:
    """The model has free dimensions, so nothing is refused by its amount."""
    health = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n"
    with closing(connect(service)) as large, closing(connect(service)) as small:
        large.sendall(HEAD % (b"/v1/models/free:predict", len(body), JSON) + body)
        large.setblocking(False)
        answered = 0
        while True:
            try:
                large.recv(1, socket.MSG_PEEK)
                break
            except BlockingIOError:
                small.sendall(health)
                assert answer(small)[2] == {"live": True}
                answered += 1
        large.settimeout(PATIENCE)
        assert answer(large)[0] == 400
    assert answered >= 5


def test_without_memory_a_request_is_503_and_the_service_lives(
    repository: Path, start_process: Callable[..., Any]
) -> None:
    """Requests may take what the process has not: they are refused when it gets none."""
    limited = """
import resource
from service import app
started = app._announce
def announce(repository, urls):
    pages = int(open("/proc/self/statm").read().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (28 << 20),) * 2)
    app_budget[0]._addresses_limited = True
    started(repository, urls)
app._announce = announce
from service import budget
app_budget = []
class Known(budget.Budget):
    def __init__(self, limit):
        super().__init__(1 << 40)
        app_budget.append(self)
app.Budget = Known
"""
    statuses = []
    with start_process(repository, code=limited + serving.SERVE) as service:
        for count in (200_000, 4_000_000):
            for body in (
                b'{"instances":[' + b"[0.5]," * (count // 4) + b"[1]]}",
                b'{"instances":[' + b"1," * count + b"1]}",
            ):
                reply = service.post(
                    "/v1/models/free:predict", content=body, headers={"Content-Type": "application/json"}
                )
                statuses.append(reply.status_code)
                if reply.status_code == 503:
                    assert "short of memory" in reply.json()["error"]
        assert service.process.poll() is None
        assert service.get("/v2/health/live").status_code == 200
    assert 503 in statuses
    assert set(statuses) <= {400, 503}
