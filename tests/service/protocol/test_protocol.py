"""The codec alone: what goes in comes out, bit for bit, and what is wrong is refused by name and number."""

import contextlib
import json
import math
import struct
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from fold.artifact.manifest import DTYPES, TensorSpec
from service.budget import Budget
from service.errors import BadRequestError, ServiceError
from service.protocol.datatypes import NAMES
from service.protocol.infer_body import decode, encode
from service.protocol.jsontext import deeper_than, may_hold_booleans, parse_json
from service.protocol.signature import Signature
from service.protocol.tensors import numbers

DEPTH = 32
BUDGET = Budget(1 << 40)
SHAPES = npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)


def signature(*specs: tuple[str, str, tuple[int, ...]], batched: bool = True) -> Signature:
    tensors = [TensorSpec(name=name, datatype=datatype, shape=shape) for name, datatype, shape in specs]
    return Signature(tensors, tensors, batched=batched)


X = signature(("x", "FP32", (-1, 2)))


@st.composite
def tensors(draw: st.DrawFn) -> dict[str, np.ndarray]:
    """Up to three tensors of any datatype and shape, zero-size ones and non-finite numbers among them."""
    datatypes = draw(st.lists(st.sampled_from(list(DTYPES)), min_size=1, max_size=3))
    return {f"t{i}": draw(array_of(name)) for i, name in enumerate(datatypes)}


@st.composite
def array_of(draw: st.DrawFn, datatype: str) -> np.ndarray:
    if datatype == "BYTES":
        return draw(npst.arrays(np.object_, SHAPES, elements=st.text('a"\\ \0ä\U0001f600', max_size=5)))
    if datatype == "BF16":
        return draw(npst.arrays(np.uint16, SHAPES)).view(DTYPES["BF16"])
    return draw(npst.arrays(DTYPES[datatype], SHAPES))


def described(arrays: dict[str, np.ndarray]) -> Signature:
    return signature(*((name, NAMES[a.dtype], a.shape) for name, a in arrays.items()), batched=False)


def only_binary(arrays: dict[str, np.ndarray]) -> set[str]:
    return {name for name, array in arrays.items() if NAMES[array.dtype] in ("FP16", "BF16")}


def wire(array: np.ndarray) -> bytes:
    if array.dtype.kind != "O":
        return array.tobytes()
    texts = [text.encode() for text in array.ravel().tolist()]
    return b"".join(struct.pack("<I", len(text)) + text for text in texts)


def body_of(
    arrays: dict[str, np.ndarray], binary: set[str], *, nested: bool = False, **document: Any
) -> tuple[bytes, bytes]:
    """An infer body as a client writes it, with the standard library alone."""
    inputs, raw = [], b""
    for name, array in arrays.items():
        item: dict[str, Any] = {"name": name, "shape": list(array.shape), "datatype": NAMES[array.dtype]}
        if name in binary:
            item["parameters"] = {"binary_data_size": len(wire(array))}
            raw += wire(array)
        else:
            item["data"] = array.tolist() if nested and array.ndim else array.reshape(-1).tolist()
        inputs.append(item)
    header = json.dumps({"inputs": inputs, **document}).encode()
    return header + raw, str(len(header)).encode()


def outputs_of(headers: list[tuple[bytes, bytes]], body: bytes) -> dict[str, np.ndarray]:
    """The tensors of an answer as a client reads them, with the standard library alone."""
    length = dict(headers).get(b"inference-header-content-length")
    assert dict(headers)[b"content-length"] == str(len(body)).encode()
    split = len(body) if length is None else int(length)
    arrays = {}
    for output in json.loads(body[:split])["outputs"]:
        dtype = DTYPES[output["datatype"]]
        if "data" in output:
            arrays[output["name"]] = np.array(output["data"], dtype).reshape(output["shape"])
        else:
            size = output["parameters"]["binary_data_size"]
            content = body[split : split + size]
            flat = np.array(strings_of(content), object) if dtype.kind == "O" else np.frombuffer(content, dtype)
            arrays[output["name"]] = flat.reshape(output["shape"])
            split += size
    assert split == len(body)
    return arrays


