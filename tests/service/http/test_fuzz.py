"""Random requests: each gets an answer other than 5xx, none hangs, and memory does not grow. By Hypothesis on the
codec, by schemathesis on the OpenAPI document, and by changed bytes on a socket."""

import json
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import schemathesis
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from fold.artifact.manifest import TensorSpec
from service.budget import Budget
from service.errors import ServiceError
from service.http.npy import read_npy
from service.protocol.infer_body import decode, encode
from service.protocol.signature import Signature
from support.service.serving import PATIENCE

BUDGET = Budget(1 << 40)
SIGNATURE = Signature(
    [TensorSpec(name="x", datatype="FP32", shape=(-1, 3)), TensorSpec(name="s", datatype="BYTES", shape=(-1, 1))],
    [TensorSpec(name="y", datatype="FP32", shape=(-1, 2))],
    batched=True,
)
EXAMPLES = settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
SLOW_OPERATIONS = re.compile(r"equivalence|/layers|/load|/unload")
"""Which compute for seconds, or change what serves; they have tests of their own."""

FAILING = {"pick", "slow"}
"""Models that fail, or run for minutes, on numbers that they do not like."""


def right(rows: int = 2, **changes: Any) -> tuple[bytes, bytes]:
    """A body that is right, and its header's length."""
    strings = b"".join(len(text).to_bytes(4, "little") + text for text in (b"ab", b"")[:rows])
    tensors = [
        {"name": "x", "shape": [rows, 3], "datatype": "FP32", "parameters": {"binary_data_size": 12 * rows}},
        {"name": "s", "shape": [rows, 1], "datatype": "BYTES", "parameters": {"binary_data_size": len(strings)}},
    ]
    header = json.dumps({"inputs": tensors, "parameters": {"binary_data_output": True}, **changes}).encode()
    return header + np.arange(3 * rows, dtype="<f4").tobytes() + strings, b"%d" % len(header)


BODY, LENGTH = right()
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["name", "shape", "data"]), inner),
    max_leaves=10,
)


@given(st.binary(max_size=400), st.none() | st.binary(max_size=8))
@example(BODY, LENGTH)
@EXAMPLES
def test_no_bytes_are_beyond_the_codec(body: bytes, length: bytes | None) -> None:
    attempt(body, length)


@given(st.lists(st.tuples(st.integers(0, len(BODY) - 1), st.integers(0, 255)), min_size=1, max_size=4))
@EXAMPLES
def test_changed_bytes_are_read_or_refused(changes: list[tuple[int, int]]) -> None:
    body = bytearray(BODY)
    for at, value in changes:
        body[at] = value
    attempt(bytes(body), LENGTH)


