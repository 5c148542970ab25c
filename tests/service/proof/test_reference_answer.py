"""`"reference": true`: the answer of the trained model in float64, beside the one that is served."""

import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator
from PIL import Image

from support.service.serving import HELD, held

PREDICT = "/v1/models/net:predict"
RANDOM = np.random.default_rng(8)


def png() -> bytes:
    file = io.BytesIO()
    Image.fromarray(RANDOM.integers(0, 256, (20, 30), np.uint8)).save(file, "PNG")
    return file.getvalue()


def test_both_answers_with_difference_and_margin(service: Any, repository: Path) -> None:
    rows = RANDOM.normal(size=(3, 1, 8, 8)).astype(np.float32)
    body = {"instances": rows.tolist()}
    answer = service.post(PREDICT, json={**body, "reference": True}).json()
    plain = service.post(PREDICT, json={**body, "reference": False}).json()
    assert plain.keys() == {"predictions"}
    assert service.post(PREDICT, json={**body, "reference": None}).json() == plain
    served, exact = np.array(answer["predictions"]), np.array(answer["reference"]["predictions"])
    assert np.abs(served - plain["predictions"]).max() < 1e-5
    graph = ReferenceEvaluator(onnx.load(repository / "net" / "1" / "unfolded.onnx"))
    assert np.abs(exact - graph.run(None, {"image": rows})[0]).max() < 1e-5
    assert (exact != exact.astype(np.float32)).any(), "float64"
    (output,) = answer["reference"]["outputs"]
    assert output["name"] == "scores"
    sent = served.astype(np.float32)  # JSON has the shortest decimals that are read as these numbers
    assert np.allclose(output["difference"], np.abs(exact - sent).max(axis=1), rtol=1e-9, atol=0)
    assert 0 < max(output["difference"]) < 1e-4
    highest = np.sort(exact, axis=1)
    assert np.allclose(output["margin"], highest[:, -1] - highest[:, -2])


def test_an_image_and_an_array_ask_by_the_query(service: Any) -> None:
    image = png()
    answer = service.post(f"{PREDICT}?reference=true", content=image, headers={"Content-Type": "image/png"}).json()
    (served,), (exact,) = answer["predictions"], answer["reference"]["predictions"]
    assert served["label"] == exact["label"]
    assert served["probabilities"] == pytest.approx(exact["probabilities"], abs=1e-5)
    assert answer["reference"]["outputs"][0]["margin"][0] > 0
    file = io.BytesIO()
    np.save(file, RANDOM.normal(size=(2, 1, 8, 8)).astype(np.float32))
    headers = {"Content-Type": "application/x-npy"}
    answer = service.post(f"{PREDICT}?reference=true", content=file.getvalue(), headers=headers).json()
    assert len(answer["reference"]["predictions"]) == 2


def test_models_without_batch_axis_classes_or_floats(service: Any) -> None:
    answer = service.post("/v1/models/single:predict", json={"instances": [[1, 2, 3, 5], [2] * 4], "reference": True})
    assert answer.json() == {
        "predictions": [[2, 4, 6, 10], [4] * 4],
        "reference": {
            "predictions": [[2, 4, 6, 10], [4] * 4],
            "outputs": [{"name": "y", "difference": [0, 0], "margin": [4, 0]}],
        },
    }
    answer = service.post("/v1/models/pick:predict", json={"instances": [3], "reference": True}).json()
    assert answer["reference"]["outputs"] == [{"name": "value", "difference": [0], "margin": None}]
    both = {"a": [1, 2], "b": [3, 5]}
    answer = service.post("/v1/models/pair:predict", json={"instances": [both], "reference": True}).json()
    assert answer["reference"]["predictions"] == answer["predictions"] == [{"sum": [4, 7], "difference": [-2, -3]}]


@pytest.mark.parametrize(
    ("status", "message", "body", "headers"),
    [
        (400, "reference is 'yes'; expected true or false", {"instances": [[1]], "reference": "yes"}, {}),
        (400, "asked for 257 rows; expected at most 256", {"instances": [[1]] * 257, "reference": True}, {}),
        (406, "there is no .npy", {"instances": [[1]], "reference": True}, {"Accept": "application/x-npy"}),
    ],
)
def test_refusals(service: Any, status: int, message: str, body: Any, headers: dict[str, str]) -> None:
    answer = service.post("/v1/models/free:predict", json=body, headers=headers)
    assert (answer.status_code, message in answer.json()["error"]) == (status, True), answer.text


def test_the_reference_waits_its_turn_behind_proofs_and_no_longer(
    tmp_path: Path, start: Callable[..., Any], make_slow: Callable[..., None]
) -> None:
    make_slow(tmp_path)
    rows = {"inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [HELD]}]}
    with start(tmp_path, equivalence_seconds=1) as service, held() as hold, ThreadPoolExecutor(1) as pool:
        check = pool.submit(service.post, "/v2/models/slow/equivalence", json=rows)
        hold.begun.wait()
        answer = service.post("/v1/models/slow:predict", json={"instances": [[0]], "reference": True})
        assert (answer.status_code, "not proven within 1 seconds" in answer.json()["error"]) == (504, True)
        assert service.post("/v1/models/slow:predict", json={"instances": [[0]]}).json() == {"predictions": [[0]]}
        assert check.result().status_code == 504
