"""Inference by the protocol's own client, unmodified, in both of its faces, and what they leave to raw requests."""

import asyncio
import json
import math
from typing import Any

import numpy as np
import pytest
import tritonclient.http as sync_http
import tritonclient.http.aio as aio_http
from tritonclient.utils import InferenceServerException

from support.service.handmade import refused
from support.service.target import DTYPES, ONLY_BINARY, Arrays, Model, arrays_of, extremes

FACES = pytest.mark.parametrize("face", ["sync", "aio"])
FORMS = pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])


def inputs(model: Model, arrays: Arrays, face: str, *, binary: bool) -> list[Any]:
    kind = sync_http if face == "sync" else aio_http
    made = []
    if binary:
        model.target.needs("binary_tensor_data")
    for name, array in arrays.items():
        datatype = model.inputs[name]["datatype"]
        tensor = kind.InferInput(name, list(array.shape), datatype)
        made.append(tensor.set_data_from_numpy(array, binary_data=binary or datatype in ONLY_BINARY))
    return made


def requested(model: Model, *, binary: bool, classes: int = 0) -> list[Any]:
    return [
        sync_http.InferRequestedOutput(name, binary or tensor["datatype"] in ONLY_BINARY, classes)
        for name, tensor in model.outputs.items()
    ]


def infer(model: Model, arrays: Arrays, face: str, *, binary: bool | None = None, **options: Any) -> Any:
    """A request by one of the client's faces, in binary where the server has it; raises what it raises."""
    if binary is None:
        binary = "binary_tensor_data" in model.target.extensions
    if face == "sync":
        with sync_http.InferenceServerClient(model.target.address) as client:
            return client.infer(model.name, inputs(model, arrays, face, binary=binary), **options)

    async def ask() -> Any:
        async with aio_http.InferenceServerClient(model.target.address) as client:
            return await client.infer(model.name, inputs(model, arrays, face, binary=binary), **options)

    return asyncio.run(ask())


def as_arrays(model: Model, answer: Any) -> Arrays:
    """Outputs by name; strings in binary come as bytes."""
    found = {output["name"]: answer.as_numpy(output["name"]) for output in answer.get_response()["outputs"]}
    decode = np.vectorize(lambda text: text.decode() if isinstance(text, bytes) else text, otypes=[object])
    return {name: decode(array) if array.dtype.kind in "OS" else array for name, array in found.items()}


def assert_close(one: Arrays, other: Arrays) -> None:
    assert one.keys() == other.keys()
    for name, array in one.items():
        assert array.shape == other[name].shape
        if array.dtype.kind in "fV":
            np.testing.assert_allclose(array.astype(float), other[name].astype(float), rtol=1e-5, atol=1e-6)
        else:
            np.testing.assert_array_equal(array, other[name])


@FACES
@FORMS
def test_outputs_are_of_the_described_type_and_shape(model: Model, face: str, *, binary: bool) -> None:
    """Infer, point 1: both faces, JSON and binary, with and without Content-Type; the same numbers for all."""
    arrays = model.draw(2)
    found = as_arrays(model, infer(model, arrays, face, binary=binary, outputs=requested(model, binary=binary)))
    assert model.names_all_outputs(found)
    for name, array in found.items():
        tensor = model.outputs[name]
        assert array.dtype == DTYPES[tensor["datatype"]]
        shape = ([2, *tensor["shape"][1:]]) if model.batched else tensor["shape"]
        assert len(array.shape) == len(shape)
        assert all(size in (-1, there) for size, there in zip(shape, array.shape, strict=True))
    document, tensors = model.request(arrays, outputs=[])
    document["parameters"] = {"binary_data_output": True}
    assert_close(found, arrays_of(model.infer(document, *tensors)))


def echoes(model: Model) -> dict[str, str]:
    """Outputs that give an input back, by that input."""
    arrays = model.draw(2)
    binary = "binary_tensor_data" in model.target.extensions
    found = as_arrays(model, infer(model, arrays, "sync", outputs=requested(model, binary=binary)))
    pairs = {
        name: output
        for name, array in arrays.items()
        for output, given in found.items()
        if given.dtype == array.dtype and given.shape == array.shape and (given == array).all()
    }
    if not pairs:
        pytest.skip("no output of this model gives an input back")
    return pairs


