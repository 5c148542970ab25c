"""The Open Inference Protocol's infer bodies: bytes to numpy and back, JSON and binary tensors in any mix.

A body is a JSON header followed by the raw tensors in the order of the header; `Inference-Header-Content-Length` says
where the header ends. Binary tensors become views of the body: nothing is copied on the way in. Plain functions over
dictionaries: this is the hot path, and a schema library would cost more than the models that it feeds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any

import numpy as np

from fold.arrays import Arrays
from fold.artifact import TensorSpec
from service.budget import Body, Budget, Estimate
from service.errors import BadRequestError, UnreadableError, shown
from service.headers import JSON, LENGTH_HEADER, OCTETS, Headers
from service.protocol.classification import classify, classify_in_pieces
from service.protocol.datatypes import NAMES, WIRE, Selected
from service.protocol.header_cache import LARGEST_HEADER, AnswerHead, ParsedHeader, Shapes
from service.protocol.jsontext import json_array, may_hold_booleans, parse_object, render_json, written_json
from service.protocol.outputs import every_output, select
from service.protocol.parameters import Parameters, flag, parameters_of, schedule
from service.protocol.pieces import VALUES, Bulk, Capacity, Steps, Text, array_text, read_document, tensor_of
from service.protocol.signature import Signature
from service.protocol.strings import array_of_strings, count_strings, decode_text, keep_strings
from service.protocol.tensors import check_size, checked_shape, from_bytes, from_json, to_bytes, wire_dtype

EXPECTED = 'an object with "inputs"'


@dataclass(slots=True)
class InferRequest:
    inputs: Arrays
    outputs: Selected
    id: str | None = None
    priority: int = 0
    timeout: float | None = None
    """Seconds; None leaves it to the service."""
    header: ParsedHeader | None = None
    """In the cache; None where the header is not cached."""
    rows: int = -1
    """Of the inputs, once the signature has checked them; -1 before."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """What is wrong with an input's data, in the place of it. The exception would hold all that it has seen."""

    text: str


def decode(
    body: Body, length_header: bytes | None, signature: Signature, max_depth: int, budget: Budget
) -> InferRequest:
    """Read an infer body. Checks that it is consistent; the signature checks whether the model takes it. Raises
    `BadRequestError`, and `OutOfMemoryError` for strings."""
    start = len(body) if length_header is None else _header_length(length_header, len(body))
    if start == 0 and length_header is not None:
        return _decode_raw(body, signature, budget)
    if length_header is not None:
        cached = signature.header_cache.find(bytes(body[:start]))
        if cached is not None and len(body) == start + cached.size:
            arrays = _cached_inputs(cached, body, start, budget)
            return InferRequest(arrays, cached.outputs, None, cached.priority, cached.timeout, cached, cached.rows)
    text = body if start == len(body) else body[:start]
    document, booleans = parse_object(text, max_depth, EXPECTED), may_hold_booleans(text)
    request = _read_document(document, body, start, length_header, signature, budget, booleans=booleans)
    if signature.has_texts:
        count_strings(request.inputs, text, budget)
    return request


def json_bytes(body: Body, length_header: bytes | None) -> int:
    """The bytes of a body that are JSON. Raises `BadRequestError` for a false `length_header`."""
    return len(body) if length_header is None else _header_length(length_header, len(body))


def decode_in_pieces(
    body: Body, length_header: bytes | None, signature: Signature, max_depth: int, max_rows: int, budget: Budget
) -> Steps[tuple[InferRequest, dict[str, Any]]]:
    """As `decode`, for a body with much JSON; also the JSON's object. Raises `BadRequestError` also for a text that has
    more in it than `max_rows` rows can have, as soon as that is known, and `OutOfMemoryError`."""
    start = json_bytes(body, length_header)
    estimate = Estimate(budget)
    try:
        capacity = Capacity.of(signature, max_rows)
        document = yield from read_document(Text.of(body, start), capacity, estimate, EXPECTED)
        items = document.content.get("inputs")
        for item in items if type(items) is list else ():
            if type(item) is dict and type(item.get("data")) in (Bulk, list):
                yield from _read_data(item, signature, budget, estimate)
        yield from document.finish(estimate, max_depth)
        request = _read_document(document.content, body, start, length_header, signature, budget)
        keep_strings(request.inputs, estimate)
        return request, document.content
    finally:
        estimate.close()