@given(
    st.sampled_from(["inputs", "outputs", "parameters", "id"]),
    VALUES,
    st.sampled_from(["name", "shape", "datatype", "data", "parameters"]),
)
@EXAMPLES
def test_any_json_in_any_place_is_read_or_refused(key: str, value: Any, field: str) -> None:
    attempt(*right(**{key: value}))
    tensor = {"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3], field: value}
    text = {"name": "s", "shape": [1, 1], "datatype": "BYTES", "data": ["a"]}
    attempt(json.dumps({"inputs": [tensor, text]}).encode(), None)


@given(st.binary(max_size=200))
@example(b"\x93NUMPY\x01\x00\x76\x00{'descr': '|O', 'fortran_order': False, 'shape': (1,), }")
@EXAMPLES
def test_npy_is_read_or_refused(tail: bytes) -> None:
    for body in (tail, b"\x93NUMPY" + tail, b"\x93NUMPY\x01\x00" + len(tail).to_bytes(2, "little") + tail):
        try:
            read_npy("x", body)
        except ServiceError:
            continue


def test_a_header_that_comes_again_is_read_as_if_it_were_the_first() -> None:
    """What is remembered of it changes no answer: not for other tensors, not for another length, not for wrong ones."""
    known = Signature(list(SIGNATURE.inputs.values()), list(SIGNATURE.outputs.values()), batched=True)
    for number in range(3):
        body, length = right()
        at = int(length)
        changed = body[:at] + (np.arange(6) + number).astype("<f4").tobytes() + body[at + 24 :]
        request = decode(changed, length, known, 32, BUDGET)
        np.testing.assert_array_equal(request.inputs["x"], np.arange(6).reshape(2, 3) + number)
        assert request.inputs["s"].tolist() == [["ab"], [""]]
        for rows in (2, 1):
            answer = {"y": np.full((rows, 2), number, np.float32)}
            headers, content = encode("m", "1", request, answer, batched=True, labels=None)
            head = int(dict(headers)[b"inference-header-content-length"])
            assert json.loads(content[:head])["outputs"][0]["shape"] == [rows, 2]
            assert content[head:] == answer["y"].tobytes()
            assert int(dict(headers)[b"content-length"]) == len(content)
    for wrong in (BODY[:-1], BODY + b"x", BODY[:-6] + b"\xff" * 6):
        with pytest.raises(ServiceError):
            decode(wrong, LENGTH, known, 32, BUDGET)


def attempt(body: bytes, length: bytes | None) -> None:
    """Read it twice, for what is remembered must not change what is said."""
    said = []
    for _ in range(2):
        try:
            request = decode(body, length, SIGNATURE, 32, BUDGET)
            SIGNATURE.check(request.inputs, 64)
            said.append((200, repr(request.inputs)))
        except ServiceError as error:
            said.append((error.status, str(error)))
    assert said[0] == said[1]
    assert said[0][0] < 500


@pytest.fixture(scope="module")
def fuzzed(repository: Path, start: Callable[..., Any]) -> Iterator[Any]:
    with start(repository, request_seconds=2) as service:
        yield service


def test_no_call_that_the_document_allows_is_beyond_the_service(fuzzed: Any) -> None:
    schema = schemathesis.openapi.from_url(f"{fuzzed.url}/openapi.json")
    models = [entry["name"] for entry in fuzzed.post("/v2/repository/index", json={"ready": True}).json()]
    names = sorted(set(models) - FAILING)
    operations = [found.ok() for found in schema.get_all_operations()]
    tried = [operation for operation in operations if not SLOW_OPERATIONS.search(operation.path)]
    assert len(tried) >= 10
    for operation in tried:

        @given(operation.as_strategy(), st.sampled_from([*names, None]))
        @settings(EXAMPLES, max_examples=10)
        def call(case: schemathesis.Case, name: str | None) -> None:
            if name is not None and "name" in case.path_parameters:
                case.path_parameters["name"] = name
            answer = case.call(timeout=PATIENCE)
            assert answer.status_code < 500 or answer.status_code == 503, (case, answer.content)
            if answer.status_code >= 400:
                assert set(json.loads(answer.content)) == {"error"}

        call()
    assert fuzzed.get("/v2/health/ready").status_code == 200


REQUEST = (
    b"POST /v2/models/net/infer HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n"
    b"Accept-Encoding: gzip\r\n\r\n%s"
)


@given(st.lists(st.tuples(st.integers(0, 160), st.integers(0, 255)), min_size=1, max_size=3))
@settings(EXAMPLES, max_examples=75)
def test_changed_bytes_of_a_request_are_answered_or_the_connection_ends(
    fuzzed: Any, changes: list[tuple[int, int]]
) -> None:
    body = json.dumps({"inputs": [{"name": "image", "shape": [1, 1, 8, 8], "datatype": "FP32", "data": [1] * 64}]})
    sent = bytearray(REQUEST % (len(body), body.encode()))
    for at, value in changes:
        sent[at] = value
    with closing(socket.create_connection(("127.0.0.1", fuzzed.port), timeout=PATIENCE)) as connection:
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        while part := connection.recv(1 << 16):
            answer += part
    for status in re.findall(rb"HTTP/1\.1 (\d+)", answer):
        assert int(status) < 500, answer
    assert httpx.get(f"{fuzzed.url}/v2/health/live", timeout=PATIENCE).status_code == 200
