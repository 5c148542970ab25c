"""What the service says: lines for people or for machines, with the client's own ids, and never what is in a tensor."""

import json
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from support.service.serving import PATIENCE

INFER = "/v2/models/net/infer"
SECRET = 0.123456789
ROW = {"inputs": [{"name": "image", "shape": [1, 1, 8, 8], "datatype": "FP32", "data": [SECRET] * 64}]}
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


def test_each_request_is_an_object_with_its_id(repository: Path, start_process: Callable[..., Any]) -> None:
    with start_process(repository, log_format="json", access_log=True) as service:
        own = service.post(INFER, json=ROW, headers={"X-Request-Id": "my-request/1"})
        traced = service.post(INFER, json=ROW, headers={"traceparent": f"00-{TRACE}-{PARENT}-01"})
        forged = service.get("/v2/nowhere", headers={"X-Request-Id": "two words", "traceparent": "00-0-0-00"})
        wrong = service.post(INFER, json={})
        bytes_of_wrong = len(wrong.content)
    assert own.headers["x-request-id"] == "my-request/1"
    assert traced.headers["x-request-id"] == TRACE
    assert re.fullmatch("[0-9a-f]{16}", forged.headers["x-request-id"])
    lines = [json.loads(line) for line in service.lines]
    assert all({"time", "level", "logger", "message"} <= line.keys() for line in lines)
    requests = [line for line in lines if line["logger"] == "bnfold.access"]
    assert [(r["method"], r["path"], r["status"]) for r in requests] == [
        ("POST", INFER, 200),
        ("POST", INFER, 200),
        ("GET", "/v2/nowhere", 404),
        ("POST", INFER, 400),
    ]
    assert [r["request_id"] for r in requests[:2]] == ["my-request/1", TRACE]
    assert (requests[1]["trace_id"], requests[1]["parent_id"]) == (TRACE, PARENT)
    assert requests[3]["bytes"] == bytes_of_wrong
    assert requests[0]["milliseconds"] > 0
    assert str(SECRET) not in "".join(service.lines)


def test_without_it_nothing_is_said_of_requests(service: Any) -> None:
    before = len(service.lines)
    answer = service.post(INFER, json=ROW, headers={"X-Request-Id": "x"})
    assert answer.status_code == 200
    assert "x-request-id" not in answer.headers
    assert len(service.lines) == before


def test_for_people_it_is_a_line(repository: Path, start_process: Callable[..., Any]) -> None:
    with start_process(repository, access_log=True) as service:
        service.post(INFER, json=ROW, headers={"X-Request-Id": "abc"})
        service.get("/%0Aforged line")
    first, second = service.lines[-2:]
    assert re.fullmatch(r"127\.0\.0\.1 POST /v2/models/net/infer 200 \d+ bytes [\d.]+ ms \[request abc\]", first)
    assert second.startswith("127.0.0.1 GET /\\nforged line 404")


class Collector(HTTPServer):
    """Takes spans as OpenTelemetry's collector does."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Taking)
        self.spans: list[Any] = []


class _Taking(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            names = {a.key: a.value.string_value for a in resource.resource.attributes}
            for scope in resource.scope_spans:
                self.server.spans += [(names["service.name"], span) for span in scope.spans]
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_spans_are_children_of_the_clients_trace(
    repository: Path, start_process: Callable[..., Any], collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.server_port}")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
    with start_process(repository, tracing=True) as service:
        service.post(INFER, json=ROW, headers={"traceparent": f"00-{TRACE}-{PARENT}-01"})
    (span,) = (span for name, span in collector.spans if (name, span.kind) == ("bnfold", span.SPAN_KIND_SERVER))
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, PARENT)
    assert INFER in {a.value.string_value for a in span.attributes}


def test_pages_of_others_may_call_it_only_where_they_are_named(
    service: Any, repository: Path, start: Callable[..., Any]
) -> None:
    theirs = {"Origin": "https://app.example", "Access-Control-Request-Method": "POST"}
    for answer in (
        service.post(INFER, json=ROW, headers=theirs),
        httpx.options(service.url + INFER, headers=theirs, timeout=PATIENCE),
    ):
        assert not [name for name in answer.headers if name.startswith("access-control")]
    with start(repository, cors_origins="https://app.example, https://other.example") as allowing:
        for url in (INFER, "/v1/models/net:predict"):
            asked = httpx.options(allowing.url + url, headers=theirs, timeout=PATIENCE)
            assert (asked.status_code, asked.headers["access-control-allow-origin"]) == (200, theirs["Origin"])
        told = allowing.post(INFER, json=ROW, headers={"Origin": "https://other.example"})
        assert told.headers["access-control-allow-origin"] == "https://other.example"
        for changed, named in (
            ({"Origin": "https://evil.example"}, "origin"),
            ({"Access-Control-Request-Method": "PUT"}, "method"),
        ):
            refused = httpx.options(allowing.url + INFER, headers={**theirs, **changed}, timeout=PATIENCE)
            assert refused.status_code == 400
            assert refused.json()["error"].startswith(f"CORS: not allowed here: {named}; expected an origin of")
        foreign = allowing.post(INFER, json=ROW, headers={"Origin": "https://evil.example"})
        assert "access-control-allow-origin" not in foreign.headers


def test_pages_run_and_load_nothing_but_what_the_service_sends(service: Any) -> None:
    for path in ("/", "/docs"):
        headers = service.get(path).headers
        policy = "default-src 'self'; img-src 'self' data: blob:; object-src 'none';"
        assert headers["content-security-policy"].startswith(policy)
        assert (headers["x-content-type-options"], headers["x-frame-options"]) == ("nosniff", "DENY")