def strings_of(content: bytes) -> list[str]:
    found, offset = [], 0
    while offset < len(content):
        (length,) = struct.unpack_from("<I", content, offset)
        offset += 4 + length
        found.append(content[offset - length : offset].decode())
    return found


def assert_same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert one.keys() == other.keys()
    for name, array in one.items():
        assert other[name].dtype == array.dtype
        assert other[name].shape == array.shape
        if array.dtype.kind == "V":
            np.testing.assert_array_equal(other[name].view(np.uint16), array.view(np.uint16))
            continue
        np.testing.assert_array_equal(other[name], array)
        if array.dtype.kind == "f":
            finite = np.isfinite(array)
            np.testing.assert_array_equal(np.signbit(other[name][finite]), np.signbit(array[finite]))


@given(tensors(), st.data(), st.booleans())
def test_requests_round_trip(arrays: dict[str, np.ndarray], data: st.DataObject, nested: bool) -> None:
    binary = only_binary(arrays) | set(data.draw(st.lists(st.sampled_from(sorted(arrays)))))
    body, length = body_of(arrays, binary, nested=nested, parameters={"binary_data_output": True})
    request = decode(body, length if binary else None, described(arrays), DEPTH, BUDGET)
    assert_same(arrays, request.inputs)


@given(tensors(), st.data(), st.none() | st.text())
def test_answers_round_trip(arrays: dict[str, np.ndarray], data: st.DataObject, request_id: str | None) -> None:
    binary = only_binary(arrays) | set(data.draw(st.lists(st.sampled_from(sorted(arrays)))))
    asked = [{"name": name, "parameters": {"binary_data": name in binary}} for name in arrays]
    extra = {} if request_id is None else {"id": request_id}
    body, length = body_of(arrays, set(arrays), outputs=asked, **extra)
    request = decode(body, length, described(arrays), DEPTH, BUDGET)
    headers, answer = encode("m", "1", request, arrays, batched=False, labels=None)
    assert_same(arrays, outputs_of(headers, answer))
    split = int(dict(headers).get(b"inference-header-content-length", len(answer)))
    assert json.loads(answer[:split]).get("id") == request_id


@given(st.binary(max_size=200), st.none() | st.integers(0, 250).map(lambda n: str(n).encode()) | st.binary(max_size=8))
def test_no_bytes_break_the_codec(body: bytes, length: bytes | None) -> None:
    with pytest.raises(ServiceError):
        decode(body, length, signature(("x", "FP32", (-1, 2)), ("y", "FP32", (-1, 2))), DEPTH, BUDGET)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.text('[]{}"\\', max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 5), JSON_VALUES), min_size=1, max_size=3))
def test_no_json_breaks_the_codec(changes: list[tuple[int, int, Any]]) -> None:
    """A right request, parts of which were replaced by anything at all: taken or refused, and never another error."""
    tensor: dict[str, Any] = {"name": "x", "shape": [2, 2], "datatype": "FP32", "parameters": {}, "data": [1, 2, 3, 4]}
    output: dict[str, Any] = {"name": "x", "parameters": {"binary_data": True}}
    request = {"id": "i", "parameters": {"binary_data_output": False}, "inputs": [tensor], "outputs": [output]}
    parts = [request, request["parameters"], tensor, tensor["parameters"], output]
    for part, key, value in changes:
        keys = [*parts[part], "binary_data_size"]
        parts[part][keys[key % len(keys)]] = value
    with contextlib.suppress(BadRequestError):
        decoded = decode(json.dumps(request).encode("utf-8", "replace"), None, X, DEPTH, BUDGET)
        assert all(array.dtype == np.float32 for array in decoded.inputs.values())


