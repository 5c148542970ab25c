"""The v1 convention: rows in, rows out; and images for the model that declares how to read them."""

import struct
import zlib
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image

RANDOM = np.random.default_rng(11)
LABELS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def predict(service: Any, model: str, *instances: Any) -> Any:
    answer = service.post(f"/v1/models/{model}:predict", json={"instances": list(instances)})
    assert answer.status_code == 200, answer.text
    return answer.json()["predictions"]


def scores(service: Any, image: np.ndarray) -> np.ndarray:
    """What infer gives for the same tensor."""
    data = {
        "name": "image",
        "shape": list(image.shape),
        "datatype": "FP32",
        "data": image.astype(float).ravel().tolist(),
    }
    output = service.post("/v2/models/net/infer", json={"inputs": [data]}).json()["outputs"][0]
    return np.array(output["data"]).reshape(output["shape"])


def encoded(pixels: np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    file = BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def send_image(service: Any, content: bytes, kind: str = "image/png", model: str = "net") -> Any:
    return service.post(f"/v1/models/{model}:predict", content=content, headers={"Content-Type": kind})


def test_rows_in_rows_out(service: Any) -> None:
    images = RANDOM.normal(size=(3, 1, 8, 8)).round(3)
    nested = predict(service, "net", *images.tolist())
    np.testing.assert_allclose(nested, scores(service, images), rtol=1e-5, atol=1e-6)
    flat = predict(service, "net", *images.reshape(3, 64).tolist())
    np.testing.assert_allclose(flat, nested, rtol=1e-6)
    assert predict(service, "net", *({"image": image} for image in images.tolist())) == nested
    assert predict(service, "pick", 3, 5) == [0.75, 1.25]
    assert predict(service, "free", [1, 2], [3, 4]) == [3, 7]


def test_several_inputs_and_outputs_go_by_name(service: Any) -> None:
    rows = predict(service, "pair", {"a": [1, 2], "b": [3, 4]}, {"a": [5, 6], "b": [7, 9]})
    assert rows == [{"sum": [4, 6], "difference": [-2, -2]}, {"sum": [12, 15], "difference": [-2, -3]}]


def test_without_a_batch_axis_an_instance_is_a_run(service: Any) -> None:
    assert predict(service, "single", [1, 2, 3, 4], [5, 6, 7, 8]) == [[2, 4, 6, 8], [10, 12, 14, 16]]


def test_non_finite_numbers_survive(service: Any) -> None:
    body = b'{"instances": [{"a": [NaN, 1], "b": [0, Infinity]}]}'
    answer = service.post("/v1/models/pair:predict", content=body)
    assert answer.text == '{"predictions":[{"sum":[NaN,Infinity],"difference":[NaN,-Infinity]}]}'


@pytest.mark.parametrize(
    ("model", "body", "message"),
    [
        ("net", {}, '"instances" is missing'),
        ("net", {"instances": []}, '"instances" is missing or no list with elements'),
        ("net", [1], "the body is a JSON list"),
        ("net", {"instances": [[1, 2]]}, "shape [1, 2] came, [-1, 1, 8, 8] is expected"),
        ("net", {"instances": [0]}, "shape [1] came, [-1, 1, 8, 8] is expected"),
        ("net", {"instances": [[0] * 64, [0] * 63]}, "a list on axis 1 has 63 elements, shape [2, 64] says 64"),
        ("net", {"instances": [[0] * 63 + ["0"]]}, "element 63 is '0'; FP32 expects numbers"),
        ("net", {"instances": [0] * 1025}, "1025 instances came, at most 1024 are taken"),
        ("net", {"instances": [{"picture": []}]}, "expected an object with 'image'"),
        ("pair", {"instances": [{"a": [1, 2]}]}, "instance 0 is {'a': [1, 2]}; expected an object with 'a', 'b'"),
        ("pair", {"instances": [[1, 2]]}, "instance 0 is [1, 2]; expected an object with 'a', 'b'"),
        ("single", {"instances": [[1, 2, 3, 4], [1]]}, "shape [1] came, [4] is expected"),
        ("pick", {"instances": [1.5]}, "element 0 is 1.5; INT64 expects whole numbers"),
    ],
)
def test_refusals_name_what_came_and_what_was_expected(service: Any, model: str, body: Any, message: str) -> None:
    answer = service.post(f"/v1/models/{model}:predict", json=body)
    assert answer.status_code == 400, answer.text
    assert message in answer.json()["error"]


def test_model_ready(service: Any) -> None:
    assert service.get("/v1/models/net").json() == {"name": "net", "ready": True}
    assert service.get("/v1/models/broken").status_code == 503


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_an_image_is_read_as_the_manifest_says(service: Any, kind: str) -> None:
    """Gray levels divided by 255, less 0.5, over 0.25; another size is resized and colours become gray."""
    pixels = RANDOM.integers(0, 256, (8, 8), np.uint8)
    content = encoded(pixels, kind)
    seen = np.asarray(Image.open(BytesIO(content)).convert("L"), float)
    answer = send_image(service, content, f"image/{kind.lower()}")
    (prediction,) = answer.json()["predictions"]
    expected = scores(service, ((seen / 255 - 0.5) / 0.25)[None, None])[0]
    probabilities = np.exp(expected) / np.exp(expected).sum()
    assert list(prediction["probabilities"]) == LABELS
    np.testing.assert_allclose(list(prediction["probabilities"].values()), probabilities, rtol=1e-4)
    assert prediction["index"] == int(expected.argmax())
    assert prediction["label"] == LABELS[prediction["index"]]
    assert prediction["probability"] == max(prediction["probabilities"].values())

    colours = np.repeat(np.repeat(np.full((8, 8), 77, np.uint8), 4, 0), 4, 1)[..., None].repeat(3, 2)
    (resized,) = send_image(service, encoded(colours, kind, **({"quality": 100} if kind == "JPEG" else {})),
                            f"image/{kind.lower()}").json()["predictions"]  # fmt: skip
    (plain,) = send_image(service, encoded(np.full((8, 8), 77, np.uint8))).json()["predictions"]
    assert resized["index"] == plain["index"]
    assert resized["probability"] == pytest.approx(plain["probability"], rel=1e-2)


def webp_bomb(width: int, height: int) -> bytes:
    """34 bytes of WebP, a right one as it comes from Pillow, which say that they are so large."""
    content = bytearray(encoded(np.zeros((8, 8), np.uint8), "WEBP", lossless=True))
    content[21:25] = struct.pack("<I", (width - 1) | (height - 1) << 14 | (content[24] & 0xF0) << 24)
    return bytes(content)


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header promises a great many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("content", "kind", "model", "status", "message"),
    [
        (b"no image", "image/png", "net", 400, "cannot be read as PNG"),
        (encoded(np.zeros((8, 8), np.uint8)), "image/jpeg", "net", 400, "cannot be read as JPEG"),
        (encoded(RANDOM.integers(0, 256, (64, 64), np.uint8))[:900], "image/png", "net", 400, "cannot be read as PNG"),
        (bomb(8000, 8000), "image/png", "net", 400, "8000x8000 pixels, at most 33554432 are taken"),
        (bomb(60000, 60000), "image/png", "net", 400, "more than the 33554432 pixels"),
        (webp_bomb(8000, 8000), "image/webp", "net", 400, "8000x8000 pixels, at most 33554432 are taken"),
        (webp_bomb(16383, 16383), "image/webp", "net", 400, "more than the 33554432 pixels"),
        (encoded(np.zeros((8, 8), np.uint8)), "image/webp", "net", 400, "cannot be read as WEBP"),
        (encoded(RANDOM.integers(0, 256, (64, 64), np.uint8), "WEBP")[:-99], "image/webp", "net", 400, "read as WEBP"),
        (b"GIF89a", "image/gif", "net", 415, "'image/gif' is not read here; expected image/png, image/jpeg"),
        (encoded(np.zeros((8, 8), np.uint8)), "image/png", "pair", 415, "declares no preprocessing"),
        (b"a,b\n1,2", "text/csv", "net", 415, "Content-Type 'text/csv' is not read here; expected JSON"),
    ],
    ids=str.split("noise other cut large bomb webp-large webp-bomb webp-other webp-cut gif undeclared csv"),
)
def test_images_that_are_refused(
    service: Any, content: bytes, kind: str, model: str, status: int, message: str
) -> None:
    answer = send_image(service, content, kind, model)
    assert (answer.status_code, message in answer.json()["error"]) == (status, True), answer.text
