"""BYTES as they travel in binary: what their lengths say is held against what is there."""

import sys
from typing import Any

import numpy as np
import orjson
import pytest

from fold.artifact.manifest import TensorSpec
from service.budget import COUNTED, Budget
from service.errors import BadRequestError, OutOfMemoryError
from service.protocol.infer_body import decode
from service.protocol.signature import Signature

DEPTH = 32
BUDGET = Budget(1 << 40)


def taking(*shape: int) -> Signature:
    """The signature of a model that takes and gives strings."""
    tensors = [TensorSpec(name="s", datatype="BYTES", shape=shape)]
    return Signature(tensors, tensors, batched=True)


def strings(content: bytes, size: Any = None) -> np.ndarray:
    """Two strings as they were sent."""
    item = {"name": "s", "shape": [2], "datatype": "BYTES"}
    item["parameters"] = {"binary_data_size": len(content) if size is None else size}
    header = orjson.dumps({"inputs": [item]})
    request = decode(header + content, str(len(header)).encode(), taking(-1), DEPTH, BUDGET)
    return request.inputs["s"]


def test_strings_come_behind_their_lengths() -> None:
    found = strings(b"\2\0\0\0\xc3\xa4\0\0\0\0")
    assert found.dtype == np.object_
    assert found.tolist() == ["ä", ""]


@pytest.mark.parametrize(
    ("content", "size", "message"),
    [
        (b"\1\0\0\0a\1\0\0", None, "the tensor's 8 bytes end before string 1 of 2"),
        (b"\1\0\0", None, "3 bytes came; 2 strings of shape [2] take at least 8"),
        (b"\0\0\0\0\xff\xff\xff\xffab", None, "string 1 has 4294967295 bytes, only 2 of 10 are left"),
        (b"\0\0\0\0\0\0\0\0abc", None, "3 bytes are left over behind 2 strings, of 11 in all"),
        (b"\0\0\0\0\1\0\0\0\xff", None, "string 1 is not UTF-8"),
        (b"\0\0\0\0\0\0\0\0", 9, "binary_data_size is 9, but only 8 bytes of the body are left"),
        (b"\0\0\0\0\0\0\0\0", -1, "binary_data_size is -1; expected a whole number"),
        (b"\0\0\0\0\0\0\0\0", "8", "binary_data_size is '8'; expected a whole number"),
    ],
)
def test_lengths_of_strings_that_lie(content: bytes, size: Any, message: str) -> None:
    with pytest.raises(BadRequestError) as raised:
        strings(content, size)
    assert message in str(raised.value)


def test_a_body_may_be_one_string() -> None:
    """As in Triton: without a length in front."""
    one = taking(-1, 1)
    assert decode("wörter".encode(), b"0", one, DEPTH, BUDGET).inputs["s"].tolist() == [["wörter"]]
    with pytest.raises(BadRequestError, match="a row has 2 strings and a body is one"):
        decode(b"a", b"0", taking(-1, 2), DEPTH, BUDGET)
    with pytest.raises(BadRequestError, match="the body is not UTF-8"):
        decode(b"\xff", b"0", one, DEPTH, BUDGET)


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
@pytest.mark.parametrize("text", ["", "ab", "ж" * 90, "x" * 90 + "\U0001f600"], ids=["", "ab", "two", "four"])
def test_strings_count_as_they_are_in_memory_until_their_array_is_gone(binary: bool, text: str) -> None:
    count, budget = 3000, Budget(1 << 40)
    item: dict[str, Any] = {"name": "s", "shape": [count], "datatype": "BYTES"}
    content = (len(text.encode()).to_bytes(4, "little") + text.encode()) * count if binary else b""
    item |= {"parameters": {"binary_data_size": len(content)}} if binary else {"data": [text] * count}
    header = orjson.dumps({"inputs": [item]})
    request = decode(header + content, str(len(header)).encode(), taking(-1), DEPTH, budget)
    real = count * (sys.getsizeof(str(text.encode(), "utf-8")) + 16)
    assert 0.95 * real < budget.used < 1.5 * real + COUNTED
    row = request.inputs["s"][:1]
    del request
    assert budget.used > 0.95 * real, "a view of the array is left"
    del row
    assert budget.used == 0


def test_strings_that_do_not_fit_leave_nothing_counted() -> None:
    content = b"\2\0\0\0ab" * 2 + b"\0\0\0\0" * 3000
    for number in range(COUNTED, 300_000, 10_000):
        budget = Budget(number)
        header = orjson.dumps({"inputs": [{"name": "s", "shape": [3002], "datatype": "BYTES",
                                           "parameters": {"binary_data_size": len(content)}}]})  # fmt: skip
        try:
            decode(header + content, str(len(header)).encode(), taking(-1), DEPTH, budget)
        except OutOfMemoryError:
            assert number < 250_000
        assert budget.used == 0
