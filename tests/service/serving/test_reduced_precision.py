"""A model in float16 is served and proven as any other, by a real process, and its answers name the precision."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.service.serving import PATIENCE

PROVE = "/v2/models/net/equivalence"


@pytest.fixture(scope="module")
def reduced(tmp_path_factory: pytest.TempPathFactory, make_net: Callable[..., None]) -> Path:
    from fold.convert import Target, convert  # noqa: PLC0415  # what it imports few tests need
    from fold.sources.source import Source  # noqa: PLC0415  # what it imports few tests need

    folder = tmp_path_factory.mktemp("reduced")
    make_net(folder / "source")
    source = Source(folder / "source" / "net" / "1" / "unfolded.onnx")
    conversion = convert(source, Target(folder / "repository", "net"), precision="fp16", provider="cpu")
    assert conversion.path is not None, conversion.certificate.message
    return folder / "repository"


def test_float16_is_served_behind_float32_and_proven(reduced: Path, start: Callable[..., Any]) -> None:
    images = np.random.default_rng(3).standard_normal((3, 1, 8, 8)).astype(np.float32)
    tensor = {"name": "image", "shape": [3, 1, 8, 8], "datatype": "FP32", "data": images.ravel().tolist()}
    with start(reduced, shadow=1.0) as service:
        assert "its certificate does not hold" not in "".join(service.lines)
        output = service.post("/v2/models/net/infer", json={"inputs": [tensor]}).json()["outputs"][0]
        assert (output["datatype"], output["shape"]) == ("FP32", [3, 10])
        verdict = service.post(PROVE, json={"samples": 5, "parts": ["algebra", "rounding"]}).json()
        assert verdict["equivalent"], verdict["message"]
        assert verdict["precision"] == "fp16"
        assert "on cpu in fp16:" in verdict["message"]
        assert verdict["rounding"]["holds"]
        assert verdict["max_relative_error"] > 1e-6, "float32 would be nearer"
        assert verdict["decision_agreement"] == 1
        given = service.post(PROVE, json={"inputs": [tensor]}).json()
        assert (given["equivalent"], given["precision"]) == (True, "fp16")
        deadline = time.monotonic() + PATIENCE
        while not service.metric('bnfold_shadow_rows_total{model="net",version="1"}') and time.monotonic() < deadline:
            service.post("/v2/models/net/infer", json={"inputs": [tensor]})
            time.sleep(0.1)
        assert service.metric('bnfold_shadow_rows_total{model="net",version="1"}')
        for kind in ("error", "decision"):
            assert service.metric(f'bnfold_shadow_disagreements_total{{kind="{kind}",model="net",version="1"}}') == 0


@pytest.mark.usefixtures("wrong_relu")
def test_a_reference_in_doubt_is_seen_with_the_limits_of_float16(reduced: Path, start: Callable[..., Any]) -> None:
    with start(reduced) as service:
        verdict = service.post(PROVE, json={"samples": 4}).json()
        assert (verdict["equivalent"], verdict["precision"]) == (False, "fp16")
        assert "is in doubt: output 'scores' of the unfolded model is " in verdict["message"]
        assert " apart in float64 and in fp16, and rounding explains at most " in verdict["message"]
        (output,) = verdict["outputs"]
        assert output["unfolded_limit"] > 8 * 2.0**-10 * 0.1, "float16's, and not float32's"
