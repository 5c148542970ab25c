"""Tensors that a model does not take: each time one clear refusal in JSON that names what came and what is expected."""

import json
from typing import Any

import numpy as np
import pytest

from support.service.handmade import binary_request, first, in_json, refused
from support.service.target import ONLY_BINARY, Model, arrays_of


@pytest.mark.parametrize(
    "shape",
    [
        [1 << 62, 1 << 62], [1 << 32, 1 << 32], [0, 1 << 62, 4], [-1], [-1, -1], [1.0], ["1"], [True], [None], [[1]],
        "1", None, 3, [1] * 100, [1 << 100],
    ],
)  # fmt: skip
def test_shapes_that_are_none(model: Model, shape: Any) -> None:
    """Point 5: the product is checked against overflow and limits before anything is allocated."""
    name, _ = in_json(model)
    arrays = first(model, model.draw(), name)
    document, tensors = model.request(arrays)
    document["inputs"][0]["shape"] = shape
    refused(model.infer(document, *tensors), name)


def test_a_shape_of_gigabytes_costs_nothing(model: Model) -> None:
    """Point 5."""
    name, _ = in_json(model)
    arrays = first(model, model.draw(), name)
    document, tensors = model.request(arrays)
    document["inputs"][0]["shape"] = [1 << 35, *arrays[name].shape[1:]]
    refused(model.infer(document, *tensors), name)
    document, tensors = binary_request(model, arrays, shape=[1 << 35, *arrays[name].shape[1:]])
    refused(model.infer(document, *tensors), name)


def test_data_is_flat_or_nested_as_the_shape_says(model: Model) -> None:
    """Infer: row-major, nested or flat; another nesting is refused."""
    name, _ = in_json(model)
    arrays = first(model, model.draw(2), name)
    document, tensors = model.request(arrays)
    flat = model.infer(document, *tensors)
    document["inputs"][0]["data"] = arrays[name].tolist()
    nested = model.infer(document, *tensors)
    for output, array in arrays_of(flat).items():
        np.testing.assert_array_equal(array, arrays_of(nested)[output])
    document["inputs"][0]["data"] = [arrays[name].tolist(), arrays[name].tolist()]
    refused(model.infer(document, *tensors), name)
    document["inputs"][0]["data"] = arrays[name].ravel().tolist()[:-1]
    refused(model.infer(document, *tensors), name)


@pytest.mark.parametrize("value", [None, {}, [], "x", True, 0.5])
def test_elements_of_another_kind(model: Model, value: Any) -> None:
    """Point 6: what is no value of the datatype is refused, and never becomes NaN, 0 or 1."""
    name, datatype = in_json(model)
    right = {"BOOL": bool, "BYTES": str, "FP32": float, "FP64": float}.get(datatype, int)
    if type(value) is right:
        pytest.skip(f"{value!r} is a value of {datatype}")
    arrays = first(model, model.draw(), name)
    document, tensors = model.request(arrays)
    document["inputs"][0]["data"] = [value] * arrays[name].size
    refused(model.infer(document, *tensors), name)


def test_numbers_beyond_the_datatype(model: Model) -> None:
    """Points 6 and 7: none of them becomes an Inf or wraps around."""
    name, datatype = in_json(model)
    beyond = {"FP32": "1e39", "FP64": "1e400"}.get(datatype, str(1 << 64))
    if datatype in ("BOOL", "BYTES"):
        pytest.skip(f"{datatype} has no range")
    arrays = first(model, model.draw(), name)
    document, tensors = model.request(arrays)
    document["inputs"][0]["data"] = ["number"] * arrays[name].size
    refused(model.infer(json.dumps(document).replace('"number"', beyond).encode(), *tensors))


def test_inputs_that_are_not_the_models(model: Model) -> None:
    """Point 6: duplicate, missing and extra inputs, unknown outputs: 400 with the name and what is expected."""
    arrays = model.draw()
    document, tensors = binary_request(model, arrays)
    items = document["inputs"]
    name = items[0]["name"]
    refused(model.infer(document | {"inputs": [*items, items[0]]}, *tensors, tensors[0]), name)
    refused(model.infer(document | {"inputs": items[1:]}, *tensors[1:]), name)
    refused(model.infer(document | {"inputs": []}), name)
    extra = [*items, items[0] | {"name": "no-such"}]
    refused(model.infer(document | {"inputs": extra}, *tensors, tensors[0]), "no-such", name)
    refused(model.infer(document | {"outputs": [{"name": "no-such"}]}, *tensors), "no-such", next(iter(model.outputs)))
    refused(model.infer(document | {"outputs": [{"name": next(iter(model.outputs))}] * 2}, *tensors))