def infer(*, data: Any = None, parameters: Any = None, tail: bytes = b"", length: Any = "right", **changes: Any) -> Any:
    """Decode a request that is right but for the changes."""
    item = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": data, "parameters": parameters, **changes}
    header = orjson.dumps({"inputs": [{key: value for key, value in item.items() if value is not None}]})
    header_length = str(len(header)).encode() if length == "right" else length
    return decode(header + tail, header_length, X, DEPTH, BUDGET)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "neither data nor parameters.binary_data_size"),
        ({"data": [1, 2], "parameters": {"binary_data_size": 8}}, "data and parameters.binary_data_size"),
        ({"data": [1]}, "data has 1 elements, shape [1, 2] needs 2"),
        ({"data": [[1, 2], [3, 4]]}, "a list on axis 0 has 2 elements, shape [1, 2] says 1"),
        ({"data": [[1, [2]]]}, "element 1 is [2]; FP32 expects numbers"),
        ({"data": [1, [2]]}, "element 1 is [2]; FP32 expects numbers"),
        ({"data": [[1, 2], 3]}, "a list on axis 0 has 2 elements"),
        ({"data": [1, None]}, "element 1 is None; FP32 expects numbers"),
        ({"data": [1, "2"]}, "element 1 is '2'; FP32 expects numbers"),
        ({"data": [1, True]}, "element 1 is True; FP32 expects numbers"),
        ({"data": [1, 1e300]}, "beyond the range of FP32"),
        ({"data": "text"}, "data is a JSON str; expected a list"),
        ({"data": [1.0, 2.0], "datatype": "INT32"}, "element 0 is 1.0; INT32 expects whole numbers"),
        ({"data": [1, 300], "datatype": "UINT8"}, "beyond the range of UINT8"),
        ({"data": [1, 2], "datatype": "BOOL"}, "element 0 is 1; BOOL expects true or false"),
        ({"data": [1, 2], "datatype": "FP16"}, "FP16 has no form in JSON"),
        ({"data": [1, 2], "datatype": "BF16"}, "BF16 has no form in JSON"),
        ({"data": [1, 2], "datatype": "FP8"}, "datatype 'FP8' is not served; expected one of BOOL"),
        ({"data": ["a", 2], "datatype": "BYTES"}, "element 1 is 2; BYTES expects strings"),
        ({"data": ["a", "b", "c"], "datatype": "BYTES"}, "data has 3 elements, shape [1, 2] needs 2"),
        ({"data": [1, 2], "datatype": [1]}, "datatype [1] is not served"),
        ({"data": [1, 2], "name": "z"}, "no input is named 'z'; expected 'x'"),
        ({"data": [1, 2], "name": 3}, 'expected an object with "name"'),
        ({"data": [1, 2], "shape": [1, -2]}, "expected whole numbers from 0"),
        ({"data": [1, 2], "shape": [1, 2.0]}, "expected whole numbers from 0"),
        ({"data": [1, 2], "shape": 2}, "shape is 2; expected a list"),
        ({"data": [1, 2], "shape": [1] * 40}, "expected a list of at most 32"),
        ({"data": [1, 2], "shape": [2**62, 2**62]}, "more than any request can hold"),
        ({"data": [1, 2], "shape": [0, 2**62]}, "more than any request can hold"),
        ({"data": [1, 2], "shape": [10**6, 10**6]}, "data has 2 elements, shape [1000000, 1000000] needs"),
        ({"parameters": {"binary_data_size": 7}, "tail": bytes(7)}, "is 7, shape [1, 2] of FP32 is 8 bytes"),
        ({"parameters": {"binary_data_size": "8"}, "tail": bytes(8)}, "binary_data_size is '8'"),
        ({"parameters": {"binary_data_size": 8}, "tail": bytes(5)}, "only 5 bytes of the body are left"),
        ({"parameters": {"binary_data_size": 8}, "tail": bytes(9)}, "1 bytes are left over"),
        ({"parameters": {"binary_data_size": 8}, "length": None}, "Inference-Header-Content-Length is missing"),
        ({"parameters": {"shared_memory_region": "r"}}, "shared memory is not offered"),
        ({"parameters": 5, "data": [1, 2]}, "parameters is 5; expected an object"),
        ({"data": [1, 2], "length": b"-1"}, "is '-1'; expected a number"),
        ({"data": [1, 2], "length": b"1e3"}, "is '1e3'; expected a number"),
        ({"data": [1, 2], "length": b"99999"}, "is 99999, but the whole body has"),
        ({"data": [1, 2], "length": b"4"}, "the body is not JSON"),
    ],
)
def test_refusals_name_what_came_and_what_was_expected(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRequestError) as raised:
        infer(**changes)
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([], "the body is a JSON list"),
        ({}, '"inputs" is missing'),
        ({"inputs": [1]}, "an input is 1"),
        ({"inputs": [], "id": 5}, "id is 5; expected a string"),
        ({"inputs": [], "outputs": {}}, '"outputs" is {}'),
        ({"inputs": [], "outputs": [{"name": "x"}, {"name": "x"}]}, "asked for twice"),
        ({"inputs": [], "outputs": [{"name": "q"}]}, "no output is named 'q'; expected 'x'"),
        ({"inputs": [], "outputs": [{"name": "x", "parameters": {"binary_data": 1}}]}, "parameters.binary_data is 1"),
        ({"inputs": [], "parameters": {"binary_data_output": "yes"}}, "binary_data_output is 'yes'"),
        ({"inputs": [{"name": "x", "shape": [0, 2], "datatype": "FP32", "data": []}] * 2}, "input 'x' came twice"),
    ],
)
def test_documents_that_are_no_request(document: Any, message: str) -> None:
    with pytest.raises(BadRequestError) as raised:
        decode(json.dumps(document).encode(), None, X, DEPTH, BUDGET)
    assert message in str(raised.value)