def _read_data(item: dict[str, Any], signature: Signature, budget: Budget, estimate: Estimate) -> Steps[None]:
    """Put a tensor, or what is wrong with it, in the place of an input's data. Whatever else is wrong comes first."""
    name, datatype = item.get("name"), str(item.get("datatype"))
    try:
        if type(name) is not str or name not in signature.inputs:
            return
        shape, count = checked_shape(name, item.get("shape"), wire_dtype(name, datatype).itemsize)
    except BadRequestError:
        return
    try:
        item["data"] = yield from tensor_of(name, datatype, shape, count, item["data"], budget, estimate)
    except UnreadableError:
        raise
    except BadRequestError as error:
        item["data"] = Refusal(str(error))


def _read_document(
    document: dict[str, Any],
    body: Body,
    start: int,
    length_header: bytes | None,
    signature: Signature,
    budget: Budget,
    *,
    booleans: bool = True,
) -> InferRequest:
    """`start` are the bytes of the header, and `booleans` whether it may hold true or false."""
    request_id = document.get("id")
    if request_id is not None and type(request_id) is not str:
        raise BadRequestError(f"id is {shown(request_id)}; expected a string")
    items = document.get("inputs")
    if type(items) is not list:
        raise BadRequestError('"inputs" is missing or no list; expected a list of tensors')
    arrays = {}
    offset = start
    for item in items:
        name, array, offset = _read_input(item, body, offset, length_header, signature, budget, booleans)
        if name in arrays:
            raise BadRequestError(f"input {name!r} came twice; expected once")
        arrays[name] = array
    if offset != len(body):
        raise BadRequestError(
            f"{len(body) - offset} bytes are left over: header and tensors are {offset} bytes, the body {len(body)}"
        )
    parameters = parameters_of(document)
    outputs = select(_listed(document), signature, binary=flag(parameters, "binary_data_output", default=False))
    priority, timeout = schedule(parameters)
    if (
        length_header is None
        or request_id is not None
        or start > LARGEST_HEADER
        or any(i.get("data") is not None for i in items)
    ):
        return InferRequest(arrays, outputs, request_id, priority, timeout)
    tensors = tuple(
        (item["name"], item["datatype"], array.shape, array.size, item["parameters"]["binary_data_size"])
        for item, array in zip(items, arrays.values(), strict=True)
    )
    plain = all(binary and not k and signature.outputs[name].datatype != "BYTES" for name, binary, k in outputs)
    header = ParsedHeader(tensors, outputs, priority, timeout, len(body) - start, plain)
    signature.header_cache.add(bytes(body[:start]), header)
    return InferRequest(arrays, outputs, None, priority, timeout, header)


def _cached_inputs(header: ParsedHeader, body: Body, offset: int, budget: Budget) -> Arrays:
    """The inputs of a request with a cached header, whose body is as long as that says."""
    arrays = {}
    for name, datatype, shape, count, size in header.tensors:
        arrays[name] = from_bytes(name, datatype, shape, count, body, offset, size, budget)
        offset += size
    return arrays


