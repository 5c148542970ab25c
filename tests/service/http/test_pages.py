"""What people and programs read about the service: the page, the OpenAPI document, the metrics."""

import html
import re
import shlex
from pathlib import Path
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from service.app import create_app
from service.settings import Settings
from support import ROOT
from support.service.serving import PATIENCE

ROWS = {"inputs": [{"name": "x", "shape": [2, 3], "datatype": "FP32", "data": [1, 2, 3, 4, 5, 6]}]}


def test_the_page_tells_what_serves(service: Any) -> None:
    answer = service.get("/")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    page = answer.text
    for text in (
        "<h2>net</h2>", "n × 1 × 8 × 8", "1 of 1 BatchNorms folded, 0 kept", ">equivalent</span>",
        "<h2>broken</h2>", "was changed after it was written", f"curl {service.url}/v1/models/net:predict",
        "Content-Type: image/png",
    ):  # fmt: skip
        assert text in page
    assert "http" not in page.replace(service.url, ""), "nothing comes from anywhere else"


def test_scripts_and_styles_are_files_of_the_service(service: Any) -> None:
    """So the policy forbids those that a name from a file might bring into a page."""
    for path, scripts in (("/", 1), ("/docs", 0)):
        answer = service.get(path)
        assert answer.headers["content-security-policy"].startswith("default-src 'self'; ")
        assert "unsafe" not in answer.headers["content-security-policy"]
        assert re.findall(r"<script[^>]*>", answer.text) == ['<script type="module" src="static/app.js">'] * scripts
        assert not re.search(r"<style|style=| on[a-z]+=", answer.text)


def test_the_files_of_the_page(service: Any) -> None:
    folder = ROOT / "service" / "http" / "page" / "static"
    for file in (*folder.iterdir(), ROOT / "fold" / "reports" / "templates" / "look.css"):
        answer = service.get(f"/static/{file.name}")
        kind = {".js": "text/javascript", ".css": "text/css", ".html": "text/html"}[file.suffix]
        assert answer.headers["content-type"] == f"{kind}; charset=utf-8"
        assert answer.content == file.read_bytes()
        tag = answer.headers["etag"]
        assert service.get(f"/static/{file.name}", headers={"If-None-Match": tag}).status_code == 304
        assert service.get(f"/static/{file.name}", headers={"If-None-Match": '"other"'}).status_code == 200
        imported = re.findall(r'from "\./([\w.]+)"', file.read_text())
        assert all((folder / name).is_file() for name in imported)
    policy = service.get("/static/frame.html").headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; ")
    assert policy.endswith("; sandbox allow-same-origin"), "no script runs there"
    assert "prefers-color-scheme: dark" in service.get("/static/look.css").text
    for name in ("nothing.js", "..%2Findex.py", "%2e%2e%2f__init__.py", ""):
        assert service.get(f"/static/{name}").status_code == 404, name


def test_the_openapi_document_names_every_path(service: Any) -> None:
    paths = service.get("/openapi.json").json()["paths"]
    for path, method in (
        ("/v2/health/live", "get"), ("/v2/health/ready", "get"), ("/v2", "get"), ("/v2/models/{name}", "get"),
        ("/v2/models/{name}/versions/{version}", "get"), ("/v2/models/{name}/ready", "get"),
        ("/v2/models/{name}/versions/{version}/ready", "get"), ("/v2/models/{name}/infer", "post"),
        ("/v2/models/{name}/versions/{version}/infer", "post"), ("/v2/repository/index", "post"),
        ("/v2/models/{name}/equivalence", "post"), ("/v2/models/{name}/versions/{version}/equivalence", "post"),
        ("/v1/models/{name}", "get"), ("/v1/models/{name}:predict", "post"), ("/metrics", "get"),
    ):  # fmt: skip
        assert method in paths[path], path
    for path in (
        "/v2/models/stats", "/v2/models/{name}/stats", "/v2/models/{name}/config", "/v2/traffic",
        "/v2/models/{name}/traffic", "/v2/models/{name}/example", "/v2/models/{name}/batchnorms",
        "/v2/models/{name}/layers", "/v2/repository/models/{name}/versions/{version}",
        "/v2/models/{name}/equivalence", "/v2/repository/models/{name}/versions",
    ):  # fmt: skip
        assert "get" in paths[path], path


