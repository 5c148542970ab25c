"""The protocol over gRPC by its own client, unmodified, in both of its faces: the same answers as over HTTP.

Where no test is about an error's words, any server that speaks the protocol over both should pass.
"""

import asyncio
import queue
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as sync_grpc
import tritonclient.grpc.aio as aio_grpc
from tritonclient.grpc import service_pb2
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub
from tritonclient.utils import InferenceServerException

from support.service.target import DTYPES, ONLY_BINARY, Arrays, Model, Target, arrays_of, extremes, wire

CONTENTS = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
"""The field of the typed form. FP16 and BF16 have none."""


@pytest.fixture(params=["sync", "aio"])
def call(target: Target, request: pytest.FixtureRequest) -> Callable[..., Any]:
    """`call(method, …)` of one of the client's faces; raises what it raises."""
    if not target.grpc:
        pytest.skip("nothing is known of this server's gRPC; give --grpc-url")

    def sync(method: str, *arguments: Any, **options: Any) -> Any:
        with sync_grpc.InferenceServerClient(target.grpc) as client:
            return getattr(client, method)(*arguments, **options)

    def aio(method: str, *arguments: Any, **options: Any) -> Any:
        async def ask() -> Any:
            async with aio_grpc.InferenceServerClient(target.grpc) as client:
                return await getattr(client, method)(*arguments, **options)

        return asyncio.run(ask())

    return sync if request.param == "sync" else aio


def inputs(model: Model, arrays: Arrays) -> list[Any]:
    made = []
    for name, array in arrays.items():
        tensor = sync_grpc.InferInput(name, list(array.shape), model.inputs[name]["datatype"])
        made.append(tensor.set_data_from_numpy(array))
    return made


def outputs_of(answer: Any) -> Arrays:
    """By name and in order; strings as text."""
    decode = np.vectorize(bytes.decode, otypes=[object])
    found = {output.name: answer.as_numpy(output.name) for output in answer.get_response().outputs}
    return {name: decode(array) if array.dtype.kind in "OS" else array for name, array in found.items()}


def over_http(model: Model, arrays: Arrays) -> Arrays:
    document, tensors = model.request(arrays, outputs=[])
    document["parameters"] = {"binary_data_output": True}
    return arrays_of(model.infer(document, *tensors))


def assert_close(one: Arrays, other: Arrays) -> None:
    assert one.keys() == other.keys()
    for name, array in one.items():
        assert (array.dtype, array.shape) == (other[name].dtype, other[name].shape)
        if array.dtype.kind in "fV":
            np.testing.assert_allclose(array.astype(float), other[name].astype(float), rtol=1e-5, atol=1e-6)
        else:
            np.testing.assert_array_equal(array, other[name])


# The server and its models


def test_the_server_is_the_one_of_http(target: Target, call: Callable[..., Any]) -> None:
    assert call("is_server_live") is True
    assert call("is_server_ready") is True
    described = call("get_server_metadata", as_json=True)
    known = target.get("/v2").json()
    assert {key: described[key] for key in ("name", "version")} == {key: known[key] for key in ("name", "version")}
    assert sorted(described.get("extensions", [])) == sorted(known["extensions"]), "JSON of protobuf has no empty list"


def test_a_model_is_described_as_over_http(model: Model, call: Callable[..., Any]) -> None:
    assert call("is_model_ready", model.name) is True
    assert call("is_model_ready", model.name, model.version) is True
    described = call("get_model_metadata", model.name)
    assert (described.name, list(described.versions)) == (model.name, model.metadata.get("versions") or [])
    assert described.platform == model.metadata.get("platform", "")
    for kind in ("inputs", "outputs"):
        tensors = [{"name": t.name, "datatype": t.datatype, "shape": list(t.shape)} for t in getattr(described, kind)]
        assert tensors == model.metadata[kind]


def test_a_model_that_is_not_there_is_not_ready(call: Callable[..., Any]) -> None:
    assert call("is_model_ready", "no-such-model") is False


def test_the_configuration_is_the_one_of_http(model: Model, call: Callable[..., Any]) -> None:
    model.target.needs("model_configuration")
    found = call("get_model_config", model.name, as_json=True)["config"]
    known = model.target.get(f"{model.path}/config").json()
    for key in ("name", "platform", "backend"):
        assert found.get(key, "") == known.get(key, "")
    assert found.get("max_batch_size", 0) == known["max_batch_size"]
    for kind in ("input", "output"):
        described = [(t["name"], t["data_type"], list(map(int, t.get("dims", ())))) for t in found[kind]]
        assert described == [(t["name"], t["data_type"], t["dims"]) for t in known[kind]]
    assert ("dynamic_batching" in found) == ("dynamic_batching" in known)