def test_datatypes_that_are_not_the_models(model: Model) -> None:
    """Point 6: what came and what is expected."""
    name, datatype = in_json(model)
    arrays = first(model, model.draw(), name)
    document, tensors = model.request(arrays)
    other = "INT16" if datatype == "INT32" else "INT32"
    zeros = [0] * arrays[name].size
    document["inputs"][0] |= {"datatype": other, "data": zeros}
    refused(model.infer(document, *tensors), name, other, datatype)
    for strange in ("FP8", "float32", "", None, 5, ["FP32"]):
        document["inputs"][0]["datatype"] = strange
        refused(model.infer(document, *tensors), name)


def test_ranks_and_dimensions_that_are_not_the_models(model: Model) -> None:
    """Point 6: what came and what is expected."""
    name, _ = in_json(model)
    arrays = first(model, model.draw(), name)
    shape = list(arrays[name].shape)
    document, tensors = model.request(arrays)
    document["inputs"][0]["shape"] = [*shape, 1]
    refused(model.infer(document, *tensors), name, str([*shape, 1]))
    expected = model.inputs[name]["shape"]
    axis = next((axis for axis, size in enumerate(expected) if size > 0), None)
    if axis is None:
        pytest.skip("all dimensions of this input are free")
    larger = [size + (position == axis) for position, size in enumerate(shape)]
    document["inputs"][0] |= {"shape": larger, "data": np.resize(arrays[name], larger).ravel().tolist()}
    refused(model.infer(document, *tensors), name, str(larger))


def test_inputs_that_disagree_on_the_rows(model: Model) -> None:
    """Point 6."""
    if not model.batched or len(model.inputs) == 1:
        pytest.skip("one input or no batch axis: there is nothing to disagree on")
    two, three = model.draw(2), model.draw(3)
    name = next(iter(two))
    document, tensors = binary_request(model, {name: three[name], **{n: a for n, a in two.items() if n != name}})
    refused(model.infer(document, *tensors), name, "3", "2")


@pytest.mark.parametrize("datatype", ONLY_BINARY)
def test_short_floats_have_no_form_in_json(model: Model, datatype: str) -> None:
    """Point 7: FP16 and BF16 as JSON data are refused, both ways."""
    name = next((name for name, tensor in model.inputs.items() if tensor["datatype"] == datatype), None)
    if name is None:
        pytest.skip(f"this model takes no {datatype}")
    arrays = first(model, model.draw(), name)
    document, tensors = binary_request(model, arrays)
    document["inputs"][0] = {**document["inputs"][0], "parameters": {}, "data": [0] * arrays[name].size}
    refused(model.infer(document, *tensors[1:]), name, datatype)
    output = next((name for name, tensor in model.outputs.items() if tensor["datatype"] == datatype), None)
    if output is not None:
        document, tensors = binary_request(model, arrays)
        asked = [{"name": output, "parameters": {"binary_data": False}}]
        refused(model.infer(document | {"outputs": asked}, *tensors), output, datatype)


@pytest.mark.parametrize(
    ("content", "count"),
    [
        (b"", 0), (b"\x01\0\0", 0), (b"\xff\xff\xff\xff", 0), (b"\x05\0\0\0ab", 0), (b"\xff\xff\xff\x7fab", 0),
        (b"\x01\0\0\0a\x01", 0), (b"\x01\0\0\0a", 1), (b"\x01\0\0\0\xff", 0),
    ],
)  # fmt: skip
def test_lengths_of_strings(model: Model, content: bytes, count: int) -> None:
    """Datatypes: BYTES is `<u32 length><bytes>`; lengths that lie, tensors that end early or late, and no UTF-8."""
    name = next((name for name, tensor in model.inputs.items() if tensor["datatype"] == "BYTES"), None)
    if name is None:
        pytest.skip("this model takes no BYTES")
    arrays = first(model, model.draw(), name)
    whole = b"".join(b"\x01\0\0\0a" for _ in range(arrays[name].size - 1 + count)) + content
    document, tensors = binary_request(model, arrays, parameters={"binary_data_size": len(whole)})
    refused(model.infer(document, whole, *tensors[1:]), name)
