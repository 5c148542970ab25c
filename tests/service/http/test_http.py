"""Requests that no client library would send, over a real socket: refused in JSON, without harm to other clients."""

import asyncio
import gzip
import json
import socket
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from service.app import create_app
from service.settings import Settings
from support.service import served
from support.service.reloading import rewrite
from support.service.serving import HELD, PATIENCE, held

ROW = {"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}]}
FREE = "/v2/models/free/infer"


def raw(service: Any, *parts: bytes, pause: float = 0.0) -> tuple[int, dict[str, str], bytes]:
    """Send bytes as they are and read one answer until the connection closes or its body is complete."""
    with socket.create_connection(("127.0.0.1", service.port), timeout=PATIENCE) as connection:
        for part in parts:
            connection.sendall(part)
            time.sleep(pause)
        received = b""
        while b"\r\n\r\n" not in received:
            received += connection.recv(65536)
        head, body = received.split(b"\r\n\r\n", 1)
        status, *lines = head.decode().split("\r\n")
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        while len(body) < int(headers["content-length"]):
            body += connection.recv(65536)
        return int(status.split(" ")[1]), headers, body


@pytest.mark.parametrize(
    ("method", "path", "status", "message"),
    [
        ("GET", "/nowhere", 404, "GET /nowhere: no such path; /docs lists"),
        ("GET", "/v2//", 404, "no such path"),
        ("POST", FREE + "/", 404, "no such path"),
        ("POST", "/metrics", 405, "expected GET, HEAD"),
        ("POST", "/v2/models/a/b/infer", 404, "no such path"),
        ("POST", "/v2/models//infer", 404, "no model is named ''"),
        ("POST", "/v2/models/..%2f..%2fetc/infer", 404, "no such path"),
        ("GET", "/v2/models/../../etc/passwd", 404, "no such path"),
        ("GET", FREE, 405, "this path takes POST"),
        ("PUT", "/v2/health/ready", 405, "expected GET"),
        ("GET", "/v2/models/nobody", 404, "no model is named 'nobody'; here are: broken, echo"),
        ("GET", "/v2/models/net/versions/7/ready", 404, "has no version '7'; here are: 1"),
        ("GET", "/v2/models/broken/ready", 503, "model broken/1 is not ready"),
        ("GET", "/v1/models/nobody", 404, "no model is named"),
        ("POST", "/v1/models/nobody:predict", 404, "no model is named"),
        ("POST", "/v2/models/nobody/equivalence", 404, "no model is named"),
    ],
)
def test_every_refusal_is_json(service: Any, method: str, path: str, status: int, message: str) -> None:
    got, headers, body = raw(service, f"{method} {path} HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n".encode())
    assert got == status
    assert headers["content-type"] == "application/json"
    assert message in json.loads(body)["error"]
    assert ("allow" in headers) is (status == 405)


@pytest.mark.parametrize(
    "path",
    ["/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/net", "/v2/models/net/versions/1/ready", "/metrics"],
)
def test_a_slash_behind_a_path_that_is_read_means_nothing(service: Any, path: str) -> None:
    """`/v2/` is how the protocol's own OpenAPI document names it."""
    plain, slash = service.get(path), service.get(f"{path}/")
    assert (slash.status_code, slash.headers["content-type"]) == (200, plain.headers["content-type"])
    assert slash.content == plain.content or path == "/metrics"


def test_a_slash_opens_no_path_that_is_closed(repository: Path, start: Callable[..., Any]) -> None:
    with start(repository, tokens="secret", root_path="/prefix", metrics_need_token=True) as guarded:
        for path, status in (("/v2/health/ready/", 200), ("/v2/", 401), ("/metrics/", 401), ("/prefix/v2/", 401)):
            assert guarded.get(path).status_code == status
            head = httpx.head(guarded.url + path, timeout=PATIENCE)
            assert (head.status_code, head.content) == (status, b"")


@pytest.mark.parametrize(
    "path", ["/v2/health/live", "/v2", "/v2/models/net", "/metrics", "/", "/docs", "/nowhere", FREE]
)
def test_head_is_get_without_the_body(service: Any, path: str) -> None:
    with httpx.Client(base_url=service.url, timeout=PATIENCE) as client:
        head, whole = client.head(path), client.get(path)  # on one connection: a body would be read as an answer
        assert (head.status_code, head.content) == (whole.status_code, b"")
        for name in ("content-type", "allow"):
            assert head.headers.get(name) == whole.headers.get(name)
        if path != "/metrics":
            assert head.headers["content-length"] == whole.headers["content-length"]


def test_an_encoding_that_is_not_read_names_those_that_are(service: Any) -> None:
    answer = service.post(FREE, content=b"x", headers={"Content-Encoding": "br"})
    assert (answer.status_code, answer.headers["accept-encoding"]) == (415, "gzip, deflate")


@pytest.mark.parametrize(
    "document",
    [
        {"id": None},
        {"parameters": None},
        {"outputs": None},
        {"parameters": {"priority": None, "timeout": None, "binary_data_output": None, "colour": None}},
        {"outputs": [{"name": "total", "parameters": None}]},
        {"outputs": [{"name": "total", "parameters": {"binary_data": None, "classification": None}}]},
        {"inputs": [{**ROW["inputs"][0], "parameters": {"binary_data_size": None}}]},
    ],
    ids=str,
)
def test_null_is_as_good_as_left_out(service: Any, document: dict[str, Any]) -> None:
    """Clients that write their own objects as JSON send it for every field that has no value."""
    answer = service.post(FREE, json=ROW | document)
    assert answer.status_code == 200, answer.text
    assert answer.json() == service.post(FREE, json=ROW).json()


def test_null_is_left_out_everywhere(service: Any) -> None:
    binary = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": None, "parameters": {"binary_data_size": 8}}
    header = json.dumps({"inputs": [binary]}).encode()
    for _ in range(2):  # the second time its header is cached
        body, length = (
            header + np.array([1, 2], np.float32).tobytes(),
            {"Inference-Header-Content-Length": str(len(header))},
        )
        assert service.post(FREE, content=body, headers=length).json()["outputs"][0]["data"] == [3]
    whole = service.post("/v2/repository/index").json()
    assert service.post("/v2/repository/index", json={"ready": None}).json() == whole
    asked = {"samples": None, "seed": None, "parts": None, "search_seconds": -1}
    refused = service.post("/v2/models/net/equivalence", json=asked).json()["error"]
    assert refused.startswith("search_seconds is -1"), "which is looked at last"


def test_an_output_that_is_listed_is_an_object(service: Any) -> None:
    answer = service.post(FREE, json=ROW | {"outputs": ["total"]})
    assert (answer.status_code, answer.json()["error"]) == (
        400, "an output is 'total'; expected an object with \"name\"",
    )  # fmt: skip


def test_what_is_no_http_is_told_so_in_json(service: Any) -> None:
    status, _, body = raw(service, b"INFER PLEASE\r\n\r\n")
    assert (status, json.loads(body)) == (400, {"error": "the request is not valid HTTP"})


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "the body is not JSON"),
        (b"hello", "the body is not JSON"),
        (b'{"inputs": [', "the body is not JSON"),
        (b"[1]", "the body is a JSON list"),
        (b'{"inputs": ' + b"[" * 5000 + b"]" * 5000 + b"}", "the body is not JSON: depth"),
        (b'{"inputs": ' + b"[" * 50 + b"]" * 50 + b"}", "nested deeper than 32 levels"),
        (b"\x00\xff\xfe", "the body is not JSON"),
    ],
)
def test_bodies_that_are_no_request(service: Any, body: bytes, message: str) -> None:
    answer = service.post(FREE, content=body)
    assert answer.status_code == 400
    assert message in answer.json()["error"]


