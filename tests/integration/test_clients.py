"""Clients that are programs: curl and Java's HttpClient, both of which ask for HTTP/2 by an upgrade (h2c)."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.service import served
from support.service.serving import PATIENCE, Service, start

CURL, JAVA = shutil.which("curl") or "", shutil.which("java") or ""
HERE = Path(__file__).parent
NUMBERS = [[1.0] * 20_000, [0.5] * 20_000]
"""200 kB of JSON, so that a body comes in several segments."""
BODY = {"inputs": [{"name": "x", "shape": [2, 20_000], "datatype": "FP32", "data": NUMBERS}]}
pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("repository")
    served.others(folder)
    with start(folder) as running:
        yield running


@pytest.fixture(scope="module")
def body(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("body") / "body.json"
    file.write_text(json.dumps(BODY))
    return file


def totals(answer: str) -> Any:
    return json.loads(answer)["outputs"][0]["data"]


@pytest.mark.skipif(not CURL, reason="no curl; .ci/run installs it")
@pytest.mark.parametrize("more", [[], ["-H", "Transfer-Encoding: chunked"], ["-H", "Expect: 100-continue"]], ids=str)
def test_curl_that_asks_for_http_2(service: Service, body: Path, more: list[str]) -> None:
    url = f"{service.url}/v2/models/free/infer"
    post = ["-sS", "--http2", *more, "--data-binary", f"@{body}", url]
    head = ["-sSI", "--http2", f"{service.url}/v2/"]
    said = subprocess.run(
        [CURL, *post, "--next", *post, "--next", *head],
        check=True, capture_output=True, text=True, timeout=PATIENCE,
    ).stdout  # fmt: skip
    first, second, headers = said.replace("}{", "}\n{").replace("}HTTP", "}\nHTTP").split("\n", 2)
    assert totals(first) == totals(second) == [20_000, 10_000]
    assert headers.startswith("HTTP/1.1 200")


@pytest.mark.skipif(not JAVA, reason="no java; .ci/run installs it")
def test_javas_own_client(service: Service, body: Path) -> None:
    command = [
        JAVA,
        "-XX:TieredStopAtLevel=1",
        str(HERE / "InferClient.java"),
        f"{service.url}/v2/models/free/infer",
        str(body),
    ]
    said = subprocess.run(command, check=True, capture_output=True, text=True, timeout=PATIENCE).stdout
    lines = said.splitlines()
    assert [line.split(" ", 2)[:2] for line in lines] == [["HTTP_1_1", "200"]] * 3
    assert [totals(line.split(" ", 2)[2]) for line in lines] == [[20_000, 10_000]] * 3
