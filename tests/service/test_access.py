"""Tokens: what is closed, what stays open, and that no token is ever said."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tritonclient.http as sync_http
import tritonclient.http.aio as aio_http
from tritonclient.utils import InferenceServerException

from fold.errors import BnfoldError
from service.access import Access
from service.settings import Settings, load_settings
from support.service import served
from support.service.serving import Service, start

BODY = {"inputs": [{"name": "image", "shape": [1, 1, 8, 8], "datatype": "FP32", "data": [0.5] * 64}]}
INSTANCES = {"instances": [[[[0.5] * 8] * 8]]}
REQUESTS: list[tuple[str, str, Any]] = [
    ("POST", "/v2/models/net/infer", BODY),
    ("POST", "/v2/models/net/versions/1/infer", BODY),
    ("POST", "/v1/models/net:predict", INSTANCES),
    ("POST", "/v2/models/net/equivalence", {"samples": 1}),
    ("POST", "/v2/repository/index", None),
    ("GET", "/v2", None),
    ("GET", "/v2/models/net", None),
    ("GET", "/v2/models/net/ready", None),
    ("GET", "/v2/models/net/stats", None),
    ("GET", "/v1/models/net", None),
    ("GET", "/", None),
    ("GET", "/docs", None),
    ("GET", "/v2/traffic", None),
    ("GET", "/v2/models/net/equivalence", None),
    ("GET", "/v2/models/net/batchnorms", None),
    ("GET", "/v2/models/net/example", None),
    ("GET", "/v2/repository/models/net/versions", None),
    ("GET", "/openapi.json", None),
]
LOAD = "/v2/repository/models/net/load"


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def send(service: Service, method: str, path: str, body: Any = None, **headers: str) -> int:
    answer = (service.post if method == "POST" else service.get)(
        path, headers=headers, **({"json": body} if body else {})
    )
    if answer.status_code == 401:
        assert answer.headers["www-authenticate"] == "Bearer"
    if not answer.is_success:
        assert list(answer.json()) == ["error"]
        assert "secret" not in answer.text
    return answer.status_code


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("repository")
    served.net(folder)
    return folder


@pytest.fixture(scope="module")
def closed(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Two tokens for all, one of them from a file, and one for an admin."""
    file = tmp_path_factory.mktemp("secrets") / "tokens"
    file.write_text("secret-of-file\n")
    chosen = {"tokens": "secret-1, secret-2", "tokens_file": file, "admin_token": "secret-admin"}
    with start(repository, repository_control="explicit", models="*", **chosen) as service:
        yield service


def test_a_browser_gets_the_page_that_asks_for_a_token(closed: Service) -> None:
    answer = closed.get("/", headers={"Accept": "text/html,*/*;q=0.8"})
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert "a token is needed here" in answer.text
    assert "net" not in answer.text, "no name of a model"
    assert closed.get("/static/app.js").status_code == closed.get("/static/page.css").status_code == 200
    assert closed.get("/static/nothing.js").status_code == 404
    for path in ("/docs", "/models/net/versions/1/report"):
        assert closed.get(path, headers={"Accept": "text/html"}).json().keys() == {"error"}


@pytest.mark.parametrize(("method", "path", "body"), REQUESTS)
def test_what_is_closed_wants_a_token(closed: Service, method: str, path: str, body: Any) -> None:
    assert send(closed, method, path, body) == 401
    assert send(closed, method, path, body, **bearer("secret-3")) == 401
    assert send(closed, method, path, body, Authorization="Bearer") == 401
    assert send(closed, method, path, body, Authorization="Basic secret-1") == 401
    for token in ("secret-1", "secret-2", "secret-of-file", "secret-admin"):
        assert send(closed, method, path, body, **bearer(token)) == 200
    assert send(closed, method, path, body, Authorization="bearer secret-1") == 200


@pytest.mark.parametrize("path", ["/v2/health/live", "/v2/health/ready", "/metrics"])
def test_what_stays_open(closed: Service, path: str) -> None:
    assert send(closed, "GET", path) == 200


@pytest.mark.parametrize("path", ["/v2/health/live//", "//v2/health/live", "/v2/health", "/nothing", "/metrics/x"])
def test_what_is_not_named_as_open_is_closed(closed: Service, path: str) -> None:
    assert send(closed, "GET", path) == 401


def test_load_and_unload_want_an_admin(closed: Service) -> None:
    assert send(closed, "POST", LOAD) == 401
    assert send(closed, "POST", LOAD, **bearer("guess")) == 401
    assert send(closed, "POST", LOAD, **bearer("secret-1")) == 403
    assert send(closed, "POST", LOAD, **bearer("secret-admin")) == 200