def test_bodies_may_come_in_chunks(service: Any) -> None:
    body = json.dumps(ROW).encode()
    answer = service.post(FREE, content=iter([body[:7], b"", body[7:]]))
    assert answer.json()["outputs"] == [{"name": "total", "datatype": "FP32", "shape": [1], "data": [6.0]}]


def test_a_tensor_alone_as_the_body(service: Any) -> None:
    headers = {"Inference-Header-Content-Length": "0", "Content-Type": "application/octet-stream"}
    answer = service.post(FREE, content=np.array([1, 2, 3, 4], np.float32).tobytes(), headers=headers)
    length = int(answer.headers["inference-header-content-length"])
    assert answer.headers["content-type"] == "application/octet-stream"
    assert json.loads(answer.content[:length])["outputs"][0]["parameters"] == {"binary_data_size": 4}
    assert np.frombuffer(answer.content[length:], np.float32) == [10]


def test_compressed_bodies_and_their_limits(service: Any, repository: Path, start: Callable[..., Any]) -> None:
    body = json.dumps(ROW).encode()
    large = json.dumps({"inputs": [{"name": "x", "shape": [1, 40000], "datatype": "FP32", "data": [0.123] * 40000}]})
    for encoding, pack in (("gzip", gzip.compress), ("deflate", zlib.compress), ("identity", bytes)):
        for content in (body, large.encode()):
            answer = service.post(FREE, content=pack(content), headers={"Content-Encoding": encoding})
            assert answer.status_code == 200, answer.text
    for content, encoding, status, message in (
        (body, "br", 415, "Content-Encoding 'br' is not read here; expected gzip, deflate or none"),
        (body, "gzip", 400, "not valid gzip"),
        (gzip.compress(body)[:-9], "gzip", 400, "ends too early"),
        (gzip.compress(body) + b"more", "gzip", 400, "4 bytes follow its end"),
        (gzip.compress(b"") * 20_000, "gzip", 400, "too many members"),
    ):
        answer = service.post(FREE, content=content, headers={"Content-Encoding": encoding})
        assert (answer.status_code, message in answer.json()["error"]) == (status, True), answer.text
    with start(repository, max_body_bytes=10_000) as small:
        bomb = gzip.compress(bytes(50_000_000))
        for options, message in (
            ({"content": bytes(10_001)}, "the body has 10001 bytes, at most 10000 are taken"),
            ({"content": iter([bytes(6000), bytes(6000), bytes(6000)])}, "more than the 10000 bytes"),
            (
                {"content": gzip.compress(bytes(10_001)), "headers": {"Content-Encoding": "gzip"}},
                "unpacks to more than",
            ),
            ({"content": bomb[:9000], "headers": {"Content-Encoding": "gzip"}}, "unpacks to more than"),
        ):
            answer = small.post(FREE, **options)
            assert (answer.status_code, message in answer.json()["error"]) == (413, True), answer.text
        assert small.post(FREE, json=ROW).status_code == 200


