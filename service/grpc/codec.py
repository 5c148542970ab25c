"""ModelInferRequest to numpy, and numpy to ModelInferResponse, with the same checks and messages as over HTTP.

Inputs are raw bytes or typed contents, and the arrays are views of the message where that can be. Outputs are always
raw bytes, which is what clients read.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from fold.arrays import Arrays
from fold.artifact import DTYPES
from service.budget import Budget
from service.errors import BadRequestError, shown
from service.grpc.messages import ModelInferResponse, parameters
from service.grpc.wire import Contents, Tensors
from service.protocol import (
    NAMES,
    NOT_IN_JSON,
    InferRequest,
    Parameters,
    Signature,
    array_of_strings,
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


def decode(request: Any, tensors: Tensors, signature: Signature, budget: Budget) -> InferRequest:
    """Read a ModelInferRequest. Raises `BadRequestError` if it is malformed; the signature then checks the inputs.
    Raises `OutOfMemoryError`."""
    for tensor in (*request.inputs, *request.outputs):
        _checked(tensor.parameters)  # first, as a tensor in shared memory has no contents here
    raw = tensors.raw
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
        arrays[name] = _read(tensor, raw[index] if raw else None, tensors.contents[index], budget)
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


def _read(tensor: Any, raw: bytes | memoryview | None, contents: Contents | None, budget: Budget) -> np.ndarray:
    name, datatype = tensor.name, tensor.datatype
    itemsize = wire_dtype(name, datatype).itemsize
    shape, count = checked_shape(name, list(tensor.shape), itemsize)
    if raw is None:
        return _from_contents(name, datatype, shape, count, contents or {}, budget)
    if contents is not None:
        raise BadRequestError(f"input {name!r} has contents, and raw_input_contents came, too; expected one of them")
    if datatype != "BYTES" and len(raw) != count * itemsize:
        needed = count * itemsize
        raise BadRequestError(
            f"input {name!r}: {len(raw)} raw bytes came, shape {list(shape)} of {datatype} is {needed} bytes"
        )
    return from_bytes(name, datatype, shape, count, raw, 0, len(raw), budget)


def _from_contents(
    name: str, datatype: str, shape: tuple[int, ...], count: int, contents: Contents, budget: Budget
) -> np.ndarray:
    if datatype in NOT_IN_JSON:
        raise BadRequestError(f"input {name!r}: {datatype} has no typed contents; send it in raw_input_contents")
    field, carried = _CONTENTS[datatype]
    for other in contents:
        if other != field:
            raise BadRequestError(f"input {name!r}: {other} came; {datatype} is expected in {field}")
    elements = contents.get(field)
    came = 0 if elements is None else elements.count()
    if came != count:
        raise BadRequestError(f"input {name!r}: {field} has {came} elements, shape {list(shape)} needs {count}")
    dtype = DTYPES[datatype]
    if elements is None:
        return np.empty(shape, dtype)
    if datatype == "BYTES":
        what = f"input {name!r}, BYTES: string"
        texts = (decode_text(f"{what} {index}", part) for index, part in enumerate(elements.parts))
        return array_of_strings(texts, shape, count, sum(map(len, elements.parts)), budget)
    array = elements.array(carried, count, budget)
    if dtype != carried:
        converted = array.astype(dtype)
        if (converted != array).any():
            raise BadRequestError(f"input {name!r}: a number is beyond the range of {datatype}")
        array = converted
    return array.reshape(shape)