def test_half_precision_is_refused_as_json_before_it_is_computed() -> None:
    half = signature(("h", "FP16", (-1,)))
    body, length = body_of({"h": np.ones(2, np.float16)}, {"h"})
    with pytest.raises(BadRequestError, match="output 'h': FP16 has no form in JSON; ask for it with"):
        decode(body, length, half, DEPTH, BUDGET)


def test_half_a_surrogate_pair_is_no_text() -> None:
    """The standard library, which reads texts with bare tokens, takes it; nothing could be answered with it."""
    for text in (b'["\\ud800"]', b'["\\ud800", NaN]', b'{"\\udfff": NaN}'):
        with pytest.raises(BadRequestError, match="the body is not JSON"):
            parse_json(text, DEPTH)
    assert parse_json(b'["\\ud83d\\ude00", Infinity]', DEPTH) == ["\U0001f600", math.inf]


def test_outputs_follow_the_flag_for_all_of_them_until_they_have_their_own() -> None:
    two = signature(("a", "FP32", (-1,)), ("b", "FP32", (-1,)))
    for asked, default, expected in (
        (None, None, [("a", False), ("b", False)]),
        ([], True, [("a", True), ("b", True)]),
        ([{"name": "b"}], True, [("b", True)]),
        ([{"name": "b"}, {"name": "a", "parameters": {"binary_data": False}}], True, [("b", True), ("a", False)]),
        ([{"name": "a", "parameters": {"binary_data": True}}, {"name": "b"}], None, [("a", True), ("b", False)]),
    ):
        parameters = {} if default is None else {"binary_data_output": default}
        body = orjson.dumps({"inputs": [], "outputs": asked, "parameters": parameters})
        assert [output[:2] for output in decode(body, None, two, DEPTH, BUDGET).outputs] == expected