def test_the_index_takes_an_empty_body_and_a_filter(service: Any) -> None:
    everything = service.post("/v2/repository/index").json()
    assert {entry["name"] for entry in everything} == {
        "net", "echo", "slow", "pick", "free", "single", "pair", "text", "upper", "broken",
    }  # fmt: skip
    assert service.post("/v2/repository/index", json={}).json() == everything
    ready = service.post("/v2/repository/index", json={"ready": True}).json()
    assert ready == [entry for entry in everything if entry["name"] != "broken"]
    refused = service.post("/v2/repository/index", json={"ready": "yes"})
    assert (refused.status_code, "ready is 'yes'" in refused.json()["error"]) == (400, True)


def test_the_runtime_s_words_go_to_the_log_and_its_code_to_the_client(
    tmp_path: Path, start: Callable[..., Any]
) -> None:
    """They name paths and hosts and repeat what is in tensors. Of a run, and of a graph that cannot be loaded."""
    served.others(tmp_path)
    served.net(tmp_path)
    (tmp_path / "net" / "1" / "model.onnx").write_bytes(b"no graph")
    rewrite(tmp_path / "net" / "1")
    with start(tmp_path) as service:
        index = {"name": "index", "shape": [1], "datatype": "INT64", "data": [123456]}
        answer = service.post("/v2/models/pick/infer", json={"inputs": [index]})
        assert answer.json() == {
            "error": "model pick/1: the run failed: INVALID_ARGUMENT; the service's log has the reason"
        }
        (reason,) = [e["reason"] for e in service.post("/v2/repository/index").json() if e["name"] == "net"]
        assert reason.endswith("model.onnx: ONNX Runtime cannot load it: INVALID_PROTOBUF")
    said = "\n".join(service.lines)
    assert "bnfold: model pick/1: a run failed: [ONNXRuntimeError] : 2 : INVALID_ARGUMENT : Non-zero status" in said
    assert "idx=123456 must be within" in said
    assert "bnfold: not serving net/1: " in said
    assert "Protobuf parsing failed" in said


