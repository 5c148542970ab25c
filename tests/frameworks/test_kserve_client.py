"""KServe's own client of the Open Inference Protocol, over REST and gRPC, and of the v1 convention."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from kserve.inference_client import InferenceGRPCClient, InferenceRESTClient, RESTConfig
from kserve.protocol.infer_type import InferInput, InferRequest, RequestedOutput

from support.service import served
from support.service.serving import Service, start

pytestmark = pytest.mark.filterwarnings("ignore")

IMAGES = np.random.default_rng(2).normal(size=(3, 1, 8, 8)).astype(np.float32)
WORDS = np.array([["a", "zwölf"], ["", "x y"]], np.object_)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder: Path = tmp_path_factory.mktemp("repository")
    served.net(folder)
    served.others(folder)
    served.kinds(folder)
    with start(folder, grpc_port=0) as running:
        yield running


def over_rest(use: Callable[[InferenceRESTClient], Awaitable[Any]], protocol: str = "v2") -> Any:
    async def run() -> Any:
        client = InferenceRESTClient(RESTConfig(protocol=protocol))
        try:
            return await use(client)
        finally:
            await client.close()

    return asyncio.run(run())


def over_grpc(service: Service, use: Callable[[InferenceGRPCClient], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        async with InferenceGRPCClient(service.grpc) as client:
            return await use(client)

    return asyncio.run(run())


def request(model: str, name: str, array: np.ndarray, output: str, *, binary: bool) -> InferRequest:
    datatype = {np.dtype(np.float32): "FP32", np.dtype(object): "BYTES"}[array.dtype]
    given = InferInput(name, list(array.shape), datatype)
    given.set_data_from_numpy(array, binary_data=binary)
    wanted = [RequestedOutput(output, {"binary_data": binary})]
    return InferRequest(model, [given], request_id="one", request_outputs=wanted)


def test_health_and_readiness(service: Service) -> None:
    async def rest(client: InferenceRESTClient) -> list[bool]:
        url = service.url
        return [
            await client.is_server_ready(url),
            await client.is_server_live(url),
            await client.is_model_ready(url, "net"),
        ]

    async def rpc(client: InferenceGRPCClient) -> list[bool]:
        return [
            await client.is_server_ready(),
            await client.is_server_live(),
            await client.is_model_ready("net"),
            not await client.is_model_ready("nobody"),
        ]

    assert over_rest(rest) == [True] * 3
    assert over_grpc(service, rpc) == [True] * 4


@pytest.mark.parametrize("binary", [False, True], ids=["json", "binary"])
def test_numbers_and_strings(service: Service, binary: bool) -> None:
    expected = np.array(
        service.post("/v1/models/net:predict", json={"instances": IMAGES.tolist()}).json()["predictions"]
    )
    scores = request("net", "image", IMAGES, "scores", binary=binary)
    words = request("text", "x", WORDS, "y", binary=binary)
    answers = [
        *over_rest(lambda client: both(client, service.url, scores, words)),
        *over_grpc(service, lambda client: both_calls(client, scores, words)),
    ]
    for numbers, texts in (answers[:2], answers[2:]):
        assert (numbers.model_name, numbers.id) == ("net", "one")
        np.testing.assert_allclose(numbers.outputs[0].as_numpy(), expected, rtol=1e-5, atol=1e-6)
        assert [as_text(each) for each in texts.outputs[0].as_numpy().ravel()] == [f"{w}!" for w in WORDS.ravel()]


async def both(client: InferenceRESTClient, url: str, *requests: InferRequest) -> list[Any]:
    return [await client.infer(url, each, model_name=each.model_name) for each in requests]


async def both_calls(client: InferenceGRPCClient, *requests: InferRequest) -> list[Any]:
    return [await client.infer(each) for each in requests]


def as_text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def test_the_v1_convention(service: Service) -> None:
    body = {"instances": [[1, 2], [3, 4]]}
    found = over_rest(lambda client: client.infer(service.url, body, model_name="free"), "v1")
    assert found == {"predictions": [3, 7]}
    assert over_rest(lambda client: client.is_model_ready(service.url, "free"), "v1") is True


def test_errors_are_told(service: Service) -> None:
    wrong = request("free", "y", IMAGES[:, 0, 0], "total", binary=False)
    with pytest.raises(httpx.HTTPStatusError, match="no input is named 'y'; expected 'x'"):
        over_rest(lambda client: client.infer(service.url, wrong, model_name="free"))
    with pytest.raises(grpc.RpcError, match="no input is named 'y'; expected 'x'"):
        over_grpc(service, lambda client: client.infer(wrong))