def test_statistics_count_over_both(model: Model, call: Callable[..., Any]) -> None:
    model.target.needs("statistics")

    def counted() -> int:
        [found] = call("get_inference_statistics", model.name, model.version).model_stats
        assert found.name == model.name
        return int(found.inference_stats.success.count)

    before = counted()
    arrays = model.draw(1)
    call("infer", model.name, inputs(model, arrays))
    over_http(model, arrays)
    assert counted() == before + 2
    known = next(
        entry
        for entry in model.target.get(f"{model.path}/stats").json()["model_stats"]
        if entry["version"] == model.version
    )
    assert known["inference_stats"]["success"]["count"] == before + 2
    assert model.name in {found.name for found in call("get_inference_statistics").model_stats}


def test_the_index_is_the_one_of_http(target: Target, call: Callable[..., Any]) -> None:
    target.needs("model_repository")
    found = {(m.name, m.version, m.state) for m in call("get_model_repository_index").models}
    known = {(m["name"], m.get("version", ""), m.get("state", "")) for m in target.post("/v2/repository/index").json()}
    assert found == known


# Inference


def test_outputs_are_those_of_http(model: Model, call: Callable[..., Any]) -> None:
    arrays = model.draw(2)
    found = outputs_of(call("infer", model.name, inputs(model, arrays)))
    for name, array in found.items():
        assert array.dtype == DTYPES[model.outputs[name]["datatype"]]
    assert_close(found, over_http(model, arrays))


def test_id_version_and_name_come_back(model: Model, call: Callable[..., Any]) -> None:
    answer = call("infer", model.name, inputs(model, model.draw(1)), model_version=model.version, request_id="no. 7")
    response = answer.get_response()
    assert (response.model_name, response.id) == (model.name, "no. 7")
    assert model.version in ("", response.model_version)


def test_every_value_comes_back_as_it_went(model: Model, call: Callable[..., Any]) -> None:
    """NaN, infinities, the least and the largest number, strings that are none elsewhere."""
    arrays = model.draw(6)
    plain = outputs_of(call("infer", model.name, inputs(model, arrays)))
    pairs = {
        name: output
        for name, array in arrays.items()
        for output, given in plain.items()
        if given.dtype == array.dtype and given.shape == array.shape and (given == array).all()
    }
    if not pairs:
        pytest.skip("no output of this model gives an input back")
    arrays |= {name: extremes(arrays[name]) for name in pairs}
    found = outputs_of(call("infer", model.name, inputs(model, arrays)))
    for name, output in pairs.items():
        assert wire(found[output]) == wire(arrays[name])


def test_without_a_list_all_outputs_come(model: Model, call: Callable[..., Any]) -> None:
    arrays = model.draw(2)
    whole = outputs_of(call("infer", model.name, inputs(model, arrays)))
    assert model.names_all_outputs(whole)
    last = list(model.outputs)[-1]
    alone = call("infer", model.name, inputs(model, arrays), outputs=[sync_grpc.InferRequestedOutput(last)])
    assert_close(outputs_of(alone), {last: whole[last]})


def test_dimensions_of_size_zero(model: Model, call: Callable[..., Any]) -> None:
    if not model.batched:
        pytest.skip("this model has no batch axis, which could be of size zero")
    answer = call("infer", model.name, inputs(model, model.draw(0))).get_response()
    assert [list(output.shape)[:1] for output in answer.outputs] == [[0]] * len(model.outputs)
    assert list(answer.raw_output_contents) == [b""] * len(model.outputs)


def test_classification(model: Model, call: Callable[..., Any]) -> None:
    model.target.needs("classification")
    names = [n for n, t in model.outputs.items() if t["datatype"] not in ("BOOL", "BYTES", *ONLY_BINARY)]
    if not names:
        pytest.skip("this model has no output of numbers")
    arrays = model.draw(2)
    plain = outputs_of(call("infer", model.name, inputs(model, arrays)))
    asked = [sync_grpc.InferRequestedOutput(name, class_count=2) for name in names]
    answer = call("infer", model.name, inputs(model, arrays), outputs=asked)
    assert [output.datatype for output in answer.get_response().outputs] == ["BYTES"] * len(names)
    for name, texts in outputs_of(answer).items():
        rows = plain[name].reshape(2 if model.batched else 1, -1)
        for row, best in zip(rows, texts.reshape(len(rows), -1), strict=True):
            values = [float(text.split(":")[0]) for text in best]
            indices = [int(text.split(":")[1]) for text in best]
            np.testing.assert_allclose(values, row[indices].astype(float), atol=1e-6, rtol=1e-6)
            np.testing.assert_array_equal(np.sort(row)[::-1][: len(best)], row[indices])