def test_a_bad_request_does_not_touch_its_neighbours(service: Any) -> None:
    """Good, malformed and failing requests at the same time: each good one is answered with its own numbers."""

    async def one(client: httpx.AsyncClient, number: int) -> None:
        match number % 4:
            case 0:
                index = {"name": "index", "shape": [1], "datatype": "INT64", "data": [10]}
                answer = await client.post("/v2/models/pick/infer", json={"inputs": [index]})
                assert answer.status_code == 500
                assert "model pick/1: the run failed" in answer.json()["error"]
            case 1:
                index = {"name": "index", "shape": [2], "datatype": "INT64", "data": [10]}
                answer = await client.post("/v2/models/pick/infer", json={"inputs": [index]})
                assert answer.status_code == 400
            case _:
                index = {"name": "index", "shape": [2], "datatype": "INT64", "data": [number % 10, 3]}
                answer = await client.post("/v2/models/pick/infer", json={"inputs": [index]})
                assert answer.status_code == 200, answer.text
                assert answer.json()["outputs"][0]["data"] == [number % 10 / 4, 0.75]

    async def all_at_once() -> None:
        limits = httpx.Limits(max_connections=32)
        async with httpx.AsyncClient(base_url=service.url, limits=limits, timeout=PATIENCE) as client:
            await asyncio.gather(*(one(client, number) for number in range(400)))

    asyncio.run(all_at_once())


def slow(x: float) -> dict[str, Any]:
    """A request to `slow`; its run is held if `x` is `HELD`."""
    return {"inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [x]}]}


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.01)


QUEUED, RUNNING = (f'bnfold_{what}_rows{{model="slow",version="1"}}' for what in ("queue", "running"))


def test_a_request_may_shorten_its_wait(repository: Path, start: Callable[..., Any]) -> None:
    """`timeout` is in microseconds; without it the configured 30 seconds hold."""
    with start(repository) as service, ThreadPoolExecutor(1) as pool, held() as hold:
        first = pool.submit(service.post, "/v2/models/slow/infer", json=slow(HELD))
        until(lambda: service.metric(RUNNING) == 1)
        late = service.post("/v2/models/slow/infer", json={**slow(0), "parameters": {"timeout": 100_000}})
        assert (late.status_code, "within 0.1 seconds" in late.json()["error"]) == (503, True), late.text
        assert not first.done(), "it was told before the one in front of it was done"
        hold.release()
        assert first.result().status_code == 200


def test_priority_1_goes_first(repository: Path, start: Callable[..., Any]) -> None:
    """Of two that wait in batches of one row, the later one is answered first as its priority is higher."""
    with start(repository, max_batch_size=1) as service, ThreadPoolExecutor(3) as pool, held() as hold:
        first = pool.submit(service.post, "/v2/models/slow/infer", json=slow(HELD))
        until(lambda: service.metric(RUNNING) == 1)
        usual = pool.submit(service.post, "/v2/models/slow/infer", json=slow(HELD))
        until(lambda: service.metric(QUEUED) == 1)
        urgent = pool.submit(service.post, "/v2/models/slow/infer", json={**slow(0), "parameters": {"priority": 1}})
        until(lambda: service.metric(QUEUED) == 2)
        hold.release(1)
        assert urgent.result().status_code == 200
        assert not usual.done()
        hold.release()
        assert [call.result().status_code for call in (first, usual)] == [200, 200]


def test_a_full_queue_is_429_and_the_accepted_are_answered(repository: Path, start: Callable[..., Any]) -> None:
    with start(repository, queue_rows=2) as service, ThreadPoolExecutor(3) as pool, held() as hold:
        first = pool.submit(service.post, "/v2/models/slow/infer", json=slow(HELD))
        until(lambda: service.metric(RUNNING) == 1)
        waiting = [pool.submit(service.post, "/v2/models/slow/infer", json=slow(0)) for _ in range(2)]
        until(lambda: service.metric(QUEUED) == 2)
        refused = service.post("/v2/models/slow/infer", json=slow(0))
        assert refused.status_code == 429
        assert refused.headers["retry-after"] == "1"
        assert "1 rows came, 2 are queued already and at most 2 may be" in refused.json()["error"]
        assert service.post(FREE, json=ROW).status_code == 200, "another model has a queue of its own"
        hold.release()
        assert [call.result().status_code for call in (first, *waiting)] == [200, 200, 200]


