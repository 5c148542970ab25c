"""Requests are read as protobuf reads them, whatever their form."""

from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from service.budget import Budget
from service.errors import BadRequestError
from service.grpc.messages import ModelInferRequest
from service.grpc.wire import MOST_FIELDS, PIECE, Tensors, read, read_small

FIELDS = {
    "bool_contents": ("?", st.booleans()),
    "int_contents": ("<i4", st.integers(-(2**31), 2**31 - 1)),
    "int64_contents": ("<i8", st.integers(-(2**63), 2**63 - 1)),
    "uint_contents": ("<u4", st.integers(0, 2**32 - 1)),
    "uint64_contents": ("<u8", st.integers(0, 2**64 - 1)),
    "fp32_contents": ("<f4", st.floats(width=32)),
    "fp64_contents": ("<f8", st.floats()),
    "bytes_contents": ("O", st.binary(max_size=300)),
}
BUDGET = Budget(1 << 30)


@st.composite
def requests(draw: st.DrawFn) -> Any:
    made = ModelInferRequest(model_name=draw(st.text(max_size=5)), id="7")
    for name in draw(st.lists(st.text(max_size=3), max_size=3)):
        tensor = made.inputs.add(name=name, datatype="FP32", shape=draw(st.lists(st.integers(-9, 2**40), max_size=3)))
        tensor.parameters["priority"].int64_param = draw(st.integers(-(2**63), 2**63 - 1))
        for field in draw(st.sets(st.sampled_from(sorted(FIELDS)), max_size=2)):
            getattr(tensor.contents, field).extend(draw(st.lists(FIELDS[field][1], max_size=20)))
    made.raw_input_contents.extend(draw(st.lists(st.binary(max_size=300), max_size=3)))
    made.outputs.add(name="y")
    return made


def check(content: bytes) -> None:
    """Compare with protobuf."""
    compare(content, *read(content))
    compare(content, *read_small(content))


def compare(content: bytes, request: Any, tensors: Tensors) -> None:
    whole = ModelInferRequest.FromString(content)
    assert [bytes(part) for part in tensors.raw] == list(whole.raw_input_contents)
    for tensor, contents in zip(whole.inputs, tensors.contents, strict=True):
        assert (contents is not None) == tensor.HasField("contents")
        for field, (dtype, _) in FIELDS.items():
            expected = list(getattr(tensor.contents, field))
            elements = (contents or {}).get(field)
            assert (0 if elements is None else elements.count()) == len(expected)
            if elements is not None and dtype == "O":
                assert [bytes(part) for part in elements.parts] == expected
            elif elements is not None:
                array = elements.array(np.dtype(dtype), len(expected), BUDGET)
                assert array.tobytes() == np.array(expected, dtype).tobytes()
        tensor.ClearField("contents")
    whole.ClearField("raw_input_contents")
    request.ClearField("raw_input_contents")  # which `read_small` leaves there
    assert request == whole


@given(requests())
def test_requests_are_read_as_protobuf_reads_them(made: Any) -> None:
    check(made.SerializeToString())


@given(requests(), st.data())
def test_so_are_damaged_ones(made: Any, data: st.DataObject) -> None:
    content = bytearray(made.SerializeToString())
    for _ in range(data.draw(st.integers(1, 3))):
        if content:
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        ModelInferRequest.FromString(bytes(content))
    except DecodeError:
        with pytest.raises(BadRequestError, match="is it of another protocol"):
            arrays(read(bytes(content))[1])
        return
    with suppress(BadRequestError):  # of fields in another wire type, which protobuf ignores
        check(bytes(content))


def arrays(tensors: Tensors) -> None:
    for contents in tensors.contents:
        for field, elements in (contents or {}).items():
            if FIELDS[field][0] != "O":
                elements.array(np.dtype(FIELDS[field][0]), elements.count(), BUDGET)


def test_numbers_one_by_one_and_contents_in_parts() -> None:
    """Old clients do not pack, and a field may come several times."""
    packed = ModelInferRequest()
    packed.inputs.add(name="x").contents.int64_contents.extend([1, -2, 300])
    one_by_one = b"\x18\x01" + b"\x18\xfe" + b"\xff" * 8 + b"\x01" + b"\x18\xac\x02"
    parts = [packed.inputs[0].contents.SerializeToString(), one_by_one, b"\x35\x00\x00\x80\x3f"]
    tensor = b"\x0a\x01x" + b"".join(b"\x2a" + bytes([len(part)]) + part for part in parts)
    content = b"\x2a" + bytes([len(tensor)]) + tensor
    check(content)
    _, tensors = read(content)
    (contents,) = tensors.contents
    assert contents is not None
    assert contents["int64_contents"].array(np.dtype("<i8"), 6, BUDGET).tolist() == [1, -2, 300, 1, -2, 300]
    assert contents["fp32_contents"].array(np.dtype("<f4"), 1, BUDGET).tolist() == [1.0]


def test_numbers_across_pieces() -> None:
    made = ModelInferRequest()
    made.inputs.add(name="x").contents.int64_contents.extend([2**40 + i for i in range(PIECE // 3)])
    check(made.SerializeToString())


def test_a_message_of_too_many_fields() -> None:
    made = ModelInferRequest()
    made.inputs.add(name="x").contents.bytes_contents.extend([b""] * MOST_FIELDS)
    with pytest.raises(BadRequestError, match="more than 262144 fields; send tensors in raw_input_contents, or packed"):
        read(made.SerializeToString())
