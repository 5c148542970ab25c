"""What the configuration and the statistics say of a service, held against what was asked of it."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fold.artifact.directory import read_version
from fold.artifact.triton import write_triton_config
from service.batching.merging import BatchStats
from service.telemetry.statistics import ModelStatistics

ROWS = {"inputs": [{"name": "x", "shape": [2, 3], "datatype": "FP32", "data": [1, 2, 3, 4, 5, 6]}]}
SECOND = 1_000_000_000


def batch(rows: int, *queued: float, failures: int = 0) -> BatchStats:
    return BatchStats(rows, list(queued), merging=0.25, inference=1.0, splitting=0.5, failures=failures)


def test_a_request_is_charged_its_wait_and_the_whole_of_its_batch() -> None:
    statistics = ModelStatistics()
    statistics.add(batch(5, 0.5, 0.125), 1e9)
    statistics.add(batch(5, 0.0), 1e9)
    statistics.add(batch(1, 0.0), 1e9)
    found = statistics.to_dict("m", "1")
    assert (found["inference_count"], found["execution_count"]) == (11, 3)
    assert found["inference_stats"] == {
        "success": {"count": 4, "ns": 4 * 1.75 * SECOND + 0.625 * SECOND},
        "fail": {"count": 0, "ns": 0},
        "queue": {"count": 4, "ns": 0.625 * SECOND},
        "compute_input": {"count": 4, "ns": SECOND},
        "compute_infer": {"count": 4, "ns": 4 * SECOND},
        "compute_output": {"count": 4, "ns": 2 * SECOND},
        "cache_hit": {"count": 0, "ns": 0},
        "cache_miss": {"count": 0, "ns": 0},
    }
    assert (found["response_stats"], found["memory_usage"]) == ({}, [])
    assert [entry["batch_size"] for entry in found["batch_stats"]] == [1, 5]
    assert found["batch_stats"][1]["compute_infer"] == {"count": 2, "ns": 2 * SECOND}


def test_what_fails_is_counted_apart() -> None:
    statistics = ModelStatistics()
    statistics.add(batch(1, 0.25, failures=1), 1e9)
    found = statistics.to_dict("m", "1")
    assert (found["inference_count"], found["execution_count"], found["batch_stats"]) == (0, 0, [])
    assert found["inference_stats"]["fail"] == {"count": 1, "ns": 2 * SECOND}
    assert found["inference_stats"]["success"]["count"] == 0
    statistics.add(batch(4, 0.0, 0.0, 0.0, 0.0, failures=1), 1e9)
    found = statistics.to_dict("m", "1")
    assert (found["inference_count"], found["execution_count"]) == (3, 1)
    assert (found["inference_stats"]["fail"]["count"], found["inference_stats"]["success"]["count"]) == (2, 3)


def test_a_request_that_was_cut_into_parts_is_one() -> None:
    statistics = ModelStatistics()
    statistics.add(batch(64, 0.0), 1e9)
    statistics.add(batch(36), 1e9)
    found = statistics.to_dict("m", "1")
    assert (found["inference_count"], found["execution_count"]) == (100, 2)
    assert found["inference_stats"]["success"] == {"count": 1, "ns": 2 * 1.75 * SECOND}


def test_statistics_of_one_model_of_all_and_of_none(service: Any) -> None:
    def of(path: str) -> dict[str, dict[str, Any]]:
        return {entry["name"]: entry for entry in service.get(path).json()["model_stats"]}

    before = of("/v2/models/free/stats")["free"]
    for _ in range(3):
        assert service.post("/v2/models/free/infer", json=ROWS).status_code == 200
    index = {"inputs": [{"name": "index", "shape": [1], "datatype": "INT64", "data": [10]}]}
    failed = of("/v2/models/pick/stats")["pick"]["inference_stats"]["fail"]["count"]
    assert service.post("/v2/models/pick/infer", json=index).status_code == 500
    everything = of("/v2/models/stats")
    assert everything["free"] == of("/v2/models/free/versions/1/stats")["free"]
    assert everything["free"]["inference_count"] - before["inference_count"] == 6
    assert everything["pick"]["inference_stats"]["fail"]["count"] - failed == 1
    assert everything["free"]["inference_stats"]["compute_infer"]["ns"] > 0
    assert "broken" not in everything
    assert service.get("/v2/models/broken/stats").status_code == 503
    assert service.get("/v2/models/nobody/stats").status_code == 404
    assert service.get("/v2/models/free/versions/9/stats").status_code == 404


def test_the_configuration_tells_of_this_service(repository: Path, start: Callable[..., Any]) -> None:
    with start(repository, max_batch_size=16, timeout_seconds=2.5, queue_rows=99) as service:
        config = service.get("/v2/models/net/config").json()
        assert (config["platform"], config["backend"]) == ("onnxruntime_onnx", "onnxruntime")
        assert config["max_batch_size"] == 16
        assert config["input"] == [{"name": "image", "data_type": "TYPE_FP32", "dims": [1, 8, 8]}]
        assert config["output"] == [
            {"name": "scores", "data_type": "TYPE_FP32", "dims": [10], "label_filename": "1/labels.txt"}
        ]
        assert [group["kind"] for group in config["instance_group"]] == ["KIND_CPU"]
        policy = config["dynamic_batching"]["default_queue_policy"]
        assert (policy["default_timeout_microseconds"], policy["max_queue_size"]) == (2_500_000, 99)
        single = service.get("/v2/models/single/versions/1/config").json()
        assert single["max_batch_size"] == 0
        assert single["input"] == [{"name": "x", "data_type": "TYPE_FP32", "dims": [4]}]
        assert "dynamic_batching" not in single
        assert service.get("/v2/models/text/config").json()["input"][0]["data_type"] == "TYPE_STRING"
        [scalar] = service.get("/v2/models/pick/config").json()["output"]
        assert (scalar["dims"], scalar["reshape"]) == ([1], {"shape": []}), "Triton's tools take no empty dims"


@pytest.mark.parametrize(
    ("policy", "told"),
    [
        ("latest:2", {"latest": {"num_versions": 2}}),
        ("all", {"all": {}}),
        ("1,7", {"specific": {"versions": [1, 7]}}),
    ],
)
def test_the_configuration_tells_the_version_policy(
    policy: str, told: dict[str, Any], repository: Path, start: Callable[..., Any]
) -> None:
    with start(repository, version_policy=policy) as service:
        assert service.get("/v2/models/net/config").json()["version_policy"] == told


@pytest.mark.parametrize("name", ["net", "pair", "single", "text", "upper", "pick"])
def test_tritons_own_file_says_the_same_of_the_tensors(
    name: str, repository: Path, tmp_path: Path, service: Any
) -> None:
    manifest = read_version(repository / name / "1").manifest
    write_triton_config(tmp_path, manifest)
    text = (tmp_path / "config.pbtxt").read_text()
    config = service.get(f"/v2/models/{name}/config").json()
    assert f"max_batch_size: {config['max_batch_size']}\n" in text
    written = re.findall(r'name: "(\w+)" data_type: (\w+) dims: \[ (.*?) \]( reshape: { shape: \[ \] })?', text)
    told = [
        (entry["name"], entry["data_type"], entry["dims"], "reshape" in entry)
        for entry in (*config["input"], *config["output"])
    ]
    assert [(n, t, [int(d) for d in dims.split(", ")], bool(scalar)) for n, t, dims, scalar in written] == told


def test_the_settings_bound_the_rows_of_a_request(repository: Path, start: Callable[..., Any]) -> None:
    with start(repository, max_batch_size=2, max_request_rows=5) as service:
        for rows, status in ((5, 200), (6, 400)):
            body = {"inputs": [{"name": "x", "shape": [rows, 1], "datatype": "FP32", "data": list(range(rows))}]}
            answer = service.post("/v2/models/free/infer", json=body)
            assert answer.status_code == status, answer.text
            if status == 200:
                np.testing.assert_array_equal(answer.json()["outputs"][0]["data"], np.arange(rows))
        assert "6 rows came, at most 5 are taken" in answer.json()["error"]
        [statistics] = service.get("/v2/models/free/stats").json()["model_stats"]
        assert {entry["batch_size"] for entry in statistics["batch_stats"]} == {1, 2}
