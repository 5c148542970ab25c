"""ModelInferRequest to numpy, and numpy to ModelInferResponse, with the same checks and messages as over HTTP.

Inputs are raw bytes, of which the arrays are views, or typed contents. Outputs are always raw bytes, which is what
clients read.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from fold.arrays import Arrays
from fold.artifact import DTYPES
from service.errors import BadRequestError, shown
from service.grpc.messages import ModelInferResponse, parameters
from service.protocol import (
    NAMES,
    NOT_IN_JSON,
    InferRequest,
    Parameters,
    Signature,
    checked_shape,
    classify,
    decode_text,
    from_bytes,
    parameters_of,
    schedule,
    select,
    to_bytes,
    wire_dtype,
)

_CONTENTS: dict[str, tuple[str, np.dtype[Any]]] = {
    "BOOL": ("bool_contents", DTYPES["BOOL"]),
    **dict.fromkeys(("INT8", "INT16", "INT32"), ("int_contents", DTYPES["INT32"])),
    "INT64": ("int64_contents", DTYPES["INT64"]),
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), ("uint_contents", DTYPES["UINT32"])),
    "UINT64": ("uint64_contents", DTYPES["UINT64"]),
    "FP32": ("fp32_contents", DTYPES["FP32"]),
    "FP64": ("fp64_contents", DTYPES["FP64"]),
    "BYTES": ("bytes_contents", DTYPES["BYTES"]),
}
"""The field that holds a datatype's elements, and the dtype that they have there."""


def decode(request: Any, signature: Signature) -> InferRequest:
    """Read a ModelInferRequest. Raises `BadRequestError` if it is malformed; the signature then checks the inputs."""
    for tensor in (*request.inputs, *request.outputs):
        _checked(tensor.parameters)  # first, as a tensor in shared memory has no contents here
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise BadRequestError(
            f"raw_input_contents has {len(raw)} tensors for {len(request.inputs)} inputs; expected one of each, or none"
        )
    arrays: Arrays = {}
    for index, tensor in enumerate(request.inputs):
        name = tensor.name
        if name not in signature.inputs:
            expected = ", ".join(repr(known) for known in signature.inputs)
            raise BadRequestError(f"no input is named {shown(name)}; expected {expected}")
        if name in arrays:
            raise BadRequestError(f"input {name!r} came twice; expected once")
        arrays[name] = _read(tensor, raw[index] if raw else None)
    outputs = select([(output.name, _of_output(output)) for output in request.outputs], signature, binary=True)
    priority, timeout = schedule(_checked(request.parameters))
    return InferRequest(arrays, outputs, request.id, priority, timeout)


def encode(
    model: str, version: str, request: InferRequest, arrays: Arrays, *, batched: bool, labels: Sequence[str] | None
) -> Any:
    """The ModelInferResponse. `labels` are the model's class labels, for outputs with `classification`."""
    answer = ModelInferResponse(model_name=model, model_version=version, id=request.id or "")
    for name, _, classes in request.outputs:
        array = classify(arrays[name], classes, labels, batched=batched) if classes else arrays[name]
        answer.outputs.add(name=name, datatype=NAMES[array.dtype], shape=array.shape)
        content = to_bytes(array)
        answer.raw_output_contents.append(content if type(content) is bytes else content.tobytes())
    return answer


def _checked(held: Any) -> Parameters:
    return parameters_of({"parameters": parameters(held)}) if held else {}


def _of_output(output: Any) -> Parameters:
    """The output's parameters without `binary_data`, which has no meaning here: outputs have one form."""
    found = _checked(output.parameters)
    return {key: value for key, value in found.items() if key != "binary_data"}


def _read(tensor: Any, raw: bytes | None) -> np.ndarray:
    name, datatype = tensor.name, tensor.datatype
    itemsize = wire_dtype(name, datatype).itemsize
    shape, count = checked_shape(name, list(tensor.shape), itemsize)
    if raw is None:
        return _from_contents(name, datatype, shape, count, tensor.contents)
    if tensor.HasField("contents"):
        raise BadRequestError(f"input {name!r} has contents, and raw_input_contents came, too; expected one of them")
    if datatype != "BYTES" and len(raw) != count * itemsize:
        needed = count * itemsize
        raise BadRequestError(
            f"input {name!r}: {len(raw)} raw bytes came, shape {list(shape)} of {datatype} is {needed} bytes"
        )
    return from_bytes(name, datatype, shape, count, raw, 0, len(raw))


def _from_contents(name: str, datatype: str, shape: tuple[int, ...], count: int, contents: Any) -> np.ndarray:
    if datatype in NOT_IN_JSON:
        raise BadRequestError(f"input {name!r}: {datatype} has no typed contents; send it in raw_input_contents")
    field, carried = _CONTENTS[datatype]
    for other, _ in contents.ListFields():
        if other.name != field:
            raise BadRequestError(f"input {name!r}: {other.name} came; {datatype} is expected in {field}")
    values = getattr(contents, field)
    if len(values) != count:
        raise BadRequestError(f"input {name!r}: {field} has {len(values)} elements, shape {list(shape)} needs {count}")
    if datatype == "BYTES":
        texts = [decode_text(f"input {name!r}, BYTES: string {index}", text) for index, text in enumerate(values)]
        return np.array(texts, np.object_).reshape(shape)
    array = np.fromiter(values, carried, count)
    dtype = DTYPES[datatype]
    if dtype != carried:
        converted = array.astype(dtype)
        if (converted != array).any():
            raise BadRequestError(f"input {name!r}: a number is beyond the range of {datatype}")
        array = converted
    return array.reshape(shape)