def test_priority_and_timeout_are_read() -> None:
    def schedule(**parameters: Any) -> tuple[int, float | None]:
        request = decode(orjson.dumps({"inputs": [], "parameters": parameters}), None, X, DEPTH, BUDGET)
        return request.priority, request.timeout

    assert schedule() == (0, None)
    assert schedule(priority=3, timeout=250_000) == (3, 0.25)
    assert schedule(timeout=0) == (0, None), "as in Triton, none was given"
    assert schedule(sequence_id=5, sequence_start=True, colour="red") == (0, None)


def test_a_boolean_byte_is_zero_or_one() -> None:
    flags = signature(("f", "BOOL", (-1,)))
    header = b'{"inputs":[{"name":"f","shape":[2],"datatype":"BOOL","parameters":{"binary_data_size":2}}]}'
    with pytest.raises(BadRequestError, match="a BOOL is one byte, 0 or 1; 7 came"):
        decode(header + b"\x01\x07", str(len(header)).encode(), flags, DEPTH, BUDGET)


def test_binary_tensors_are_views_of_the_body() -> None:
    body, length = body_of({"x": np.ones((1, 2), np.float32)}, {"x"})
    array = decode(body, length, X, DEPTH, BUDGET).inputs["x"]
    assert np.shares_memory(array, np.frombuffer(body, np.uint8))


def test_a_header_of_no_length_makes_the_body_the_tensor() -> None:
    request = decode(np.array([1, 2], np.float32).tobytes(), b"0", X, DEPTH, BUDGET)
    np.testing.assert_array_equal(request.inputs["x"], [[1, 2]])
    assert request.outputs == (("x", True, 0),)
    free = signature(("x", "FP32", (-1, -1)))
    assert decode(bytes(12), b"0", free, DEPTH, BUDGET).inputs["x"].shape == (1, 3)
    with pytest.raises(BadRequestError, match=r"12 bytes came, one row of shape \[-1, 2\] is 8 bytes"):
        decode(bytes(12), b"0", X, DEPTH, BUDGET)
    with pytest.raises(BadRequestError, match="several free dimensions"):
        decode(bytes(12), b"0", signature(("x", "FP32", (-1, -1, -1))), DEPTH, BUDGET)
    with pytest.raises(BadRequestError, match="there are 'x', 'y'; send a header"):
        decode(bytes(12), b"0", signature(("x", "FP32", (-1, 2)), ("y", "FP32", (-1, 2))), DEPTH, BUDGET)


@given(npst.arrays(np.float32, (5,), elements=st.floats(width=32, allow_subnormal=True)))
@settings(max_examples=300)
def test_json_keeps_every_bit_of_a_float(array: np.ndarray) -> None:
    request = decode(*body_of({"x": array}, {"x"}), described({"x": array}), DEPTH, BUDGET)
    headers, answer = encode("m", "1", request, {"x": array}, batched=False, labels=None)
    assert_same({"x": array}, outputs_of(headers, answer))


def test_bare_tokens_are_read_and_numbers_out_of_range_are_not() -> None:
    values = parse_json(b"[NaN, Infinity, -Infinity, 1.5]", DEPTH)
    assert math.isnan(values[0])
    assert values[1:] == [math.inf, -math.inf, 1.5]
    for text in (b"[1e999]", b"[NaN, 1e999]", b"[NaN", b"[NaN,]", b"\xff", b"", b"[" * 100_000, b"[NaN," * 100_000):
        with pytest.raises(BadRequestError, match=r"not JSON|too deeply"):
            parse_json(text, DEPTH)


@given(JSON_VALUES, st.integers(0, 6))
def test_depth_is_counted_exactly(value: Any, limit: int) -> None:
    def depth(inner: Any) -> int:
        if not isinstance(inner, list | dict):
            return 0
        return 1 + max(map(depth, inner.values() if isinstance(inner, dict) else inner), default=0)

    assert deeper_than(json.dumps(value).encode("utf-8", "replace"), limit) == (depth(value) > limit)


