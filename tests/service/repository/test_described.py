"""What the service tells of the versions on disk, of their BatchNorms, and of an example."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from fold.artifact import sha256


def test_versions_with_state_reason_digests_and_origin(
    tmp_path: Path, folded: Path, start: Callable[..., Any], make_net: Callable[..., None]
) -> None:
    shutil.copytree(folded, tmp_path / "repository")
    repository = tmp_path / "repository"
    shutil.copytree(repository / "net" / "2", repository / "net" / "7")
    manifest = repository / "net" / "7" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"name": "net"', '"name": "<b>net</b>"'))
    (repository / "net" / "9").mkdir()
    make_net(repository, "net", version=12)
    file = repository / "net" / "12" / "model.onnx"
    file.write_bytes(file.read_bytes()[:-1])
    with start(repository) as service:
        answer = service.get("/v2/repository/models/net/versions").json()
        versions = {each["version"]: each for each in answer["versions"]}
        assert list(versions) == ["1", "2", "7", "9", "12"]
        assert {version: each["state"] for version, each in versions.items()} == {
            "1": "UNAVAILABLE", "2": "READY", "7": "UNAVAILABLE", "9": "UNAVAILABLE", "12": "UNAVAILABLE",
        }  # fmt: skip
        assert versions["1"]["reason"] == "it is not loaded; version_policy is latest"
        assert "was changed after it was written" in versions["7"]["reason"]
        assert "manifest.json: cannot be read" in versions["9"]["reason"]
        assert "model.onnx: was changed" in versions["12"]["reason"]
        served = versions["2"]
        assert (served["device"], served["reason"], served["precision"]) == ("cpu", "", "fp32")
        assert served["files"]["model.onnx"] == sha256(repository / "net" / "2" / "model.onnx")
        assert served["digest"] == json.loads((repository / "net" / "2" / "manifest.json").read_text())["digest"]
        assert served["source"]["file"].endswith("unfolded.onnx")
        assert {"onnx", "onnxruntime"} <= served["tools"].keys()
        assert (served["batchnorms"], served["folded"], served["kept"]) == (1, 1, 0)
        assert served["equivalent"] is True
        assert 0 < served["outputs"][0]["folded_error"] <= served["outputs"][0]["limit"]
        plain = served.items()
        one = service.get("/v2/repository/models/net/versions/2").json()
        assert one.items() >= plain
        assert [entry["into"] for entry in one["fold"]["folded"]] == [["w", "w_bias"]]
        other = service.get("/v2/repository/models/net/versions/1").json()
        assert (other["state"], other["fold"]) == ("UNAVAILABLE", one["fold"]), "only on disk"
        assert service.get("/v2/repository/models/net/versions/9").json()["fold"] == {"folded": [], "kept": []}
        assert service.get("/v2/repository/models/net/versions/3").status_code == 404
        assert service.get("/v2/repository/models/other/versions").status_code == 404
        assert service.get("/v2/repository/models/..%2F/versions").status_code == 404


def test_batchnorms_and_their_statistics(service: Any, repository: Path) -> None:
    path = "/v2/models/net/batchnorms"
    plain = service.get(path).json()
    assert plain == {
        "batchnorms": 1,
        "folded": [{"name": "bn", "node": "b", "channels": 8, "into": ["w"]}],
        "kept": [],
    }
    graph = onnx.load(repository / "net" / "1" / "unfolded.onnx").graph
    weights = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
    for _ in range(2):
        answer = service.get(f"{path}?statistics=true").json()
        (one,) = answer["inspection"]["batchnorms"]
        for key, name in (("gamma", "gamma"), ("beta", "beta"), ("mean", "mean"), ("variance", "var")):
            assert one[key] == pytest.approx({"min": weights[name].min(), "max": weights[name].max()})
        assert one["negative"] == (weights["gamma"] < 0).sum()
    assert service.get("/v2/models/net/versions/1/batchnorms").json() == plain
    assert service.get("/v2/models/broken/batchnorms").status_code == 503


def test_one_batchnorm_as_it_is_drawn(folded: Path, start: Callable[..., Any]) -> None:
    graph = onnx.load(folded / "net" / "2" / "unfolded.onnx").graph
    gamma, var = (numpy_helper.to_array(each) for each in graph.initializer if each.name in ("gamma", "var"))
    with start(folded) as service:
        path = "/v2/models/net/batchnorms?number="
        detail = service.get(f"{path}1").json()["detail"]
        assert np.allclose(detail["factors"], gamma / np.sqrt(var + 1e-5), rtol=1e-4)
        assert sum(detail["distributions"]["mean"]["counts"]) == 8
        drawn = {key: [node["operator"] for node in detail[key]["nodes"]] for key in ("before", "after")}
        assert drawn["before"][:3] == ["BatchNormalization", "Conv", "Relu"]
        assert drawn["after"][:2] == ["Conv", "Relu"]
        for number in ("0", "2", "-1", "x", "1" * 5000):
            answer = service.get(path + number)
            assert (answer.status_code, "expected that of a BatchNorm, from 1 to 1" in answer.text) == (400, True)


def test_the_errors_of_layers(
    tmp_path: Path, folded: Path, start: Callable[..., Any], make_net: Callable[..., None]
) -> None:
    """Those of a right fold are of rounding; a wrong bias shows in its layer and behind it."""
    shutil.copytree(folded, tmp_path / "repository")
    make_net(tmp_path / "repository", "wrong", wrong=True)
    with start(tmp_path / "repository") as service:
        found = {name: service.get(f"/v2/models/{name}/layers").json() for name in ("net", "wrong")}
    names = [layer["name"] for layer in found["net"]["layers"]]
    assert (len(names), found["net"]["tensors"], found["net"]["rows"]) == (6, 6, 8)
    layers = {name: {layer["name"]: layer for layer in each["layers"]} for name, each in found.items()}
    assert all(0 <= layer["unfolded"] < 1e-5 for each in layers.values() for layer in each.values())
    shared = [layer["folded"] for layer in layers["net"].values() if layer["folded"] is not None]
    assert len(shared) == 5, "the tensor before the BatchNorm is gone"
    assert max(shared) < 1e-5
    wrong = [layer["folded"] for layer in layers["wrong"].values()]
    assert wrong[0] is None
    assert all(error > 1e-4 for error in wrong[1:])


def test_an_example_is_a_row_of_the_canary(folded: Path, start: Callable[..., Any]) -> None:
    with np.load(folded / "net" / "2" / "canary.npz") as canary:
        image = canary["input/image"]
    with start(folded) as service:
        body = service.get("/v2/models/net/example").json()
        (tensor,) = body["inputs"]
        assert (tensor["name"], tensor["shape"], tensor["datatype"]) == ("image", [1, 1, 8, 8], "FP32")
        assert np.array_equal(np.float32(tensor["data"]), image[0].ravel())
        assert service.post("/v2/models/net/infer", json=body).status_code == 200


def test_an_example_without_a_canary_is_drawn_if_json_can_hold_it(service: Any) -> None:
    for name in ("net", "free", "single", "pair", "pick"):
        body = service.get(f"/v2/models/{name}/example").json()
        assert service.post(f"/v2/models/{name}/infer", json=body).status_code == 200, name
    for name in ("text", "upper", "echo"):
        answer = service.get(f"/v2/models/{name}/example")
        assert (answer.status_code, "has no example" in answer.json()["error"]) == (404, True)