@FACES
@FORMS
def test_every_datatype_comes_back_as_it_went(model: Model, face: str, *, binary: bool) -> None:
    """Infer, datatypes; point 7: bare NaN and Infinity are read and written in JSON, and no Inf is lost."""
    pairs = echoes(model)
    arrays = {name: extremes(array) if name in pairs else array for name, array in model.draw(6).items()}
    found = as_arrays(model, infer(model, arrays, face, binary=binary, outputs=requested(model, binary=binary)))
    for name, output in pairs.items():
        came, went = found[output], arrays[name]
        assert came.dtype == went.dtype
        if went.dtype.kind in "fV":
            came, went = came.astype(np.float64), went.astype(np.float64)
            np.testing.assert_array_equal(np.signbit(came), np.signbit(went))
        np.testing.assert_array_equal(came, went)


def test_non_finite_numbers_are_bare_in_json(model: Model) -> None:
    """Point 7: not null, which would lose them."""
    pairs = {name: output for name, output in echoes(model).items() if model.inputs[name]["datatype"] == "FP32"}
    if not pairs:
        pytest.skip("no FP32 input of this model comes back")
    name, output = next(iter(pairs.items()))
    arrays = model.draw(1)
    arrays[name] = np.full_like(arrays[name], np.inf)
    document, tensors = model.request(arrays, outputs=[{"name": output}])
    answer = model.infer(document, *tensors)
    assert answer.status_code == 200
    assert b"Infinity" in answer.content
    assert b"null" not in answer.content


@FACES
@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compressed_requests(model: Model, face: str, algorithm: str) -> None:
    """Point 2: a request may be compressed either way, JSON and binary."""
    arrays = model.draw(2)
    plain = as_arrays(model, infer(model, arrays, face))
    for binary in (True, False) if "binary_tensor_data" in model.target.extensions else (False,):
        options = {"request_compression_algorithm": algorithm, "binary": binary}
        assert_close(as_arrays(model, infer(model, arrays, face, **options)), plain)


def test_answers_are_not_compressed_in_a_way_that_aio_cannot_read(model: Model) -> None:
    """Point 2: aio always offers `gzip, deflate, br` and reads no br."""
    document, tensors = model.request(model.draw(2))
    answer = model.infer(document, *tensors, Accept_Encoding="gzip, deflate, br")
    assert answer.headers.get("content-encoding") in (None, "identity", "gzip", "deflate")
    assert answer.status_code == 200


def test_without_a_list_all_outputs_come(model: Model) -> None:
    """Point 8: `outputs` absent or empty, all; one listed output alone; in the form that was asked for."""
    document, tensors = model.request(model.draw(2))
    model.target.needs("binary_tensor_data")
    binary = {"parameters": {"binary_data_output": True}, "inputs": document["inputs"]}
    whole = arrays_of(model.infer(binary, *tensors))
    assert model.names_all_outputs(whole)
    assert_close(arrays_of(model.infer(binary | {"outputs": []}, *tensors)), whole)
    last = list(model.outputs)[-1]
    answer = model.infer(binary | {"outputs": [{"name": last}]}, *tensors)
    assert_close(arrays_of(answer), {last: whole[last]})
    assert "inference-header-content-length" in answer.headers, "it follows binary_data_output"
    if last in model.json_outputs:
        own = [{"name": last, "parameters": {"binary_data": False}}]
        answer = model.infer(binary | {"outputs": own}, *tensors)
        assert "inference-header-content-length" not in answer.headers, "its own flag wins"
        assert_close(arrays_of(answer), {last: whole[last]})


@FACES
@FORMS
def test_dimensions_of_size_zero(model: Model, face: str, *, binary: bool) -> None:
    """Point 5: zero rows are legal."""
    if not model.batched:
        pytest.skip("this model has no batch axis, which could be of size zero")
    arrays = model.draw(0)
    found = as_arrays(model, infer(model, arrays, face, binary=binary, outputs=requested(model, binary=binary)))
    assert all(len(array) == 0 for array in found.values())


