"""The Open Inference Protocol's infer bodies: bytes to numpy and back, JSON and binary tensors mixed at will.

A body is a JSON header followed by the raw tensors in the order of the header; `Inference-Header-Content-Length` says
where the header ends. Binary tensors become views of the body: nothing is copied on the way in. Plain functions over
dictionaries: this is the hot path, and a schema library would cost more than the models that it feeds.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from service.errors import BadRequestError, Headers, shown
from service.jsontext import json_array, parse_object, render_json
from service.signature import NAMES, Arrays, Signature
from service.tensors import WIRE, checked_shape, from_bytes, from_json, wire_dtype

LENGTH_HEADER = b"inference-header-content-length"
JSON = (b"content-type", b"application/json")
OCTETS = (b"content-type", b"application/octet-stream")

Selected = tuple[tuple[str, bool], ...]
"""Names of the outputs to send, and whether in binary."""


@dataclass(slots=True)
class InferRequest:
    inputs: Arrays
    outputs: Selected
    id: str | None = None


def decode(body: bytes, length_header: bytes | None, signature: Signature, max_depth: int) -> InferRequest:
    """Read an infer body. What it says of itself is checked here; whether the model takes it, by the signature."""
    start = len(body) if length_header is None else _header_length(length_header, len(body))
    if start == 0 and length_header is not None:
        return _decode_raw(body, signature)
    document = parse_object(body if start == len(body) else body[:start], max_depth, 'an object with "inputs"')
    request_id = document.get("id")
    if request_id is not None and type(request_id) is not str:
        raise BadRequestError(f"id is {shown(request_id)}; expected a string")
    items = document.get("inputs")
    if type(items) is not list:
        raise BadRequestError('"inputs" is missing or no list; expected a list of tensors')
    arrays: Arrays = {}
    offset = start
    for item in items:
        name, array, offset = _read_input(item, body, offset, length_header, signature)
        if name in arrays:
            raise BadRequestError(f"input {name!r} came twice; expected once")
        arrays[name] = array
    if offset != len(body):
        raise BadRequestError(
            f"{len(body) - offset} bytes are left over: header and tensors are {offset} bytes, the body {len(body)}"
        )
    return InferRequest(arrays, _select(document, signature), request_id)


def _read_input(
    item: Any, body: bytes, offset: int, length_header: bytes | None, signature: Signature
) -> tuple[str, np.ndarray, int]:
    """One input's name and array, and where in the body the next one's bytes begin."""
    name = item.get("name") if type(item) is dict else None
    if type(name) is not str:
        raise BadRequestError(f'an input is {shown(item)}; expected an object with "name", "shape" and "datatype"')
    if name not in signature.inputs:
        expected = ", ".join(repr(known) for known in signature.inputs)
        raise BadRequestError(f"no input is named {shown(name)}; expected {expected}")
    datatype = item.get("datatype")
    dtype = wire_dtype(name, datatype)
    shape, count = checked_shape(name, item.get("shape"), dtype.itemsize)
    size = _parameters(item).get("binary_data_size")
    if size is None:
        if "data" not in item:
            raise BadRequestError(f"input {name!r} has neither data nor parameters.binary_data_size; expected one")
        return name, from_json(name, datatype, shape, count, item["data"]), offset
    if "data" in item:
        raise BadRequestError(f"input {name!r} has data and parameters.binary_data_size; expected one of them")
    if type(size) is not int or size != count * dtype.itemsize:
        raise BadRequestError(
            f"input {name!r}: binary_data_size is {shown(size)}, "
            f"shape {list(shape)} of {datatype} is {count * dtype.itemsize} bytes"
        )
    if offset + size > len(body):
        raise BadRequestError(_missing(name, size, len(body) - offset, length_header))
    return name, from_bytes(name, dtype, shape, count, body, offset), offset + size


def encode(model: str, version: str, request: InferRequest, arrays: Arrays) -> tuple[Headers, bytes]:
    """The answer to `request` as headers and body."""
    raw: list[np.ndarray] = []
    outputs = []
    for name, binary in request.outputs:
        array = arrays[name]
        output: dict[str, Any] = {"name": name, "datatype": NAMES[array.dtype], "shape": array.shape}
        if binary:
            output["parameters"] = {"binary_data_size": array.nbytes}
            raw.append(np.ascontiguousarray(array, WIRE[NAMES[array.dtype]]))
        else:
            output["data"] = json_array(array.reshape(-1))
        outputs.append(output)
    document: dict[str, Any] = {"model_name": model, "model_version": version, "outputs": outputs}
    if request.id is not None:
        document["id"] = request.id
    header = render_json(document)
    if not raw:
        return [JSON, (b"content-length", b"%d" % len(header))], header
    body = b"".join([header, *raw])  # type: ignore[list-item]  # an array is a buffer, which typeshed does not know
    return [OCTETS, (b"content-length", b"%d" % len(body)), (LENGTH_HEADER, b"%d" % len(header))], body


def _header_length(value: bytes, body: int) -> int:
    text = value.strip()
    if not text.isdigit() or len(text) > 18:
        raise BadRequestError(f"Inference-Header-Content-Length is {shown(value.decode('latin-1'))}; expected a number")
    length = int(text)
    if length > body:
        raise BadRequestError(f"Inference-Header-Content-Length is {length}, but the whole body has {body} bytes")
    return length


def _missing(name: str, size: int, left: int, length_header: bytes | None) -> str:
    if length_header is None:
        return f"input {name!r} has binary_data_size, but the header Inference-Header-Content-Length is missing"
    return f"input {name!r}: binary_data_size is {size}, but only {left} bytes of the body are left"


def _decode_raw(body: bytes, signature: Signature) -> InferRequest:
    """A body that is nothing but the tensor: one input, one row, and at most one free dimension to find out."""
    if len(signature.inputs) != 1:
        names = ", ".join(repr(name) for name in signature.inputs)
        raise BadRequestError(
            f"Inference-Header-Content-Length is 0, so the body is one tensor, but there are {names}; send a header"
        )
    spec = next(iter(signature.inputs.values()))
    dtype = WIRE[spec.datatype]
    shape = [1, *spec.shape[1:]] if signature.batched else list(spec.shape)
    if shape.count(-1) > 1:
        raise BadRequestError(f"input {spec.name!r} has several free dimensions, {list(spec.shape)}; send a header")
    known = dtype.itemsize
    for size in shape:
        known *= 1 if size == -1 else size
    if -1 in shape:
        shape[shape.index(-1)] = len(body) // known if known else 0
    needed = dtype.itemsize
    for size in shape:
        needed *= size
    if needed != len(body):
        raise BadRequestError(
            f"input {spec.name!r}: {len(body)} bytes came, one row of shape {list(spec.shape)} is {known} bytes"
        )
    array = from_bytes(spec.name, dtype, tuple(shape), needed // dtype.itemsize, body, 0)
    return InferRequest({spec.name: array}, tuple((name, True) for name in signature.outputs))


def _parameters(holder: dict[str, Any]) -> dict[str, Any]:
    parameters = holder.get("parameters")
    if parameters is None:
        return {}
    if type(parameters) is not dict:
        raise BadRequestError(f"parameters is {shown(parameters)}; expected an object")
    if "shared_memory_region" in parameters:
        raise BadRequestError("shared memory is not offered; send the tensor in the body")
    return parameters


def _select(document: dict[str, Any], signature: Signature) -> Selected:
    default = _flag(_parameters(document), "binary_data_output", default=False)
    listed = document.get("outputs")
    if listed is None or listed == []:
        selected = dict.fromkeys(signature.outputs, default)
    elif type(listed) is list:
        selected = {}
        for item in listed:
            name = item.get("name") if type(item) is dict else None
            if type(name) is not str or name not in signature.outputs:
                known = ", ".join(repr(output) for output in signature.outputs)
                raise BadRequestError(f"no output is named {shown(name)}; expected {known}")
            if name in selected:
                raise BadRequestError(f"output {name!r} was asked for twice; expected once")
            parameters = _parameters(item)
            if parameters.get("classification"):
                raise BadRequestError(f"output {name!r}: classification is not offered; ask for the tensor")
            selected[name] = _flag(parameters, "binary_data", default=default)
    else:
        raise BadRequestError(f'"outputs" is {shown(listed)}; expected a list of objects with "name"')
    for name, binary in selected.items():
        if not binary and signature.outputs[name].datatype == "FP16":
            raise BadRequestError(f"output {name!r}: FP16 has no form in JSON; ask for it with parameters.binary_data")
    return tuple(selected.items())


def _flag(parameters: dict[str, Any], key: str, *, default: bool) -> bool:
    value = parameters.get(key, default)
    if type(value) is not bool:
        raise BadRequestError(f"parameters.{key} is {shown(value)}; expected true or false")
    return value