@given(
    st.sampled_from([name for name in DTYPES if DTYPES[name].kind in "iuf"]),
    st.lists(st.integers(-(2**70), 2**70) | st.floats() | st.sampled_from([3.4028235677973362e38, 65519.99, 65520.0])),
)
def test_numbers_from_json_are_those_that_numpy_makes_of_them(datatype: str, values: list[float]) -> None:
    dtype = DTYPES[datatype]
    values = values if dtype.kind == "f" else [int(value) for value in values if math.isfinite(value)]
    try:
        with np.errstate(over="raise"):
            expected = np.array(values, dtype)
    except (OverflowError, FloatingPointError):
        with pytest.raises(BadRequestError, match=f"these: a number is beyond the range of {datatype}"):
            numbers("these", datatype, values)
        return
    found = numbers("these", datatype, values)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, expected)


def test_nesting_is_bounded() -> None:
    assert parse_json(b"[" * DEPTH + b"]" * DEPTH, DEPTH)
    with pytest.raises(BadRequestError, match="nested deeper than 32 levels"):
        parse_json(b"[" * (DEPTH + 1) + b"]" * (DEPTH + 1), DEPTH)
    assert parse_json(b'["' + b"[" * 100 + b'\\"[[["]', DEPTH), "brackets in a string do not nest"


def test_the_signature_checks_rows_and_fixed_dimensions() -> None:
    two = signature(("a", "FP32", (-1, 2)), ("b", "INT64", (-1, -1)))
    a, b = np.zeros((3, 2), np.float32), np.zeros((3, 7), np.int64)
    assert two.check({"a": a, "b": b}, 3) == 3
    assert two.lane({"a": a, "b": b}) == ((2,), (7,))
    for arrays, message in (
        ({"a": a}, "input 'b' is missing; expected 'a', 'b'"),
        ({"a": a, "b": b[:2]}, "'a' has 3, 'b' has 2; expected one number"),
        ({"a": a, "b": b[0]}, r"shape \[7\] came, \[-1, -1\] is expected"),
        ({"a": a[:, :1], "b": b}, r"shape \[3, 1\] came, \[-1, 2\] is expected"),
        ({"a": a, "b": b.astype(np.int32)}, "datatype INT32 came, INT64 is expected"),
    ):
        with pytest.raises(BadRequestError, match=message):
            two.check(arrays, 3)
    with pytest.raises(BadRequestError, match="3 rows came, at most 2 are taken"):
        two.check({"a": a, "b": b}, 2)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (b"[1,2.5,-3e7]", False),
        (b'{"inputs":[{"name":"uul","data":[null,1]}],"outputs":null}', False),
        (b"[true]", True),
        (b"true", True),
        (b"[1,false", True),
        (b"u" * 15 + b"l" * 15, False),
        (b"u" * 16 + b"[1,true]", True),
        (b"l" * 16 + b"[1,false]", True),
    ],
)
def test_a_text_without_booleans_is_found_by_its_letters(text: bytes, found: bool) -> None:
    assert may_hold_booleans(text) is found


@pytest.mark.parametrize("wrong", ["true", "false", "null", '"1"', "[1]", "{}", "1e999"])
@pytest.mark.parametrize("datatype", ["FP32", "INT32", "BF16", "UINT8"])
def test_a_value_of_a_wrong_type_is_told_also_where_no_type_is_looked_at(wrong: str, datatype: str) -> None:
    body = f'{{"inputs":[{{"name":"x","shape":[1,2],"datatype":"{datatype}","data":[1,{wrong}]}}]}}'
    with pytest.raises(BadRequestError) as raised:
        decode(body.encode(), None, signature(("x", datatype, (-1, 2))), DEPTH, BUDGET)
    assert str(raised.value)[:20] in ("input 'x': element 1", "the body is not JSON", "input 'x': BF16 has ")
