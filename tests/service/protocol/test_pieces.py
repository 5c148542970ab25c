"""Large JSON is read in pieces: to the same tensors, and with the same errors, as if it were parsed at once."""

import json
import random
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fold.artifact import TensorSpec
from service.budget import Budget, Estimate
from service.errors import BadRequestError, ServiceError
from service.protocol import (
    EXPECTED,
    Capacity,
    Signature,
    Text,
    array_of_rows,
    array_text,
    columns_in_pieces,
    columns_of,
    decode,
    decode_in_pieces,
    is_long,
    json_array,
    parse_object,
    read_document,
    render_json,
    rows_in_pieces,
)
from service.protocol.pieces import document, tree

DEPTH, ROWS = 8, 1024
T = TypeVar("T")


def signature(*inputs: tuple[str, str, tuple[int, ...]]) -> Signature:
    specs = [TensorSpec(name=name, datatype=datatype, shape=shape) for name, datatype, shape in inputs]
    return Signature(specs, [TensorSpec(name="y", datatype="FP32", shape=(-1, 2))], batched=True)


SIGNATURES = [
    signature(("x", "FP32", (-1, 3))),
    signature(("x", "FP64", (-1, 2, 2))),
    signature(("x", "INT64", (-1, -1)), ("t", "BYTES", (-1, 2))),
    signature(("x", "FP32", (-1, 1, 3, 2)), ("y", "UINT8", (-1, 1))),
    signature(("x", "BOOL", (-1, 2))),
    signature(("x", "UINT64", (-1,))),
    signature(("x", "FP32", (-1, -1, -1))),
]
NUMBERS = ["0", "1", "-2.5", "1e3", "3.25", "17", "-0.0", "255", "1.5e-8", "9007199254740993"]
OTHERS = ["300", "-1", "1e39", "true", "null", '"s"', "18446744073709551616", "01", "1.", "", "[1]", "{}"]
TEXTS = ["a", "é", 'x"y', "\\", "[1,2],", "{", "\u2028"]


def finished(steps: Generator[None, None, T]) -> T:
    while True:
        try:
            next(steps)
        except StopIteration as done:
            result: T = done.value
            return result


def outcome(of: Callable[[], dict[str, np.ndarray]]) -> Any:
    try:
        arrays = of()
    except ServiceError as error:
        return str(error)
    return {name: (array.dtype, array.shape, array.tolist()) for name, array in arrays.items()}