def _read_input(
    item: Any,
    body: Body,
    offset: int,
    length_header: bytes | None,
    signature: Signature,
    budget: Budget,
    booleans: bool,
) -> tuple[str, np.ndarray, int]:
    """One input's name and array, and where in the body the next one's bytes begin."""
    name = item.get("name") if type(item) is dict else None
    if type(name) is not str:
        raise BadRequestError(f'an input is {shown(item)}; expected an object with "name", "shape" and "datatype"')
    if name not in signature.inputs:
        expected = ", ".join(repr(known) for known in signature.inputs)
        raise BadRequestError(f"no input is named {shown(name)}; expected {expected}")
    datatype = item.get("datatype")
    shape, count = checked_shape(name, item.get("shape"), wire_dtype(name, datatype).itemsize)
    said = parameters_of(item).get("binary_data_size")
    if said is None:
        if item.get("data") is None:
            raise BadRequestError(f"input {name!r} has neither data nor parameters.binary_data_size; expected one")
        data = item["data"]
        if type(data) is Refusal:
            raise BadRequestError(data.text)
        if type(data) is not np.ndarray:
            data = from_json(name, datatype, shape, count, data, booleans=booleans)
        return name, data, offset
    if item.get("data") is not None:
        raise BadRequestError(f"input {name!r} has data and parameters.binary_data_size; expected one of them")
    size = check_size(name, datatype, shape, count, said)
    if offset + size > len(body):
        raise BadRequestError(_missing(name, size, len(body) - offset, length_header))
    return name, from_bytes(name, datatype, shape, count, body, offset, size, budget), offset + size


def _listed(document: dict[str, Any]) -> list[tuple[Any, Parameters]]:
    """Names and parameters of the outputs that are asked for; `select` checks the names."""
    listed = document.get("outputs")
    if listed is None:
        return []
    if type(listed) is not list:
        raise BadRequestError(f'"outputs" is {shown(listed)}; expected a list of objects with "name"')
    for item in listed:
        if type(item) is not dict:
            raise BadRequestError(f'an output is {shown(item)}; expected an object with "name"')
    return [(item.get("name"), parameters_of(item)) for item in listed]


def encode_in_pieces(
    model: str, version: str, request: InferRequest, arrays: Arrays, *, batched: bool, labels: Sequence[str] | None
) -> Steps[tuple[Headers, bytes]]:
    """As `encode`, for much JSON or many classes."""
    arrays, texts = dict(arrays), {}
    for name, binary, classes in request.outputs:
        if classes:
            arrays[name] = yield from classify_in_pieces(arrays[name], classes, labels, batched=batched)
        if not binary:
            texts[name] = yield from array_text(arrays[name].reshape(-1))
    return encode(model, version, request, arrays, batched=batched, labels=labels, texts=texts)


def much_to_encode(request: InferRequest, arrays: Arrays) -> bool:
    """Whether encoding takes long: more than some thousand numbers as JSON or sorted."""
    return any((classes or not binary) and arrays[name].size > VALUES for name, binary, classes in request.outputs)


def encode(
    model: str,
    version: str,
    request: InferRequest,
    arrays: Arrays,
    *,
    batched: bool,
    labels: Sequence[str] | None,
    texts: dict[str, bytes] | None = None,
) -> tuple[Headers, bytes]:
    """The answer to `request` as headers and body. `labels` are those of a classification. `texts` are the JSON of
    outputs, where that and the classification were made before."""
    cached = cached_answer(request, arrays)
    if cached is not None:
        return cached[0].headers, cached[1]
    raw: list[Any] = []
    outputs = []
    for name, binary, classes in request.outputs:
        array = classify(arrays[name], classes, labels, batched=batched) if classes and texts is None else arrays[name]
        output: dict[str, Any] = {"name": name, "datatype": NAMES[array.dtype], "shape": array.shape}
        if binary:
            buffer = to_bytes(array)
            output["parameters"] = {"binary_data_size": len(buffer) if type(buffer) is bytes else buffer.nbytes}
            raw.append(buffer)
        else:
            output["data"] = json_array(array.reshape(-1)) if texts is None else written_json(texts[name])
        outputs.append(output)
    document: dict[str, Any] = {"model_name": model, "model_version": version, "outputs": outputs}
    if request.id is not None:
        document["id"] = request.id
    header = render_json(document)
    if not raw:
        return [JSON, (b"content-length", b"%d" % len(header))], header
    body = b"".join([header, *raw])
    headers = [OCTETS, (b"content-length", b"%d" % len(body)), (LENGTH_HEADER, b"%d" % len(header))]
    if request.header is not None and request.header.plain:
        request.header.add_answer(_shapes(request, arrays), AnswerHead(headers, header))
    return headers, body