def test_the_api_page_needs_no_network_and_its_commands_work(service: Any) -> None:
    """Every path of the OpenAPI document stands there; what it says to type does what it says."""
    answer = service.get("/docs")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    page = html.unescape(answer.text)
    assert "http" not in page.replace(service.url, ""), "nothing comes from anywhere else"
    assert "<script" not in page
    for path, methods in service.get("/openapi.json").json()["paths"].items():
        for method in methods:
            assert f"<code>{method.upper()} {path}</code>" in page
    commands = [command.replace("\\\n", "") for command in re.findall(r"<pre>(curl .*?)</pre>", page, re.DOTALL)]
    assert len(commands) == sum(map(len, service.get("/openapi.json").json()["paths"].values()))
    for command in commands:
        arguments = shlex.split(command)
        [url] = [argument for argument in arguments if argument.startswith("http")]
        body = arguments[arguments.index("-d") + 1] if "-d" in arguments else ""
        if "/equivalence" not in url and "/repository/models/" not in url:  # takes its time, and changes what serves
            method = "POST" if body or "-X POST" in command else "GET"
            given = httpx.request(method, url, content=body, timeout=PATIENCE)
            assert given.status_code == 200, (command, given.text)


def test_the_server_names_the_extensions_that_work(service: Any) -> None:
    extensions = set(service.get("/v2").json()["extensions"])
    assert extensions >= {
        "binary_tensor_data", "classification", "model_configuration", "parameters", "schedule_policy", "statistics",
    }  # fmt: skip
    documented = (ROOT / "docs" / "protocol.md").read_text()
    assert all(f"`{name}`" in documented for name in extensions)


def test_an_app_is_built_without_touching_anything() -> None:
    app = create_app(Settings(repository=Path("/no/such/folder")))
    assert app.openapi() == app.openapi()
    assert not app.takes_requests()


def samples(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_metrics_count_requests_rows_batches_and_errors(service: Any) -> None:
    def delta(name: str, **labels: str) -> float:
        key = (name, tuple(sorted(labels.items())))
        return after.get(key, 0) - before.get(key, 0)

    before = samples(service.get("/metrics").text)
    free = {"model": "free", "version": "1"}
    for _ in range(3):
        assert service.post("/v2/models/free/infer", json=ROWS).status_code == 200
    assert service.post("/v1/models/free:predict", json={"instances": [[1]]}).status_code == 200
    assert service.post("/v2/models/free/infer", json={}).status_code == 400
    assert service.post("/v2/models/free/infer", content=b"x", headers={"Content-Encoding": "br"}).status_code == 415
    assert service.post("/v2/models/unheard/of/infer").status_code == 404
    assert service.post("/v2/models/unheard-of/infer").status_code == 404
    after = samples(service.get("/metrics").text)
    assert delta("bnfold_requests_total", **free, route="infer", status="2xx") == 3
    assert delta("bnfold_requests_total", **free, route="infer", status="4xx") == 2
    assert delta("bnfold_requests_total", **free, route="predict", status="2xx") == 1
    assert delta("bnfold_requests_total", model="", version="", route="infer", status="4xx") == 1
    assert delta("bnfold_errors_total", **free, kind="bad_request") == 1
    assert delta("bnfold_errors_total", **free, kind="unsupported") == 1
    assert delta("bnfold_errors_total", model="", version="", kind="not_found") == 1
    assert delta("bnfold_rows_total", **free) == 7
    assert delta("bnfold_batch_rows_count", **free) == 4
    assert delta("bnfold_batch_rows_sum", **free) == 7
    assert delta("bnfold_batch_rows_bucket", **free, le="1.0") == 1
    assert delta("bnfold_batch_rows_bucket", **free, le="2.0") == 4
    assert delta("bnfold_queue_seconds_count", **free) == 4
    assert delta("bnfold_compute_seconds_bucket", **free, le="+Inf") == 4
    assert after[("bnfold_ready", ())] == 1
    assert after[("bnfold_queue_rows", (("model", "free"), ("version", "1")))] == 0
    assert after[("bnfold_model_ready", (("model", "broken"), ("version", "1")))] == 0
    assert not any("unheard" in str(labels) for _, labels in after), "names from outside are no labels"