class Author:
    """Writes bodies, some of them wrong."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.signature = self.random.choice(SIGNATURES)

    def space(self) -> str:
        return self.random.choice(["", "", "", " ", "\n"])

    def array(self, shape: list[int], datatype: str) -> str:
        pick, space = self.random, self.space()
        if not shape:
            if datatype == "BYTES":
                return json.dumps(pick.choice(TEXTS), ensure_ascii=pick.random() < 0.5)
            if datatype == "BOOL" and pick.random() < 0.99:
                return pick.choice(["true", "false"])
            return pick.choice(OTHERS if pick.random() < 0.003 else NUMBERS[:1] if datatype == "UINT8" else NUMBERS)
        count = max(shape[0] + (pick.choice([-1, 1]) if pick.random() < 0.002 else 0), 0)
        return f"[{space}{f',{space}'.join(self.array(shape[1:], datatype) for _ in range(count))}{space}]"

    def shape(self, spec: TensorSpec, rows: int) -> list[int]:
        return [rows, *(self.random.choice([1, 2, 3]) if size == -1 else size for size in spec.shape[1:])]

    def infer(self) -> str:
        items, rows = [], self.random.choice([1, 3, 20])
        for name, spec in self.signature.inputs.items():
            shape = self.shape(spec, rows)
            form = shape if self.random.random() < 0.5 else [int(np.prod(shape))]
            members = [
                f'"name":"{name}"',
                f'"shape":{shape}',
                f'"datatype":"{spec.datatype}"',
                f'"data":{self.array(form, spec.datatype)}',
            ]
            self.random.shuffle(members)
            items.append("{" + ",".join(members) + "}")
        return '{"id":"q","inputs":[' + ",".join(items) + "]}"

    def predict(self) -> str:
        specs, rows = self.signature.inputs, self.random.choice([1, 3, 20])
        shapes = {name: self.shape(spec, rows) for name, spec in specs.items()}
        if len(specs) == 1 and self.random.random() < 0.8:
            ((name, spec),) = specs.items()
            shape = shapes[name]
            form = [rows, int(np.prod(shape[1:]))] if len(shape) > 2 and self.random.random() < 0.3 else shape
            return f'{{"instances":{self.array(form, spec.datatype)}}}'
        instances = []
        for _ in range(rows):
            parts = [f'"{name}":{self.array(shapes[name][1:], spec.datatype)}' for name, spec in specs.items()]
            instances.append("{" + ",".join(parts) + "}")
        return f'{{"instances":[{",".join(instances)}],"more":{list(range(40))}}}'

    def damaged(self, text: str) -> bytes:
        """In a third of all cases a byte is taken out or put in."""
        content = bytearray(text.encode())
        place = self.random.randrange(len(content))
        chance = self.random.random()
        if chance < 0.15:
            del content[place]
        elif chance < 0.3:
            content.insert(place, self.random.choice(b'[]{},:"\\ 1\xff'))
        elif chance < 0.33:
            del content[place:]
        return bytes(content)


@contextmanager
def pieces_of(size: int) -> Iterator[None]:
    """Small pieces, so that small texts have many."""
    small = classmethod(lambda cls, body, end, given=0: cls(memoryview(body)[:end], 0, end, given or size))
    with mock.patch.object(document, "LARGE", 80), mock.patch.object(Text, "of", small):
        yield


def predicted(body: bytes, of: Signature, budget: Budget) -> dict[str, np.ndarray]:
    estimate = Estimate(budget)
    try:
        text = finished(read_document(Text.of(body, len(body)), Capacity.of(of, ROWS), estimate, EXPECTED))
        try:
            columns = finished(columns_in_pieces(text.content, of, ROWS, budget, estimate))
        except BadRequestError:
            finished(text.finish(estimate, DEPTH))
            raise
        finished(text.finish(estimate, DEPTH))
        return {name: finished(rows_in_pieces(name, values, of)) for name, values in columns.items()}
    finally:
        estimate.close()


@pytest.mark.parametrize(
    ("body", "pieces"),
    [
        (b"1," * (1 << 17), False),
        (b"1," * (1 << 17) + b"1", True),
        (b"[]," * (1 << 13) + b"1," * (1 << 16), False),
        (b"[]," * (1 << 13) + b"{}," + b"1," * (1 << 16), True),
        (b"[]," * 21_845 + b" ", False),
        (b"[]," * 21_845 + b"  ", True),
    ],
    ids=["256 KiB", "more", "8192 lists", "an object more", "64 KiB of lists", "more of them"],
)
def test_json_is_read_in_pieces_where_it_is_long_or_has_many_lists(body: bytes, pieces: bool) -> None:
    assert is_long(body + b"[[[[", len(body)) is pieces, "what follows the JSON does not count"


@given(seed=st.integers(0, 1 << 40), size=st.sampled_from([7, 16, 33, 64, 200, 1 << 16]))
@settings(max_examples=400, deadline=None)
def test_what_comes_of_a_body_does_not_depend_on_pieces(seed: int, size: int) -> None:
    author, budget = Author(seed), Budget(1 << 40)
    of = author.signature
    body = author.damaged(author.infer())
    at_once = outcome(lambda: decode(body, None, of, DEPTH, budget).inputs)
    with pieces_of(size):
        read = outcome(lambda: finished(decode_in_pieces(body, None, of, DEPTH, ROWS, budget))[0].inputs)
    assert read == at_once
    body = author.damaged(author.predict())
    columns = lambda: columns_of(parse_object(body, DEPTH, EXPECTED), of, ROWS)  # noqa: E731
    at_once = outcome(lambda: {name: array_of_rows(name, values, of) for name, values in columns().items()})
    with pieces_of(size):
        read = outcome(lambda: predicted(body, of, budget))
    assert read == at_once
    assert budget.used == 0, "all of it is given back"


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ('{"instances":[' + "[]," * 300_000 + "[]]}", "lists"),
        ('{"instances":[' + '"a",' * 300_000 + "1]}", "strings"),
        ('{"instances":[' + "{}," * 300_000 + "{}]}", "objects"),
        ('{"instances":[1],"more":[' + "1," * 300_000 + "1]}", "values"),
    ],
)
def test_what_no_request_can_have_is_refused_before_it_is_parsed(
    text: str, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(document, "read_tree", None)
    with pytest.raises(BadRequestError, match=f"the JSON has more than [0-9]+ {what}"):
        predicted(text.encode(), signature(("x", "FP32", (-1, 3))), Budget(1 << 40))


@pytest.mark.parametrize("shape", [(-1, 100, 100), (-1, -1)])
@pytest.mark.parametrize("row", [b"1", b"[]", b"[[1,2],[3]]"])
def test_too_many_rows_of_another_form_are_counted_and_no_objects_are_made(row: bytes, shape: tuple[int, ...]) -> None:
    text = b'{"instances":[' + (row + b",") * 99_999 + row + b"]}"
    with pytest.raises(BadRequestError, match=r"^(100000 instances came, at most 1024 are taken$|the JSON has more)"):
        predicted(text, signature(("x", "FP32", shape)), Budget(1 << 18))


@pytest.mark.parametrize("rest", [b"true", b"[1.5]", b"[1.5,2],3"], ids=["a value", "a list", "a level less"])
def test_of_a_large_array_that_does_not_fit_no_objects_are_made(rest: bytes) -> None:
    text = b'{"instances":[' + (b"[" + b"1.5," * 199 + b"2.5],") * 1000 + rest + b"]}"
    reason = "input 'x': behind its first [0-9]+ numbers the data is nested in another way, or has other values than FP"
    for budget in (Budget(1 << 40), Budget(1 << 20)):
        with pytest.raises(BadRequestError, match=reason):
            predicted(text, signature(("x", "FP32", (-1, -1))), budget)
    with pytest.raises(BadRequestError, match="is not JSON: "):
        predicted(text[:-2] + b",]}", signature(("x", "FP32", (-1, -1))), Budget(1 << 40))


@pytest.mark.parametrize("element", [b"[]", b'{"a":1}', b'""'])
def test_objects_of_a_text_are_bounded(element: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree, "MOST_CONTAINERS", 30_000)
    monkeypatch.setattr(tree, "MOST_VALUES", 60_000)
    monkeypatch.setattr(Capacity, "check", lambda *counts: None)
    for count, refused in ((25_000, False), (70_000, True)):
        text = b'{"more":[' + (element + b",") * count + b'"a"],"instances":[[1,2,3]]}'
        if refused:
            with pytest.raises(
                BadRequestError, match="the JSON has more than 30000 lists and objects, or more than 60"
            ):
                predicted(text, SIGNATURES[0], Budget(1 << 40))
        else:
            assert predicted(text, SIGNATURES[0], Budget(1 << 40))["x"].tolist() == [[1, 2, 3]]


def test_an_array_of_numbers_and_strings_is_read_in_pieces_as_at_once() -> None:
    """Up to its first string it looks as one of numbers."""
    for more in (b"[1,2]," * 2000 + b'"a"', b"1," * 5000 + b'"a",' + b"2," * 5000 + b"3", b'[1,"a"],' + b"[2]," * 2000):
        members = b'"instances":[[1,2,3]],"more":[[' + more + b"]"
        for text in (b"{" + members + b"]}", b"{" + members + b"}"):
            at_once = outcome(
                lambda text=text: {
                    "x": array_of_rows("x", parse_object(text, DEPTH, EXPECTED)["instances"], SIGNATURES[0])
                }
            )
            assert outcome(lambda text=text: predicted(text, SIGNATURES[0], Budget(1 << 40))) == at_once


@pytest.mark.parametrize("rows", [b"[" + b"1.5," * 90_000 + b"1.5]", b"1.5," * 500 + b"2.5"])
def test_numbers_where_objects_are_expected_are_told_as_at_once(rows: bytes) -> None:
    """A model with several inputs takes an object for each instance."""
    several = signature(("a", "FP32", (-1, 300, 300)), ("b", "FP32", (-1, 300, 300)))
    text = b'{"instances":[' + rows + b"]}"
    at_once = outcome(lambda: columns_of(parse_object(text, DEPTH, EXPECTED), several, ROWS))
    assert "instance 0 is " in at_once
    with pieces_of(1 << 12):
        assert outcome(lambda: predicted(text, several, Budget(1 << 40))) == at_once


@pytest.mark.parametrize("depth", [DEPTH, DEPTH + 1])
@pytest.mark.parametrize("kind", [b"[]", b"{}"])
def test_depth_is_that_of_the_whole_text(depth: int, kind: bytes) -> None:
    numbers = b"[1,2,3]," * 10_000 + b"[1,2,3]"
    opening, closing = (b"[", b"]") if kind == b"[]" else (b'{"a":', b"}")
    members = (
        b'"text":"' + b"[{" * 100 + b'\\"["',
        b'"instances":[[1,2,3]]',
        b'"numbers":[' + numbers + b"]",
        b'"deep":' + opening * (depth - 1) + b"1" + closing * (depth - 1),
    )
    text = b"{" + b",".join(members) + b"}"
    at_once = outcome(lambda: {"x": np.array(parse_object(text, DEPTH, EXPECTED)["instances"], np.float32)})
    assert outcome(lambda: predicted(text, SIGNATURES[0], Budget(1 << 40))) == at_once
    assert ("nested deeper than" in str(at_once)) is (depth > DEPTH)


def test_tensors_from_json_count_in_the_budget_while_they_live() -> None:
    budget = Budget(1 << 20)
    x = np.random.default_rng(0).normal(size=(500, 3)).astype(np.float32)
    arrays = predicted(json.dumps({"instances": x.tolist()}).encode(), SIGNATURES[0], budget)
    assert np.array_equal(arrays["x"], x)
    assert budget.used == x.nbytes
    del arrays
    assert budget.used == 0


@pytest.mark.parametrize("shape", [(70_000,), (3, 30_000), (40_000, 3), (2, 3, 10_000), (5, 0), ()])
@pytest.mark.parametrize("dtype", ["f4", "f8", "i8", "?"])
def test_arrays_are_written_in_pieces_as_at_once(shape: tuple[int, ...], dtype: str) -> None:
    random_ = np.random.default_rng(1)
    array = (random_.normal(size=shape) * 10).astype(dtype)
    if array.size and dtype == "f4":
        array.flat[0] = np.nan
    read, expected = (
        np.array(json.loads(text)).astype(dtype)
        for text in (finished(array_text(array)), render_json(json_array(array)))
    )
    assert read.shape == expected.shape == array.shape
    assert np.array_equal(read, array, equal_nan=dtype != "?")