def cached_answer(request: InferRequest, arrays: Arrays) -> tuple[AnswerHead, bytes] | None:
    """The head of the answer and its body, if the head is in the cache."""
    header = request.header
    head = None if header is None or not header.plain else header.answers.get(_shapes(request, arrays))
    if head is None:
        return None
    return head, b"".join([head.json, *[to_bytes(arrays[name]) for name, _, _ in request.outputs]])


def _shapes(request: InferRequest, arrays: Arrays) -> Shapes:
    return tuple([arrays[name].shape for name, _, _ in request.outputs])


def _header_length(value: bytes, body: int) -> int:
    length = _number(value)
    if length > body:
        raise BadRequestError(f"Inference-Header-Content-Length is {length}, but the whole body has {body} bytes")
    return length


@lru_cache(maxsize=1024)
def _number(value: bytes) -> int:
    text = value.strip()
    if not text.isdigit() or len(text) > 18:
        raise BadRequestError(f"Inference-Header-Content-Length is {shown(value.decode('latin-1'))}; expected a number")
    return int(text)


def _missing(name: str, size: int, left: int, length_header: bytes | None) -> str:
    if length_header is None:
        return f"input {name!r} has binary_data_size, but the header Inference-Header-Content-Length is missing"
    return f"input {name!r}: binary_data_size is {size}, but only {left} bytes of the body are left"


def _decode_raw(body: Body, signature: Signature, budget: Budget) -> InferRequest:
    """A body that is only the tensor: one input, one row, and at most one free dimension, which the size tells."""
    if len(signature.inputs) != 1:
        names = ", ".join(repr(name) for name in signature.inputs)
        raise BadRequestError(
            f"Inference-Header-Content-Length is 0, so the body is one tensor, but there are {names}; send a header"
        )
    spec = next(iter(signature.inputs.values()))
    shape = [1, *spec.shape[1:]] if signature.batched else list(spec.shape)
    if shape.count(-1) > 1:
        raise BadRequestError(f"input {spec.name!r} has several free dimensions, {list(spec.shape)}; send a header")
    if spec.datatype == "BYTES":
        array = _string_of(body, spec.name, shape, budget)
    else:
        array = _tensor_of(body, spec, shape, budget)
    return InferRequest({spec.name: array}, every_output(signature, binary=True))


def _tensor_of(body: Body, spec: TensorSpec, shape: list[int], budget: Budget) -> np.ndarray:
    itemsize = WIRE[spec.datatype].itemsize
    known = itemsize * prod(size for size in shape if size != -1)
    shape = [(len(body) // known if known else 0) if size == -1 else size for size in shape]
    count = prod(shape)
    if count * itemsize != len(body):
        raise BadRequestError(
            f"input {spec.name!r}: {len(body)} bytes came, one row of shape {list(spec.shape)} is {known} bytes"
        )
    return from_bytes(spec.name, spec.datatype, tuple(shape), count, body, 0, len(body), budget)


def _string_of(body: Body, name: str, shape: list[int], budget: Budget) -> np.ndarray:
    """The whole body as the only string, without a length in front, as in Triton."""
    shape = [1 if size == -1 else size for size in shape]
    if prod(shape) != 1:
        raise BadRequestError(f"input {name!r}: a row has {prod(shape)} strings and a body is one; send a header")
    text = decode_text(f"input {name!r}, BYTES: the body", body)
    return array_of_strings((text,), tuple(shape), 1, len(body), budget)
