"""What a server tells of itself and of its models."""

import asyncio
import json
from typing import Any

import tritonclient.http as sync_http
import tritonclient.http.aio as aio_http

from support.service.handmade import refused
from support.service.target import Model, Target


def test_health(target: Target) -> None:
    """Endpoints: `{"live": true}` and `{"ready": true}`; both of tritonclient's faces believe it."""
    assert target.get("/v2/health/live").status_code == 200
    assert target.get("/v2/health/ready").status_code == 200
    with sync_http.InferenceServerClient(target.address) as client:
        assert client.is_server_live()
        assert client.is_server_ready()

    async def ask() -> tuple[bool, bool]:
        async with aio_http.InferenceServerClient(target.address) as client:
            return await client.is_server_live(), await client.is_server_ready()

    assert asyncio.run(ask()) == (True, True)


def test_server_metadata(target: Target) -> None:
    """Endpoints: name, version and extensions, each of them a string."""
    document = target.get("/v2").json()
    assert all(isinstance(document[key], str) for key in ("name", "version"))
    assert all(isinstance(name, str) for name in document.get("extensions", []))
    with sync_http.InferenceServerClient(target.address) as client:
        assert client.get_server_metadata() == document


def test_model_metadata(model: Model) -> None:
    """Endpoints: name, versions, platform, inputs and outputs; the same for the version that it names."""
    described = model.metadata
    assert described["name"] == model.name
    assert isinstance(described.get("platform", ""), str)
    for tensor in (*described["inputs"], *described["outputs"]):
        assert set(tensor) >= {"name", "datatype", "shape"}
        assert all(type(size) is int and size >= -1 for size in tensor["shape"])
    with sync_http.InferenceServerClient(model.target.address) as client:
        assert client.get_model_metadata(model.name) == described
        for version in model.versions:
            assert model.target.get(f"{model.path}/versions/{version}").json() == described
            assert client.get_model_metadata(model.name, version) == described


def test_model_ready(model: Model) -> None:
    """Endpoints: `…/ready` is 200 for what serves. Point 9: 404 for a version that there is not."""
    for path in (model.path, *(f"{model.path}/versions/{version}" for version in model.versions)):
        assert model.target.get(f"{path}/ready").status_code == 200
    with sync_http.InferenceServerClient(model.target.address) as client:
        assert client.is_model_ready(model.name)
        assert client.is_model_ready(model.name, model.version)
        assert not client.is_model_ready(model.name, "987654")


def test_unknown_names(target: Target) -> None:
    """Point 9: an unknown model is 404. Point 3: the answer is `{"error": …}`."""
    for method, path in (
        ("GET", "/v2/models/nobody-here"),
        ("GET", "/v2/models/nobody-here/ready"),
        ("POST", "/v2/models/nobody-here/infer"),
        ("GET", "/v2/nowhere"),
    ):
        refused(target.raw(method, path), status=404)


def test_wrong_methods(target: Target, model: Model) -> None:
    """Point 3: the framework's own 405 is `{"error": …}` as well."""
    for method, path in (("GET", f"{model.path}/infer"), ("PUT", "/v2/health/live"), ("DELETE", model.path)):
        refused(target.raw(method, path), status=405)


def test_config(model: Model) -> None:
    """Endpoints: Triton's ModelConfig as JSON, whose tensors are those of the metadata without the batch axis."""
    model.target.needs("model_configuration")
    with sync_http.InferenceServerClient(model.target.address) as client:
        config = client.get_model_config(model.name)
        assert client.get_model_config(model.name, model.version) == config
    assert config["name"] == model.name
    batched = config["max_batch_size"] > 0
    for kind, tensors in (("input", model.inputs), ("output", model.outputs)):
        assert [entry["name"] for entry in config[kind]] == list(tensors)
        for entry in config[kind]:
            described = tensors[entry["name"]]
            assert entry["data_type"] == f"TYPE_{described['datatype'].replace('BYTES', 'STRING')}"
            shape = described["shape"][batched:]
            assert entry["dims"] == (shape or [1]), "no dims are empty"
            if not shape:
                assert entry["reshape"]["shape"] == []


def counts(document: dict[str, Any], model: Model) -> dict[str, int]:
    """Of the version that answers."""
    [found] = [e for e in document["model_stats"] if e["name"] == model.name and e["version"] == model.version]
    assert set(found["inference_stats"]) >= {
        "success", "fail", "queue", "compute_input", "compute_infer", "compute_output",
    }  # fmt: skip
    for duration in found["inference_stats"].values():
        assert all(type(duration[key]) is int for key in ("count", "ns"))
    by_size = {entry["batch_size"]: entry["compute_infer"]["count"] for entry in found["batch_stats"]}
    return {
        "rows": found["inference_count"],
        "executions": found["execution_count"],
        "successes": found["inference_stats"]["success"]["count"],
        "of three": by_size.get(3, 0),
        "last": found["last_inference"],
    }


def test_statistics(model: Model) -> None:
    """Endpoints: rows, executions and requests are counted; last_inference is in milliseconds since 1970. Point 4:
    `/v2/models/stats` is no model."""
    model.target.needs("statistics")
    rows = 3 if model.batched else 1
    with sync_http.InferenceServerClient(model.target.address) as client:
        before = counts(client.get_inference_statistics(model.name), model)
        document, tensors = model.request(model.draw(rows))
        for _ in range(2):
            assert model.infer(document, *tensors).status_code == 200
        after = counts(client.get_inference_statistics(model.name, model.version), model)
        assert counts(client.get_inference_statistics(), model) == after
    assert after["rows"] - before["rows"] == 2 * rows
    assert after["executions"] - before["executions"] == 2
    assert after["successes"] - before["successes"] == 2
    assert after["of three"] - before["of three"] == (2 if model.batched else 0)
    assert 1.7e12 < after["last"] < 1e13
    assert "model_stats" in model.target.get("/v2/models/stats").json()


def test_repository_index(target: Target, model: Model) -> None:
    """Endpoints: `{}`, an empty body and `{"ready": …}`; states are in capitals."""
    target.needs("model_repository")
    whole = target.raw("POST", "/v2/repository/index", b"")
    assert target.raw("POST", "/v2/repository/index", b"{}").json() == whole.json()
    ready = target.raw("POST", "/v2/repository/index", json.dumps({"ready": True}).encode()).json()
    assert ready == [entry for entry in whole.json() if entry.get("state") == "READY"]
    assert model.name in {entry["name"] for entry in ready}
    assert {entry.get("state", "UNAVAILABLE") for entry in whole.json()} <= {
        "READY",
        "UNAVAILABLE",
        "LOADING",
        "UNLOADING",
    }

    async def ask() -> Any:
        async with aio_http.InferenceServerClient(target.address) as client:  # which sends no body, and says octets
            return await client.get_model_repository_index()

    assert asyncio.run(ask()) == whole.json()


def test_infer_names_what_answered(model: Model) -> None:
    """Infer: model_name, model_version and an id that is echoed, and no id where none came."""
    document, tensors = model.request(model.draw())
    answer = model.infer(document | {"id": "an Ä of mine"}, *tensors)
    length = int(answer.headers.get("inference-header-content-length", len(answer.content)))
    header = json.loads(answer.content[:length])
    assert (header["model_name"], header["id"]) == (model.name, "an Ä of mine")
    if model.versions:
        assert header["model_version"] == model.version, "the latest"
    answer = model.infer(document, *tensors)
    length = int(answer.headers.get("inference-header-content-length", len(answer.content)))
    assert not json.loads(answer.content[:length]).get("id")
