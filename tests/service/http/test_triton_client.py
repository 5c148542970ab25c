"""NVIDIA's own client, unmodified, synchronous and asynchronous, on what only our own models can show.

That the protocol is spoken as it should be is tested in tests/conformance.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.http as sync_http
import tritonclient.http.aio as aio_http
from tritonclient.utils import InferenceServerException

from fold.artifact.manifest import DATATYPES

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
def test_dimensions_of_size_zero(client: sync_http.InferenceServerClient, *, binary: bool) -> None:
    outputs = [sync_http.InferRequestedOutput("total", binary_data=binary)]
    for shape in ((2, 0), (0, 3)):
        inputs = [tensor("x", np.zeros(shape, np.float32), binary=binary)]
        total = client.infer("free", inputs, outputs=outputs).as_numpy("total")
        np.testing.assert_array_equal(total, np.zeros(shape[0], np.float32))


def test_more_rows_than_fit_into_one_run(client: sync_http.InferenceServerClient) -> None:
    """A request of 1,000 rows where a run takes 64: each row is answered as if it were alone."""
    x = RANDOM.normal(size=(1000, 2)).astype(np.float32)
    answer = client.infer("pair", [tensor("a", x), tensor("b", x[::-1].copy())])
    np.testing.assert_array_equal(answer.as_numpy("difference"), x - x[::-1])
    sizes = [entry["batch_size"] for entry in client.get_inference_statistics("pair")["model_stats"][0]["batch_stats"]]
    assert max(sizes) == 64


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
        ("net", "image", np.repeat(IMAGE, 1025, axis=0), "400", "1025 rows came, at most 1024 are taken"),
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
    with pytest.raises(InferenceServerException, match="no model is named 'nobody'"):
        client.get_model_metadata("nobody")