@FACES
def test_priority_and_timeout(model: Model, face: str) -> None:
    """Point 9: both are taken; parameters of sequences and unknown ones mean nothing to a model without state."""
    model.target.needs("schedule_policy")
    arrays = model.draw(1)
    plain = as_arrays(model, infer(model, arrays, face))
    options: dict[str, Any] = {"priority": 1, "timeout": 20_000_000, "parameters": {"colour": "red", "count": 3}}
    assert_close(as_arrays(model, infer(model, arrays, face, **options)), plain)
    assert_close(as_arrays(model, infer(model, arrays, face, sequence_id=7, sequence_start=True)), plain)


@pytest.mark.parametrize("value", [-1, "1", 1.5, True, [1]])
@pytest.mark.parametrize("name", ["priority", "timeout"])
def test_priority_and_timeout_are_whole_numbers(model: Model, name: str, value: Any) -> None:
    """Point 9, as schedule_policy has it: anything else is 400."""
    model.target.needs("schedule_policy")
    document, tensors = model.request(model.draw(1), parameters={name: value})
    refused(model.infer(document, *tensors), name)


def ranked(model: Model) -> dict[str, Any]:
    """Outputs of numbers."""
    model.target.needs("classification")
    found = {n: t for n, t in model.outputs.items() if t["datatype"] not in ("BOOL", "BYTES", *ONLY_BINARY)}
    if not found:
        pytest.skip("this model has no output of numbers")
    return found


@FACES
@FORMS
def test_classification(model: Model, face: str, *, binary: bool) -> None:
    """Point 10: BYTES of `value:index[:label]`, [batch, min(k, n)], the largest first."""
    outputs = ranked(model)
    arrays = model.draw(2)
    plain = as_arrays(model, infer(model, arrays, face))
    for count in (2, 1000):
        asked = [sync_http.InferRequestedOutput(name, binary_data=binary, class_count=count) for name in outputs]
        answer = infer(model, arrays, face, outputs=asked)
        found = as_arrays(model, answer)
        for output in answer.get_response()["outputs"]:
            assert output["datatype"] == "BYTES"
        for name in outputs:
            rows = plain[name].reshape(2 if model.batched else 1, -1)
            shown = found[name].reshape(len(rows), -1)
            assert found[name].shape == ((2,) if model.batched else ()) + (min(count, rows.shape[1]),)
            for row, texts in zip(rows, shown, strict=True):
                values = [float(text.split(":")[0]) for text in texts]
                indices = [int(text.split(":")[1]) for text in texts]
                assert len(set(indices)) == len(indices)
                np.testing.assert_allclose(values, row[indices].astype(float), atol=1e-6, rtol=1e-6)
                np.testing.assert_array_equal(np.sort(row)[::-1][: len(texts)], row[indices])


@pytest.mark.parametrize("value", [-1, "2", 1.5, True])
def test_classification_wants_a_whole_number(model: Model, value: Any) -> None:
    """Point 10: a k of a wrong type or below zero is 400."""
    asked = [{"name": next(iter(ranked(model))), "parameters": {"classification": value}}]
    document, tensors = model.request(model.draw(1), outputs=asked)
    refused(model.infer(document, *tensors), "classification")


@FACES
def test_errors_reach_the_client(model: Model, face: str) -> None:
    """Point 3: our words and our status, not a decoding error of the client's. Points 6 and 9 are why."""
    arrays = model.draw(1)
    for options, status, words in (
        ({"model_version": "987654"}, "404", "987654"),
        ({"outputs": [sync_http.InferRequestedOutput("no-such-output")]}, "400", "no-such-output"),
    ):
        with pytest.raises(InferenceServerException) as raised:
            infer(model, arrays, face, **options)
        if model.target.ours:
            assert raised.value.status() == status
            assert words in raised.value.message()
        assert raised.value.message()


def test_answers_are_json_of_the_standard_library(model: Model) -> None:
    """Point 7: what is written can be read by any parser that knows the bare tokens."""
    if not model.json_outputs:
        pytest.skip("no output of this model has a form in JSON")
    document, tensors = model.request(model.draw(2))
    answer = model.infer(document, *tensors)
    assert answer.headers["content-type"].startswith("application/json")
    for output in json.loads(answer.content)["outputs"]:
        assert len(output["data"]) == math.prod(output["shape"]), "flat and row-major"
