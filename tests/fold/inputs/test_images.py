"""How an image becomes a tensor: resized, cut out of its centre, laid out; and what a preprocessing may not say."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from fold.artifact.manifest import Preprocessing, TensorSpec
from fold.errors import BnfoldError
from fold.inputs.images import decode_image, image_tensor, read_preprocessing, refuse_misfit
from fold.inputs.scaling import Numbers, ResolvedScaling, unscaled

RANDOM = np.random.default_rng(9)
HOW: dict[str, Any] = {"input": "x", "mode": "RGB", "height": 20, "width": 28}
CROPPED = {**HOW, "resize": 30, "crop": "center"}


def picture(width: int, height: int) -> Image.Image:
    return Image.fromarray(RANDOM.integers(0, 256, (height, width, 3)).astype(np.uint8))


@pytest.mark.parametrize(
    ("size", "resized", "corner"),
    [
        ((61, 40), (45, 30), (8, 5)),  # int(30 * 61 / 40) = 45, and (45 - 28) / 2 is rounded to the even 8
        ((40, 61), (30, 45), (1, 12)),
        ((30, 30), (30, 30), (1, 5)),
        ((15, 17), (30, 34), (1, 7)),
    ],
)
def test_the_shorter_edge_is_resized_and_the_centre_cut(size: Any, resized: Any, corner: Any) -> None:
    """As torchvision's Resize(30) and CenterCrop((20, 28)) do."""
    image = picture(*size)
    expected = np.asarray(image.resize(resized, Image.Resampling.BILINEAR))
    left, top = corner
    found = decode_image(image, Preprocessing(**CROPPED))
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, expected[top : top + 20, left : left + 28])


def test_without_it_an_image_is_resized_to_what_is_wanted() -> None:
    image = picture(61, 40)
    expected = np.asarray(image.resize((28, 20), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(decode_image(image, Preprocessing(**HOW)), expected)


def test_an_image_that_would_become_huge_is_refused() -> None:
    with pytest.raises(ValueError, match="1x9000 pixels would become 300x2700000, more than 67108864"):
        decode_image(Image.new("L", (1, 9000)), Preprocessing(**{**CROPPED, "resize": 300}))


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_the_layout_is_that_of_the_input(mode: str) -> None:
    how = Preprocessing(**{**HOW, "mode": mode, "scale": 0.5, "mean": [1.0], "std": [0.25]})
    pixels = decode_image(picture(28, 20), how)
    first = image_tensor(pixels, how, "FP32")
    last = image_tensor(pixels, how.model_copy(update={"layout": "nhwc"}), "FP32")
    assert (first.shape[1], last.shape[3]) == (how.channels, how.channels)
    np.testing.assert_array_equal(last, first.transpose(0, 2, 3, 1))
    np.testing.assert_array_equal(last[0].reshape(pixels.shape), (pixels * 0.5 - 1) / 0.25)
    as_bytes = how.model_copy(update={"scale": 1.0, "mean": (0.0,), "std": (1.0,), "layout": "nhwc"})
    sent = image_tensor(pixels, as_bytes, "UINT8")
    assert sent.dtype == np.uint8
    np.testing.assert_array_equal(sent[0].reshape(pixels.shape), pixels)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"crop": "center"}, "resize and crop belong together"),
        ({"resize": 30}, "resize and crop belong together"),
        ({"resize": 27, "crop": "center"}, "smaller than what is to be cut out"),
        ({"resize": 30, "crop": "top"}, "'center'"),
        ({"mean": [0.5, 0.5]}, "one number, or one for each channel"),
    ],
)
def test_a_preprocessing_that_describes_nothing(changed: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=words):
        Preprocessing(**HOW, **changed)
    (tmp_path / "p.json").write_text(json.dumps({**HOW, **changed}))
    with pytest.raises(BnfoldError) as error:
        read_preprocessing(tmp_path / "p.json", {}, ["x"])
    assert "\n" not in str(error.value)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("datatype", "shape", "changed", "words"),
    [
        ("FP32", (-1, 3, 20, 28), {}, None),
        ("FP32", (-1, 3, -1, -1), {}, None),
        ("UINT8", (-1, 20, 28, 3), {"layout": "nhwc", "scale": 1}, None),
        ("FP32", (-1, 20, 28, 3), {}, r"converts an image to \[1, 3, 20, 28\], and input 'x' takes \[-1, 20, 28, 3\]"),
        ("FP32", (-1, 3, 20, 28), {"mode": "L"}, r"converts an image to \[1, 1, 20, 28\]"),
        ("FP32", (-1, 1680), {}, r"takes \[-1, 1680\]"),
        ("UINT8", (-1, 3, 20, 28), {}, "takes UINT8, unscaled pixels; give scale 1, mean 0 and std 1"),
    ],
)
def test_a_preprocessing_must_make_what_the_input_takes(
    datatype: str, shape: tuple[int, ...], changed: dict[str, Any], words: str | None
) -> None:
    how, spec = Preprocessing(**{**HOW, **changed}), TensorSpec(name="x", datatype=datatype, shape=shape)
    if words is None:
        refuse_misfit(how, spec, "p.json")
        return
    with pytest.raises(BnfoldError, match=f"p.json: .*{words}"):
        refuse_misfit(how, spec, "p.json")


@pytest.mark.parametrize(
    ("said", "contradicts"),
    [
        ({}, False),
        ({"scale": 0.00392157, "mean": [0.5], "std": [0.25]}, False),
        ({"scale": 1, "mean": [127.5], "std": [63.75]}, False),  # the same map, in units of pixels
        ({"scale": 1, "mean": [0], "std": [1]}, False),  # raw as it is
        ({"scale": 0.00392157}, True),
        ({"mean": [0.5], "std": [0.26]}, True),
    ],
)
def test_numbers_of_a_preprocessing_and_of_the_graph_must_agree(said: dict[str, Any], contradicts: bool) -> None:
    how, resolved = Preprocessing(**HOW, **said), ResolvedScaling("x", Numbers(1 / 255, (0.5,) * 3, (0.25,)), "nhwc")
    if contradicts:
        with pytest.raises(
            BnfoldError, match=r"--normalize: mean=0.5,0.5,0.5,std=0.25,scale=.* contradicts the prepro"
        ):
            unscaled(how, resolved)
        return
    left = unscaled(how, resolved)
    assert (left.scale, left.mean, left.std, left.layout) == (1.0, (0.0,), (1.0,), "nhwc")
    assert (left.height, left.width, left.mode) == (20, 28, "RGB")