def test_refusals_are_counted(closed: Service) -> None:
    name = 'bnfold_errors_total{kind="unauthorized",model="",version=""}'
    send(closed, "GET", "/v2")
    before = closed.metric(name)
    send(closed, "POST", "/v2/models/net/infer", BODY)
    assert closed.metric(name) == before + 1


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({}, "load and unload are off: repository_control is fixed; set BNFOLD_REPOSITORY_CONTROL=explicit"),
        ({"admin_token": "boss"}, "load and unload are off: repository_control is fixed"),
        ({"repository_control": "explicit"}, "load and unload are off: no admin token is set; set BNFOLD_ADMIN_TOKEN"),
    ],
)
def test_load_and_unload_are_off_by_default(repository: Path, settings: dict[str, Any], line: str) -> None:
    with start(repository, models="*", **settings) as service:
        for verb in ("load", "unload"):
            answer = service.post(f"/v2/repository/models/net/{verb}", headers=bearer("boss"))
            assert (answer.status_code, line in answer.json()["error"]) == (403, True)
        assert send(service, "POST", "/v2/models/net/infer", BODY) == 200
        documented = LOAD.replace("net", "{name}") in service.get("/openapi.json").json()["paths"]
        assert documented == ("repository_control" in settings)


def test_metrics_and_a_prefix_behind_tokens(repository: Path) -> None:
    with start(repository, tokens="secret", metrics_need_token="true", root_path="/bnfold") as service:
        for prefix in ("", "/bnfold"):
            assert send(service, "GET", f"{prefix}/metrics") == 401
            assert send(service, "GET", f"{prefix}/metrics", **bearer("secret")) == 200
            assert send(service, "GET", f"{prefix}/v2/health/ready") == 200
            assert send(service, "POST", f"{prefix}/v2/models/net/infer", BODY) == 401
            assert send(service, "POST", f"{prefix}/v2/models/net/infer", BODY, **bearer("secret")) == 200


def test_tritons_client_loads_and_unloads(repository: Path) -> None:
    """Unmodified; what it may send beside a name is understood or refused in one line."""
    with (
        start(repository, repository_control="explicit", models="*", admin_token="boss") as service,
        sync_http.InferenceServerClient(service.address) as client,
    ):
        client.unload_model("net", headers=bearer("boss"), unload_dependents=True)
        (entry,) = client.get_model_repository_index()
        assert entry == {"name": "net", "version": "1", "state": "UNAVAILABLE", "reason": "unloaded"}
        assert not client.is_model_ready("net")
        client.load_model("net", headers=bearer("boss"))
        assert client.is_model_ready("net")
        assert "model_repository" in client.get_server_metadata()["extensions"]
        for options, words in (
            ({"config": "{}"}, "a config is not taken here"),
            ({"config": "{}", "files": {"file:1/model.onnx": b"x"}}, "files are not taken here"),
        ):
            with pytest.raises(InferenceServerException, match=words):
                client.load_model("net", headers=bearer("boss"), **options)
        with pytest.raises(InferenceServerException, match="no model is named 'nobody'"):
            client.load_model("nobody", headers=bearer("boss"))
        with pytest.raises(InferenceServerException, match="a token is needed here"):
            client.load_model("net")
        refused = service.post(LOAD, headers=bearer("boss"), json={"parameters": []})
        assert (refused.status_code, refused.json()["error"]) == (400, "parameters is []; expected an object")


def test_tritons_asynchronous_client(repository: Path) -> None:
    async def use(service: Service) -> None:
        async with aio_http.InferenceServerClient(service.address) as client:
            await client.unload_model("net", headers=bearer("boss"))
            assert [entry["state"] for entry in await client.get_model_repository_index()] == ["UNAVAILABLE"]
            await client.load_model("net", headers=bearer("boss"))
            assert [entry["state"] for entry in await client.get_model_repository_index()] == ["READY"]

    with start(repository, repository_control="explicit", models="*", admin_token="boss") as service:
        asyncio.run(use(service))


def file_of(text: bytes) -> Callable[[Path], dict[str, Any]]:
    def write(folder: Path) -> dict[str, Any]:
        (folder / "tokens").write_bytes(text)
        return {"tokens_file": folder / "tokens"}

    return write


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (lambda folder: {"tokens": " , "}, r"tokens \(or BNFOLD_TOKENS\): holds no token; expected at least one"),
        (lambda folder: {"admin_token": "sécret"}, r"admin_token .*: a token holds what no header can"),
        (lambda folder: {"tokens_file": folder / "none"}, r"none: cannot be read \(No such file or directory\)"),
        (lambda folder: {"admin_token_file": folder}, r"cannot be read \(Is a directory\)"),
        (file_of(b"\n"), "tokens: holds no token"),
        (file_of("sécret".encode()), "tokens: is not ASCII; expected a file of tokens"),
    ],
)
def test_tokens_that_are_none_end_the_start(tmp_path: Path, settings: Callable[[Path], Any], line: str) -> None:
    """A service that was to be closed must not start open."""
    with pytest.raises(BnfoldError, match=line) as raised:
        Access(load_settings(repository=tmp_path, **settings(tmp_path)))
    assert "cret" not in str(raised.value)
    assert "\n" not in str(raised.value)


def test_tokens_are_in_no_repr_and_in_no_log(closed: Service, tmp_path: Path) -> None:
    settings = Settings(repository=tmp_path, tokens="secret-1", admin_token="secret-2")  # type: ignore[arg-type]
    assert "secret" not in repr(settings) + str(settings) + settings.model_dump_json() + repr(vars(settings))
    assert not any("secret" in line for line in closed.lines)
    assert "bnfold: access is by token, except for /metrics, /v2/health/live, /v2/health/ready" in closed.lines