def test_a_client_that_leaves_takes_its_request_along(repository: Path, start: Callable[..., Any]) -> None:
    with start(repository) as service, ThreadPoolExecutor(1) as pool, held() as hold:
        first = pool.submit(service.post, "/v2/models/slow/infer", json=slow(HELD))
        until(lambda: service.metric(RUNNING) == 1)
        body = json.dumps(slow(7)).encode()
        head = f"POST /v2/models/slow/infer HTTP/1.1\r\nHost: h\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        with socket.create_connection(("127.0.0.1", service.port), timeout=PATIENCE) as connection:
            connection.sendall(head + body)
            until(lambda: service.metric(QUEUED) == 1)
        until(lambda: service.metric(QUEUED) == 0)
        assert not first.done(), "it left the queue, it was not computed"
        hold.release()
        assert first.result().status_code == 200
        assert service.metric('bnfold_rows_total{model="slow",version="1"}') == 1
        assert service.metric('bnfold_errors_total{kind="client_gone",model="slow",version="1"}') == 1


@pytest.mark.parametrize("rows", [-1, 1])
def test_a_client_that_leaves_takes_its_predictions_along(
    rows: int, tmp_path: Path, start: Callable[..., Any], make_slow: Callable[..., None]
) -> None:
    """Also where each instance is a run of its own."""
    make_slow(tmp_path, rows=rows)
    instance = [7] if rows < 0 else [[7]]
    with start(tmp_path) as service, ThreadPoolExecutor(1) as pool, held() as hold:
        first = pool.submit(service.post, "/v2/models/slow/infer", json=slow(HELD))
        until(lambda: service.metric(RUNNING) == 1)
        body = json.dumps({"instances": [instance, instance]}).encode()
        head = (
            "POST /v1/models/slow:predict HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        ).encode()
        with socket.create_connection(("127.0.0.1", service.port), timeout=PATIENCE) as connection:
            connection.sendall(head + body)
            until(lambda: service.metric(QUEUED) > 0)
        gone = 'bnfold_errors_total{kind="client_gone",model="slow",version="1"}'
        until(lambda: f"{gone} 1.0" in service.get("/metrics").text)
        hold.release()
        assert first.result().status_code == 200
        zero = [0] if rows < 0 else [[0]]
        answer = service.post("/v1/models/slow:predict", json={"instances": [zero]})
        assert answer.json() == {"predictions": [zero]}
        assert service.metric('bnfold_rows_total{model="slow",version="1"}') == 2, "what was left is not computed"


def test_a_client_that_leaves_in_the_middle_of_its_predictions(service: Any) -> None:
    with socket.create_connection(("127.0.0.1", service.port), timeout=PATIENCE) as connection:
        connection.sendall(
            b"POST /v1/models/net:predict HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\n"
            b"Content-Length: 100\r\n\r\n{"
        )
    counted = 'bnfold_errors_total{kind="client_gone",model="net",version="1"}'
    until(lambda: counted in service.get("/metrics").text)


def test_a_client_that_leaves_in_the_middle_of_its_body(service: Any) -> None:
    gone = 'bnfold_errors_total{kind="client_gone",model="free",version="1"}'

    def counted() -> float:
        lines = service.get("/metrics").text.splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(gone))

    before = counted()
    with socket.create_connection(("127.0.0.1", service.port), timeout=PATIENCE) as connection:
        connection.sendall(f"POST {FREE} HTTP/1.1\r\nHost: h\r\nContent-Length: 100\r\n\r\n".encode() + b"{")
    until(lambda: counted() == before + 1)
    assert service.post(FREE, json=ROW).status_code == 200


def test_what_waits_past_its_deadline_is_503(repository: Path, start: Callable[..., Any]) -> None:
    with start(repository, timeout_seconds=0.3) as service, ThreadPoolExecutor(1) as pool, held() as hold:
        first = pool.submit(service.post, "/v2/models/slow/infer", json=slow(HELD))
        until(lambda: service.metric(RUNNING) == 1)
        late = service.post("/v2/models/slow/infer", json=slow(0))
        assert (late.status_code, late.json()) == (503, {"error": "model slow/1: not begun within 0.3 seconds"})
        hold.release()
        assert first.result().status_code == 200


def test_a_fault_of_ours_is_500_in_json_and_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """With a repository that raises: infer and predict answer before FastAPI does."""
    app = create_app(Settings(repository=Path("/nowhere")))

    def fail(*_: Any) -> None:
        raise RuntimeError("a bug")

    app.repository.entry = fail  # type: ignore[method-assign]

    async def ask() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return [
                await client.post("/v2/models/m/infer", json=ROW),
                await client.post("/v1/models/m:predict", json={}),
            ]

    for answer in asyncio.run(ask()):
        assert answer.status_code == 500
        assert answer.json() == {"error": "internal error; the service's log has the details"}
    assert "a bug" in caplog.text
