"""The proof over HTTP, for the graph that serves; the metrics and the page that show what came of it."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.equivalence import MAX_WAITING, in_chunks

PROVE = "/v2/models/net/equivalence"
RANDOM = np.random.default_rng(5)


def test_an_empty_body_is_enough(service: Any) -> None:
    verdict = service.post(PROVE).json()
    assert (verdict["model_name"], verdict["model_version"]) == ("net", "1")
    assert verdict["equivalent"] is True
    assert (verdict["samples"], verdict["seed"]) == (16, 0)
    assert (verdict["provider"], verdict["precision"]) == ("cpu", "fp32")
    (output,) = verdict["outputs"]
    assert output["name"] == "scores"
    assert 0 < output["folded_error"] <= output["limit"]
    assert service.post("/v2/models/net/versions/1/equivalence", json={}).json()["equivalent"] is True
    assert service.post("/v2/models/net/versions/3/equivalence").status_code == 404


def test_samples_and_seed(service: Any) -> None:
    one, same, other = (service.post(PROVE, json={"samples": 200, "seed": s}).json() for s in (3, 3, 4))
    assert (one["samples"], one["seed"]) == (200, 3)
    assert one["outputs"] == same["outputs"]
    assert one["outputs"] != other["outputs"]


def test_the_callers_own_inputs_as_json_and_as_binary(service: Any) -> None:
    image = RANDOM.normal(size=(70, 1, 8, 8)).astype(np.float32)
    tensor = {"name": "image", "shape": list(image.shape), "datatype": "FP32"}
    plain = service.post(PROVE, json={"inputs": [{**tensor, "data": image.ravel().astype(float).tolist()}]}).json()
    header = json.dumps({"inputs": [{**tensor, "parameters": {"binary_data_size": image.nbytes}}]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(header))}
    binary = service.post(PROVE, content=header + image.tobytes(), headers=headers).json()
    assert (plain["equivalent"], plain["samples"], plain["seed"]) == (True, 70, None)
    assert binary["outputs"] == plain["outputs"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"samples": 0}, "samples is 0; expected a whole number from 1 to 256"),
        ({"samples": 257}, "samples is 257; expected a whole number from 1 to 256"),
        ({"samples": "8"}, "samples is '8'"),
        ({"seed": -1}, "seed is -1; expected a whole number from 0"),
        ({"seed": True}, "seed is True"),
        ({"sample": 8}, "'sample' is not known here; expected {\"samples\": n"),
        ([], "the body is a JSON list; expected"),
        ({"inputs": [{"name": "image", "shape": [1], "datatype": "FP32", "data": [1]}]}, "[-1, 1, 8, 8] is expected"),
    ],
)
def test_refusals_name_what_came_and_what_was_expected(service: Any, body: Any, message: str) -> None:
    answer = service.post(PROVE, json=body)
    assert (answer.status_code, message in answer.json()["error"]) == (400, True), answer.text


def test_another_model_than_the_reference_is_found_out(
    tmp_path: Path, start: Callable[..., Any], make_net: Callable[..., None]
) -> None:
    make_net(tmp_path, "net", wrong=True)
    with start(tmp_path) as service:
        assert "bnfold_equivalent{" not in service.get("/metrics").text, "nothing is said before the first check"
        assert "checked when it was folded" in service.get("/").text
        verdict = service.post(PROVE).json()
        assert verdict["equivalent"] is False
        assert "NOT equivalent" in verdict["message"]
        labels = 'model="net",version="1"'
        assert service.metric(f"bnfold_equivalent{{{labels}}}") == 0
        error, limit = (service.metric(f'bnfold_equivalence_{key}{{model="net",output="scores",version="1"}}')
                        for key in ("error", "limit"))  # fmt: skip
        assert error == verdict["outputs"][0]["folded_error"] > limit == verdict["outputs"][0]["limit"]
        assert service.metric(f"bnfold_equivalence_timestamp_seconds{{{labels}}}") > 1.7e9
        page = service.get("/").text
        assert "NOT equivalent" in page
        assert "checked when it was folded" not in page


def test_checks_run_one_at_a_time_and_a_few_may_wait(repository: Path, start: Callable[..., Any]) -> None:
    """Many at once: each is either proven or told to come back, and predictions go on meanwhile."""
    with start(repository) as service, ThreadPoolExecutor(16) as pool:
        calls = [pool.submit(service.post, PROVE, json={"samples": 256, "seed": seed}) for seed in range(16)]
        row = {"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}
        for _ in range(20):
            assert service.post("/v2/models/free/infer", json={"inputs": [row]}).status_code == 200
        answers = [call.result() for call in calls]
        proven = [answer for answer in answers if answer.status_code == 200]
        refused = [answer for answer in answers if answer.status_code == 429]
        assert len(proven) + len(refused) == 16
        assert len(proven) >= MAX_WAITING
        assert all(answer.json()["equivalent"] for answer in proven)
        assert all(answer.headers["retry-after"] == "1" for answer in refused)


def test_without_torch_a_torch_reference_is_501(
    tmp_path: Path, start: Callable[..., Any], make_net: Callable[..., None]
) -> None:
    """Where the reference cannot be loaded for want of a package, the answer names the package."""
    make_net(tmp_path, "net")
    code = """
import sys
import fold.verify
from service.app import serve
from service.settings import load_settings
def load_reference(version):
    raise ModuleNotFoundError("No module named 'torch'", name="torch")
fold.verify.load_reference = load_reference
sys.exit(serve(load_settings()))
"""
    with start(tmp_path, code=code) as service:
        answer = service.post(PROVE)
        assert answer.status_code == 501
        assert "torch is not installed here" in answer.json()["error"]


def test_a_reference_that_fails_is_an_answer_not_an_end(
    tmp_path: Path, start: Callable[..., Any], make_net: Callable[..., None]
) -> None:
    make_net(tmp_path, "net")
    with start(tmp_path) as service:
        (tmp_path / "net" / "1" / "unfolded.onnx").write_bytes(b"no graph")
        for _ in range(2):
            answer = service.post(PROVE)
            assert (answer.status_code, "error" in answer.json()) == (500, True)
        image = {"name": "image", "shape": [1, 1, 8, 8], "datatype": "FP32", "data": [0] * 64}
        assert service.post("/v2/models/net/infer", json={"inputs": [image]}).status_code == 200


def test_chunks_are_put_together_in_order() -> None:
    sizes = []

    def run(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        sizes.append(len(arrays["x"]))
        return {"y": arrays["x"] * 2}

    x = np.arange(10)
    np.testing.assert_array_equal(in_chunks(run, {"x": x}, 4)["y"], 2 * x)
    assert sizes == [4, 4, 2]
