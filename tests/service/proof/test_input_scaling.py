"""A model that standardises its own input: clients send bytes, and get what the PyTorch model makes of floats."""

from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tritonclient.http as triton
from PIL import Image

from fold.convert import Target, convert
from fold.inputs.scaling import parse_scaling
from fold.sources.source import Source
from models import digits
from support.folding import architecture, randomise

ROWS = 40


@pytest.fixture(scope="module")
def module() -> torch.nn.Module:
    torch.manual_seed(0)
    return randomise(architecture("cnn"), seed=4, hostile=False)


@pytest.fixture(scope="module")
def repository(module: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`digits`, standardised by the numbers of its checkpoint's preprocessing, channels last."""
    folder = tmp_path_factory.mktemp("normalised")
    digits.save(folder / "cnn.pt", module, reached=0.0, record={"arch_args": {}})
    source = Source(folder / "cnn.pt", "models.cnn:cnn", input_scaling=parse_scaling("preprocessing", "nhwc"))
    conversion = convert(source, Target(folder / "repository", "digits"), samples=4, provider="cpu")
    assert conversion.path is not None
    found = conversion.report.normalization
    assert found is not None
    assert (found.scale, found.shift, found.reason) == ("folded", "none", None)
    return folder / "repository"


@pytest.fixture(scope="module")
def running(repository: Path, start: Callable[..., Any]) -> Iterator[Any]:
    with start(repository) as service:
        yield service


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    """Held-out digits as bytes, N, H, W."""
    images, _ = digits.held_out()
    return np.round(255 * images[:ROWS, 0]).astype(np.uint8)


@pytest.fixture(scope="module")
def logits(module: torch.nn.Module, pixels: np.ndarray) -> np.ndarray:
    """Of the PyTorch model on floats."""
    with torch.inference_mode():
        return np.asarray(module(torch.tensor(pixels[:, None] / 255, dtype=torch.float32)).numpy())


def tensor(array: np.ndarray, datatype: str, *, binary: bool = True) -> Any:
    return triton.InferInput("x", list(array.shape), datatype).set_data_from_numpy(array, binary_data=binary)


@pytest.mark.parametrize("binary", [True, False])
def test_raw_bytes_are_classified_as_floats_are(
    running: Any, pixels: np.ndarray, logits: np.ndarray, binary: bool
) -> None:
    with triton.InferenceServerClient(running.address) as client:
        (taken,) = client.get_model_metadata("digits")["inputs"]
        assert taken == {"name": "x", "datatype": "UINT8", "shape": [-1, 8, 8, 1]}
        sent = tensor(pixels[..., None], "UINT8", binary=binary)
        answered = client.infer("digits", [sent]).as_numpy("output")
    np.testing.assert_array_equal(answered.argmax(1), logits.argmax(1))
    np.testing.assert_allclose(answered, logits, rtol=0, atol=1e-5 * np.abs(logits).max())


def test_they_are_a_quarter_of_the_traffic(pixels: np.ndarray) -> None:
    carried = []
    for array, datatype in ((pixels[..., None], "UINT8"), ((pixels[:, None] / 255).astype(np.float32), "FP32")):
        body, header = triton.InferenceServerClient.generate_request_body([tensor(array, datatype)])
        carried.append(len(body) - header)
    assert carried == [ROWS * 8 * 8, 4 * ROWS * 8 * 8]


def test_what_is_no_byte_is_refused(running: Any) -> None:
    for value in (256, -1, 0.5):
        entry = {"name": "x", "datatype": "UINT8", "shape": [1, 8, 8, 1], "data": [value] * 64}
        answer = running.post("/v2/models/digits/infer", json={"inputs": [entry]})
        assert answer.status_code == 400, answer.text


def test_an_image_body_becomes_bytes(running: Any, pixels: np.ndarray, logits: np.ndarray) -> None:
    """Nothing is standardised twice."""
    file = BytesIO()
    Image.fromarray(pixels[7]).save(file, "PNG")
    answer = running.post("/v1/models/digits:predict", content=file.getvalue(), headers={"Content-Type": "image/png"})
    assert answer.status_code == 200, answer.text
    (found,) = answer.json()["predictions"]
    assert found["index"] == int(logits[7].argmax())
    expected = torch.softmax(torch.tensor(logits[7]), 0).numpy()
    np.testing.assert_allclose(list(found["probabilities"].values()), expected, rtol=0, atol=1e-5)


def test_the_proof_over_http_covers_it(running: Any, pixels: np.ndarray) -> None:
    drawn = running.post("/v2/models/digits/equivalence", json={"samples": 5, "parts": ["algebra", "rounding"]})
    assert drawn.json()["equivalent"] is True, drawn.text
    assert drawn.json()["algebra"]["holds"] is True
    entry = {"name": "x", "datatype": "UINT8", "shape": [ROWS, 8, 8, 1], "data": pixels.ravel().tolist()}
    given = running.post("/v2/models/digits/equivalence", json={"inputs": [entry]}).json()
    assert (given["equivalent"], given["samples"]) == (True, ROWS)


@pytest.mark.usefixtures("wrong_relu")
def test_the_exported_graph_must_agree_with_pytorch(running: Any) -> None:
    """R and U of a PyTorch reference are one code; part A brings the second."""
    url, asked = "/v2/models/digits/equivalence", {"samples": 4}
    assert running.post(url, json=asked).json()["equivalent"] is True, "R is PyTorch's, and right"
    verdict = running.post(url, json={**asked, "parts": ["algebra"]}).json()
    assert verdict["equivalent"] is False
    assert verdict["algebra"]["holds"], "both graphs are computed wrongly in the same way"
    assert verdict["message"].startswith("NOT proven: the reference is in doubt: output ")
    assert "of the exported graph is " in verdict["message"]
    assert "(Relu)" in verdict["located"]["layer"]
