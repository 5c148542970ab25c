"""Behind a proxy, under a URL prefix: whether the proxy takes the prefix away or leaves it."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import httpx
import numpy as np
import pytest
import tritonclient.http as triton

from fold.errors import BnfoldError
from service.settings import load_settings
from support.service.serving import PATIENCE

PREFIX = "/team/bnfold"


@pytest.fixture(scope="module")
def prefixed(repository: Path, start: Callable[..., Any]) -> Iterator[Any]:
    with start(repository, root_path=PREFIX) as service:
        yield service


@pytest.mark.parametrize("left", ["", PREFIX], ids=["taken away", "left"])
def test_every_route_is_found(prefixed: Any, left: str) -> None:
    pages = ("/", "/docs", "/metrics", "/openapi.json")
    for path in (*pages, "/v2", "/v2/health/ready", "/v2/models/net", "/v2/models/stats"):
        assert prefixed.get(left + path).status_code == 200, path
    body = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}]}
    assert prefixed.post(f"{left}/v2/models/free/infer", json=body).json()["outputs"][0]["data"] == [3]
    answer = prefixed.post(f"{left}/v1/models/free:predict", json={"instances": [[1, 2]]})
    assert answer.json() == {"predictions": [3]}
    for path in ("/nowhere", f"{PREFIX}{PREFIX}/v2"):
        missing = prefixed.get(left + path)
        assert (missing.status_code, list(missing.json())) == (404, ["error"])


def test_the_client_is_told_the_prefix_and_no_more(prefixed: Any) -> None:
    with triton.InferenceServerClient(prefixed.address + PREFIX) as client:
        assert client.is_server_ready()
        tensor = triton.InferInput("x", [1, 2], "FP32").set_data_from_numpy(np.array([[1, 2]], np.float32))
        assert client.infer("free", [tensor]).as_numpy("total") == [3]


def test_the_pages_name_and_link_what_is_there(prefixed: Any) -> None:
    for page in ("/", "/docs"):
        text = prefixed.get(PREFIX + page).text
        assert f"{prefixed.url}{PREFIX}/v1/models/" in text
        for link in re.findall(r'href="([^"]+)"', text):
            if not link.startswith("data:") and not link.endswith("/report"):  # these models have none
                assert not link.startswith("/"), "a link from the root would leave the prefix"
                assert httpx.get(urljoin(prefixed.url + PREFIX + page, link), timeout=PATIENCE).status_code == 200
    assert prefixed.get("/openapi.json").json()["servers"] == [{"url": PREFIX}]


@pytest.mark.parametrize("prefix", ["team", "/team/", "/", "/a b", "//a", "/ä"])
def test_prefixes_that_are_none(prefix: str) -> None:
    with pytest.raises(BnfoldError, match="root_path"):
        load_settings(repository=Path("/nowhere"), root_path=prefix)