def test_parameters(model: Model, call: Callable[..., Any]) -> None:
    """`priority` and `timeout` are taken; those of sequences and unknown ones mean nothing to a model without state."""
    arrays = model.draw(1)
    plain = outputs_of(call("infer", model.name, inputs(model, arrays)))
    options: dict[str, Any] = {"priority": 1, "timeout": 20_000_000, "sequence_id": 7, "sequence_start": True}
    options["parameters"] = {"colour": "red", "count": 3, "share": 0.5, "sure": True}
    assert_close(outputs_of(call("infer", model.name, inputs(model, arrays), **options)), plain)


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compressed_requests(model: Model, call: Callable[..., Any], algorithm: str) -> None:
    arrays = model.draw(2)
    plain = outputs_of(call("infer", model.name, inputs(model, arrays)))
    found = call("infer", model.name, inputs(model, arrays), compression_algorithm=algorithm)
    assert_close(outputs_of(found), plain)


# Messages that the client does not make


@pytest.fixture
def stub(target: Target) -> Any:
    """The methods of the service, for messages made by hand."""
    if not target.grpc:
        pytest.skip("nothing is known of this server's gRPC; give --grpc-url")
    import grpc  # noqa: PLC0415  # comes with the client

    with grpc.insecure_channel(target.grpc) as channel:
        yield GRPCInferenceServiceStub(channel)


def message(model: Model, arrays: Arrays, *, typed: bool = False) -> Any:
    made = service_pb2.ModelInferRequest(model_name=model.name)
    for name, array in arrays.items():
        datatype = model.inputs[name]["datatype"]
        tensor = made.inputs.add(name=name, datatype=datatype, shape=array.shape)
        if typed:
            values = [text.encode() if isinstance(text, str) else text for text in array.ravel().tolist()]
            getattr(tensor.contents, CONTENTS[datatype]).extend(values)
        else:
            made.raw_input_contents.append(wire(array))
    return made


def typed_inputs(model: Model, rows: int = 2) -> Arrays:
    if {tensor["datatype"] for tensor in model.inputs.values()} & set(ONLY_BINARY):
        pytest.skip("this model has inputs that have no typed form")
    return model.draw(rows)


def refused(target: Target, stub: Any, made: Any, *words: str) -> None:
    import grpc  # noqa: PLC0415

    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(made, timeout=60)
    if not target.ours:
        return
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT, caught.value.details()
    for word in words:
        assert word in caught.value.details()


def test_typed_contents_are_as_good_as_raw_ones(model: Model, stub: Any) -> None:
    arrays = typed_inputs(model)
    typed = sync_grpc.InferResult(stub.ModelInfer(message(model, arrays, typed=True)))
    assert_close(outputs_of(typed), over_http(model, arrays))


def test_typed_contents_of_another_size_or_field(model: Model, stub: Any) -> None:
    arrays = typed_inputs(model)
    name = next(iter(arrays))
    made = message(model, arrays, typed=True)
    del getattr(made.inputs[0].contents, CONTENTS[made.inputs[0].datatype])[-1:]
    refused(model.target, stub, made, name)
    made = message(model, arrays, typed=True)
    other = "fp64_contents" if made.inputs[0].datatype != "FP64" else "fp32_contents"
    made.inputs[0].contents.Clear()
    getattr(made.inputs[0].contents, other).extend([1.0] * arrays[name].size)
    refused(model.target, stub, made, name)


@pytest.mark.parametrize("datatype", ["INT8", "INT16", "UINT8", "UINT16"])
def test_typed_numbers_beyond_the_datatype(model: Model, stub: Any, datatype: str) -> None:
    """They share a field with wider ones, and none may wrap around."""
    arrays = model.draw(1)
    names = [name for name in arrays if model.inputs[name]["datatype"] == datatype]
    if not names or {tensor["datatype"] for tensor in model.inputs.values()} & set(ONLY_BINARY):
        pytest.skip(f"this model has no {datatype} input, or one without typed form")
    made = message(model, arrays, typed=True)
    tensor = made.inputs[list(arrays).index(names[0])]
    getattr(tensor.contents, CONTENTS[datatype])[0] = np.iinfo(DTYPES[datatype]).max + 1
    refused(model.target, stub, made, names[0])


@pytest.mark.parametrize("change", [b"", b"\0"], ids=["less", "more"])
def test_raw_contents_of_another_size(model: Model, stub: Any, change: bytes) -> None:
    made = message(model, model.draw(1))
    content = made.raw_input_contents[0]
    made.raw_input_contents[0] = content + change if change else content[:-1]
    refused(model.target, stub, made, made.inputs[0].name)


