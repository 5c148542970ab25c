"""The judge of conformance: NVIDIA's own client, unmodified, synchronous and asynchronous."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.http as sync_http
import tritonclient.http.aio as aio_http
from tritonclient.utils import InferenceServerException

from fold.artifact import DATATYPES

RANDOM = np.random.default_rng(3)


@pytest.fixture
def client(service: Any) -> Iterator[sync_http.InferenceServerClient]:
    with sync_http.InferenceServerClient(service.address) as client:
        yield client


def with_aio(service: Any, use: Callable[[aio_http.InferenceServerClient], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        async with aio_http.InferenceServerClient(service.address) as client:
            return await use(client)

    return asyncio.run(run())


def tensor(name: str, array: np.ndarray, *, binary: bool = True, kind: Any = sync_http) -> Any:
    datatype = {dtype: name for name, dtype in DATATYPES.items()}[array.dtype]
    made = kind.InferInput(name, list(array.shape), datatype)
    return made.set_data_from_numpy(array, binary_data=binary)


def every_datatype(rows: int) -> dict[str, np.ndarray]:
    arrays = {}
    for name, dtype in DATATYPES.items():
        if dtype.kind == "b":
            arrays[name.lower()] = RANDOM.integers(0, 2, (rows, 3)).astype(bool)
        elif dtype.kind == "f":
            arrays[name.lower()] = RANDOM.normal(size=(rows, 3)).astype(dtype)
        else:
            limits = np.iinfo(dtype)
            arrays[name.lower()] = RANDOM.integers(limits.min, limits.max, (rows, 3), dtype, endpoint=True)
    return arrays


def test_health_and_metadata(client: sync_http.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("net")
    assert client.is_model_ready("net", "1")
    assert not client.is_model_ready("net", "2")
    assert not client.is_model_ready("broken")
    assert not client.is_model_ready("nobody")
    assert client.get_server_metadata()["name"] == "bnfold"
    metadata = client.get_model_metadata("net")
    assert metadata == {
        "name": "net",
        "versions": ["1"],
        "platform": "onnxruntime_onnx",
        "inputs": [{"name": "image", "datatype": "FP32", "shape": [-1, 1, 8, 8]}],
        "outputs": [{"name": "scores", "datatype": "FP32", "shape": [-1, 10]}],
    }
    assert client.get_model_metadata("net", "1") == metadata


def test_index_lists_what_serves_and_what_does_not(client: sync_http.InferenceServerClient, service: Any) -> None:
    index = {entry["name"]: entry for entry in client.get_model_repository_index()}
    assert index["net"] == {"name": "net", "version": "1", "state": "READY", "reason": ""}
    assert index["broken"]["state"] == "UNAVAILABLE"
    assert "model.onnx" in index["broken"]["reason"]
    assert with_aio(service, lambda c: c.get_model_repository_index()) == list(index.values())


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
def test_every_datatype_comes_back_as_it_went(client: sync_http.InferenceServerClient, *, binary: bool) -> None:
    arrays = every_datatype(4)
    inputs = [tensor(name, array, binary=binary or name == "fp16") for name, array in arrays.items()]
    outputs = [sync_http.InferRequestedOutput(f"{name}_out", binary_data=binary or name == "fp16") for name in arrays]
    answer = client.infer("echo", inputs, outputs=outputs, request_id="a request")
    assert answer.get_response()["id"] == "a request"
    assert answer.get_response()["model_version"] == "1"
    for name, array in arrays.items():
        returned = answer.as_numpy(f"{name}_out")
        assert returned.dtype == array.dtype
        np.testing.assert_array_equal(returned, array)


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
def test_aio_gets_the_same_numbers(service: Any, client: sync_http.InferenceServerClient, *, binary: bool) -> None:
    image = RANDOM.normal(size=(5, 1, 8, 8)).astype(np.float32)
    expected = client.infer("net", [tensor("image", image)]).as_numpy("scores")

    async def infer(aio: aio_http.InferenceServerClient) -> Any:
        return await aio.infer(
            "net",
            [tensor("image", image, binary=binary, kind=aio_http)],
            model_version="1",
            outputs=[aio_http.InferRequestedOutput("scores", binary_data=binary)],
        )

    answer = with_aio(service, infer)
    assert ("data" in answer.get_output("scores")) is not binary
    np.testing.assert_allclose(answer.as_numpy("scores"), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compressed_requests(client: sync_http.InferenceServerClient, service: Any, algorithm: str) -> None:
    x = np.array([[1, 2, 3]], np.float32)
    answer = client.infer("free", [tensor("x", x)], request_compression_algorithm=algorithm)
    assert answer.as_numpy("total") == [6]
    answer = with_aio(
        service,
        lambda c: c.infer("free", [tensor("x", x, kind=aio_http)], request_compression_algorithm=algorithm),
    )
    assert answer.as_numpy("total") == [6]


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
def test_non_finite_numbers_survive(client: sync_http.InferenceServerClient, *, binary: bool) -> None:
    a = np.array([[np.nan, np.inf], [-np.inf, 1.5]], np.float32)
    inputs = [tensor("a", a, binary=binary), tensor("b", np.zeros_like(a), binary=binary)]
    outputs = [sync_http.InferRequestedOutput("sum", binary_data=binary)]
    np.testing.assert_array_equal(client.infer("pair", inputs, outputs=outputs).as_numpy("sum"), a)


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
def test_dimensions_of_size_zero(client: sync_http.InferenceServerClient, *, binary: bool) -> None:
    outputs = [sync_http.InferRequestedOutput("total", binary_data=binary)]
    for shape in ((2, 0), (0, 3)):
        inputs = [tensor("x", np.zeros(shape, np.float32), binary=binary)]
        total = client.infer("free", inputs, outputs=outputs).as_numpy("total")
        np.testing.assert_array_equal(total, np.zeros(shape[0], np.float32))


def test_only_the_outputs_that_were_asked_for(client: sync_http.InferenceServerClient) -> None:
    a, b = np.ones((2, 2), np.float32), np.full((2, 2), 3, np.float32)
    outputs = [sync_http.InferRequestedOutput("difference")]
    answer = client.infer("pair", [tensor("a", a), tensor("b", b)], outputs=outputs)
    assert [output["name"] for output in answer.get_response()["outputs"]] == ["difference"]
    np.testing.assert_array_equal(answer.as_numpy("difference"), a - b)


def test_a_model_without_a_batch_axis(client: sync_http.InferenceServerClient) -> None:
    x = np.arange(4, dtype=np.float32)
    np.testing.assert_array_equal(client.infer("single", [tensor("x", x)]).as_numpy("y"), 2 * x)


def test_requests_in_flight_at_once(service: Any) -> None:
    """Many requests over many connections: each gets its own rows back."""
    values = RANDOM.normal(size=(200, 3, 5)).astype(np.float32)

    async def burst(aio: aio_http.InferenceServerClient) -> list[Any]:
        return await asyncio.gather(*(aio.infer("free", [tensor("x", v, kind=aio_http)]) for v in values))

    for value, answer in zip(values, with_aio(service, burst), strict=True):
        np.testing.assert_allclose(answer.as_numpy("total"), value.sum(axis=1), rtol=1e-5, atol=1e-5)


IMAGE = np.zeros((1, 1, 8, 8), np.float32)


@pytest.mark.parametrize(
    ("model", "name", "array", "status", "message"),
    [
        ("nobody", "x", IMAGE, "404", "no model is named 'nobody'"),
        ("broken", "image", IMAGE, "503", "model broken/1 is not ready"),
        ("net", "picture", IMAGE, "400", "no input is named 'picture'; expected 'image'"),
        ("net", "image", IMAGE.astype(np.float64), "400", "datatype FP64 came, FP32 is expected"),
        ("net", "image", IMAGE[0], "400", "shape [1, 8, 8] came, [-1, 1, 8, 8] is expected"),
        ("net", "image", IMAGE[..., :7], "400", "shape [1, 1, 8, 7] came, [-1, 1, 8, 8] is expected"),
        ("net", "image", np.repeat(IMAGE, 65, axis=0), "400", "65 rows came, at most 64 are taken"),
        ("pick", "index", np.array([10]), "500", "model pick/1: the run failed"),
    ],
)
def test_errors_reach_the_client(
    service: Any,
    client: sync_http.InferenceServerClient,
    model: str,
    name: str,
    array: np.ndarray,
    status: str,
    message: str,
) -> None:
    with pytest.raises(InferenceServerException) as raised:
        client.infer(model, [tensor(name, array)])
    assert raised.value.status() == status
    assert message in raised.value.message()
    with pytest.raises(InferenceServerException) as raised:
        with_aio(service, lambda c: c.infer(model, [tensor(name, array, kind=aio_http)]))
    assert message in raised.value.message()


def test_unknown_version_and_output(client: sync_http.InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException, match="model 'net' has no version '9'; here are: 1"):
        client.infer("net", [tensor("image", IMAGE)], model_version="9")
    with pytest.raises(InferenceServerException, match="no output is named 'label'; expected 'scores'"):
        client.infer("net", [tensor("image", IMAGE)], outputs=[sync_http.InferRequestedOutput("label")])
    with pytest.raises(InferenceServerException, match="classification is not offered"):
        client.infer("net", [tensor("image", IMAGE)], outputs=[sync_http.InferRequestedOutput("scores", class_count=3)])
    with pytest.raises(InferenceServerException, match="no model is named 'nobody'"):
        client.get_model_metadata("nobody")