def test_raw_contents_are_as_many_as_inputs(model: Model, stub: Any) -> None:
    made = message(model, model.draw(1))
    made.raw_input_contents.append(b"\0\0\0\0")
    refused(model.target, stub, made, "raw_input_contents")


def test_raw_and_typed_contents_exclude_each_other(model: Model, stub: Any) -> None:
    made = message(model, typed_inputs(model), typed=True)
    made.raw_input_contents.extend(message(model, model.draw(2)).raw_input_contents)
    refused(model.target, stub, made)


@pytest.mark.parametrize(
    "shape", [[-1], [1 << 62, 1 << 62], [0, 1 << 62, 4], [1 << 35], [], [1] * 100], ids=lambda shape: str(shape)[:20]
)
def test_shapes_that_are_none(model: Model, stub: Any, shape: list[int]) -> None:
    made = message(model, model.draw(1))
    made.inputs[0].shape[:] = shape
    refused(model.target, stub, made, made.inputs[0].name)


def test_other_names_and_datatypes(model: Model, stub: Any) -> None:
    arrays = model.draw(1)
    made = message(model, arrays)
    made.inputs[0].name = "no-such-input"
    refused(model.target, stub, made, "no-such-input")
    for datatype in ("COMPLEX", "", "INT64" if made.inputs[0].datatype != "INT64" else "FP64"):
        made = message(model, arrays)
        made.inputs[0].datatype = datatype
        refused(model.target, stub, made, made.inputs[0].name)
    made = message(model, arrays)
    made.outputs.add(name="no-such-output")
    refused(model.target, stub, made, "no-such-output")
    made = message(model, arrays)
    made.inputs.append(made.inputs[0])
    made.raw_input_contents.append(made.raw_input_contents[0])
    refused(model.target, stub, made, made.inputs[0].name)
    made = message(model, arrays)
    del made.inputs[-1], made.raw_input_contents[-1]
    refused(model.target, stub, made)


@pytest.mark.parametrize(("kind", "value"), [("int64_param", -1), ("string_param", "1"), ("double_param", 1.5)])
@pytest.mark.parametrize("name", ["priority", "timeout"])
def test_priority_and_timeout_are_whole_numbers(model: Model, stub: Any, name: str, kind: str, value: Any) -> None:
    model.target.needs("schedule_policy")
    made = message(model, model.draw(1))
    setattr(made.parameters[name], kind, value)
    refused(model.target, stub, made, name)


def test_a_model_that_is_not_there(model: Model, call: Callable[..., Any]) -> None:
    with pytest.raises(InferenceServerException) as caught:
        call("infer", "no-such-model", inputs(model, model.draw(1)))
    assert caught.value.status() == "StatusCode.NOT_FOUND" or not model.target.ours
    assert "no-such-model" in caught.value.message()
    with pytest.raises(InferenceServerException) as caught:
        call("get_model_metadata", model.name, "987654321")
    assert caught.value.status() == "StatusCode.NOT_FOUND" or not model.target.ours


# Streams


def streamed(target: Target, face: str, requests: list[dict[str, Any]]) -> list[tuple[Any, Any]]:
    """Results and errors of one stream, as they come."""
    if face == "sync":
        answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
        with sync_grpc.InferenceServerClient(target.grpc) as client:
            client.start_stream(lambda result, error: answers.put((result, error)))
            for request in requests:
                client.async_stream_infer(**request)
            client.stop_stream()
        return [answers.get_nowait() for _ in range(answers.qsize())]

    async def ask() -> list[tuple[Any, Any]]:
        async def given() -> Any:
            for request in requests:
                yield request

        async with aio_grpc.InferenceServerClient(target.grpc) as client:
            return [answer async for answer in client.stream_infer(given())]

    return asyncio.run(ask())


@pytest.mark.parametrize("face", ["sync", "aio"])
def test_a_stream_answers_in_order_and_an_error_does_not_end_it(model: Model, face: str) -> None:
    if not model.target.grpc:
        pytest.skip("nothing is known of this server's gRPC; give --grpc-url")
    drawn = [model.draw(1) for _ in range(20)]
    requests = [
        {"model_name": model.name, "inputs": inputs(model, arrays), "request_id": str(number)}
        for number, arrays in enumerate(drawn)
    ]
    requests[7]["model_name"] = "no-such-model"
    answers = streamed(model.target, face, requests)
    assert len(answers) == len(drawn)
    for number, (result, error) in enumerate(answers):
        if number == 7:
            assert result is None
            assert "no-such-model" in error.message()
            continue
        assert error is None
        assert result.get_response().id == str(number)
    assert_close(outputs_of(answers[3][0]), over_http(model, drawn[3]))
