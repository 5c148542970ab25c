"""Versions come and go while real clients send without pause: none of them fails, and each answer is right."""

import json
import socket
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import tritonclient.grpc as triton
from onnx import helper

from fold.artifact.manifest import Manifest
from support.service import served
from support.service.reloading import (
    EXPLICIT,
    REQUEST,
    ROWS,
    Load,
    call,
    corrupt,
    index,
    labels,
    rewrite,
    right,
    states,
    table,
    wait,
)
from support.service.serving import HELD, PATIENCE, Service, ServiceProcess, held, start, start_process


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    table(tmp_path / "repository", 1)
    return tmp_path / "repository"


BROKEN: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "byte": (corrupt, "load", "model.onnx: was changed after it was written"),
    "certificate": (
        lambda version: rewrite(version, verdict={"equivalent": False, "message": "NOT equivalent"}),
        "certificate",
        "does not certify that the graph is equivalent: NOT equivalent",
    ),
    "inputs": (
        lambda version: rewrite(
            version,
            inputs=tuple(
                spec.model_copy(update={"name": "other"})
                for spec in Manifest.model_validate_json((version / "manifest.json").read_text()).inputs
            ),
        ),
        "load",
        "its inputs are ['index'], the manifest says ['other']",
    ),
}


def publish_broken(folder: Path, kind: str) -> None:
    """Version 2, broken before it is renamed into its place."""
    table(folder.parent / "staging", 2)
    staged = folder.parent / "staging" / "table" / "2"
    BROKEN[kind][0](staged)
    staged.rename(folder / "table" / "2")


def test_twenty_reloads_under_load_fail_no_request(folder: Path, tmp_path: Path) -> None:
    """1 → 2 → 1 …: version 2 comes and goes. Who asks after a load has returned is answered by the new version."""
    table(tmp_path / "staging", 2)
    aside, place = tmp_path / "staging" / "table" / "2", folder / "table" / "2"
    with start(folder, **EXPLICIT) as service, Load(service).of(4) as load:
        for reload in range(20):
            new = "1" if reload % 2 else "2"
            if new == "2":
                aside.rename(place)
            else:
                place.rename(aside)
            assert call(service, "load") == (200, "")
            assert right(service.post("/v2/models/table/infer", json=REQUEST).json()) == new
            load.go_on(new)
        assert service.metric("bnfold_repository_loads_total") == 21
        wait(lambda: states(service) == {"table/1": "READY"})
        assert service.metric("bnfold_repository_unloads_total") == 20
    assert load.failed == []
    assert min(load.seen["1"], load.seen["2"]) >= 200


def test_a_version_replaced_in_its_place_takes_over(folder: Path, tmp_path: Path) -> None:
    """The same number, other weights, as a careless user does it. Its counters go on."""
    with start(folder, **EXPLICIT) as service:
        assert right(service.post("/v2/models/table/infer", json=REQUEST).json()) == "1"
        (folder / "table" / "1").rename(tmp_path / "old")
        inputs, outputs = [("index", "INT64", -1)], [("value", "FP32", -1)]
        twice = [helper.make_node("Cast", ["index"], ["one"], to=1), helper.make_node("Add", ["one", "one"], ["value"])]
        served.publish(folder, "table", served.graph_of(twice, inputs, outputs), inputs, outputs)
        assert call(service, "load") == (200, "")
        answer = service.post("/v2/models/table/infer", json=REQUEST).json()
        assert answer["outputs"][0]["data"] == [0, 2, 4, 6, 8]
        wait(lambda: service.metric("bnfold_repository_unloads_total") == 1)
        counted = 'bnfold_requests_total{model="table",route="infer",status="2xx",version="1"}'
        assert service.metric(counted) == 2


def test_a_request_that_came_in_halves_is_answered_by_the_version_that_it_found(folder: Path) -> None:
    body = json.dumps(REQUEST).encode()
    with start(folder, **EXPLICIT) as service:
        halves: list[tuple[socket.socket, bytes]] = []
        for path in ("/v2/models/table/infer", "/v2/models/table/versions/1/infer", "/v1/models/table:predict"):
            sent = body if "v2" in path else b'{"instances": [0, 1, 2, 3, 4]}'
            head = f"POST {path} HTTP/1.0\r\nContent-Length: {len(sent)}\r\nContent-Type: application/json\r\n\r\n"
            connection = socket.create_connection(("127.0.0.1", service.port), timeout=PATIENCE)
            connection.sendall(head.encode() + sent[:9])
            halves.append((connection, sent[9:]))
        before = service.get("/v2/health/live")  # what was sent before has been read by now
        assert before.status_code == 200
        table(folder, 2)
        assert call(service, "load") == (200, "")
        assert states(service) == {"table/1": "UNLOADING", "table/2": "READY"}
        assert right(service.post("/v2/models/table/infer", json=REQUEST).json()) == "2"
        assert service.post("/v2/models/table/versions/1/infer", json=REQUEST).status_code == 503
        for connection, rest in halves:
            connection.sendall(rest)
            answer = b"".join(iter(partial(connection.recv, 65536), b""))
            connection.close()
            assert answer.startswith(b"HTTP/1.1 200"), answer
            assert b"1000" in answer.split(b"\r\n\r\n", 1)[1]
        wait(lambda: states(service) == {"table/2": "READY"})
        assert service.post("/v2/models/table/versions/1/infer", json=REQUEST).status_code == 404


def row(x: float) -> dict[str, Any]:
    """A request to `slow`."""
    return {"inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [x]}]}


LONG, SHORT = row(HELD), row(1)


def fill(service: Service, pool: ThreadPoolExecutor) -> "list[Future[httpx.Response]]":
    """Seven requests to `slow` in the queue, behind one whose run is held."""
    send = partial(pool.submit, service.post, "/v2/models/slow/infer")
    calls = [send(json=LONG)]
    wait(lambda: service.metric('bnfold_running_rows{model="slow",version="1"}') == 1)
    calls += [send(json=SHORT) for _ in range(7)]
    wait(lambda: service.metric('bnfold_queue_rows{model="slow",version="1"}') == 7)
    return calls


def test_what_queues_at_the_old_version_is_answered_by_it(tmp_path: Path) -> None:
    """Eight requests, one after the other; the new version does not wait for them."""
    folder = tmp_path / "repository"
    served.slow(folder)
    with start(folder, max_batch_size=1, **EXPLICIT) as service, ThreadPoolExecutor(8) as pool, held() as hold:
        calls = fill(service, pool)
        served.slow(tmp_path / "staging", quick=True)
        (tmp_path / "staging" / "slow" / "1").rename(folder / "slow" / "2")
        rewrite(folder / "slow" / "2", version="2")
        assert call(service, "load", "slow") == (200, "")
        assert service.post("/v2/models/slow/infer", json=SHORT).json()["model_version"] == "2"
        assert states(service)["slow/1"] == "UNLOADING"
        hold.release()
        answers = [call.result() for call in calls]
        assert [(answer.status_code, answer.json()["model_version"]) for answer in answers] == [(200, "1")] * 8
        wait(lambda: states(service) == {"slow/2": "READY"})


@pytest.mark.parametrize("kind", list(BROKEN))
def test_a_broken_version_leaves_the_old_one_ready(folder: Path, kind: str) -> None:
    _, cause, reason = BROKEN[kind]
    broken = f'bnfold_model_broken{{cause="{cause}",model="table",version="2"}}'
    with start(folder, **EXPLICIT) as service:
        with Load(service).of(2) as load:
            publish_broken(folder, kind)
            status, error = call(service, "load")
            assert (status, reason in error, error.endswith("; table/1 serves")) == (400, True, True)
            listed = index(service)
            assert listed["table/1"] == ("READY", "")
            assert listed["table/2"][0] == "UNAVAILABLE"
            assert reason in listed["table/2"][1]
            load.go_on("1")
        assert load.failed == []
        assert set(load.seen) == {"1"}
        assert service.metric(broken) == 1
        assert service.metric('bnfold_model_ready{model="table",version="1"}') == 1
        assert service.metric('bnfold_model_ready{model="table",version="2"}') == 0
        assert service.metric(f'bnfold_repository_failures_total{{cause="{cause}"}}') == 1
        refused = service.get("/v2/models/table/versions/2/ready")
        assert (refused.status_code, reason in refused.json()["error"]) == (503, True)
    said = [line for line in service.lines if line.startswith("bnfold: not serving table/2: ")]
    assert len(said) == 1
    assert reason in said[0]


def test_unloading_under_load_answers_what_was_accepted(tmp_path: Path) -> None:
    folder = tmp_path / "repository"
    served.slow(folder)
    table(folder, 1)
    with start(folder, max_batch_size=1, **EXPLICIT) as service, ThreadPoolExecutor(9) as pool, held() as hold:
        calls = fill(service, pool)
        unloading = pool.submit(call, service, "unload", "slow")
        wait(lambda: index(service)["slow/1"] == ("UNLOADING", "it is being unloaded"))
        late = service.post("/v2/models/slow/infer", json=SHORT)
        assert (late.status_code, "is not ready: it is being unloaded" in late.json()["error"]) == (503, True)
        hold.release()
        assert [call.result().status_code for call in calls] == [200] * 8
        assert unloading.result() == (200, "")
        assert index(service) == {"slow/1": ("UNAVAILABLE", "unloaded"), "table/1": ("READY", "")}
        assert service.post("/v2/models/slow/infer", json=SHORT).status_code == 503
        assert service.get("/v2/models/slow/ready").status_code == 503
        assert right(service.post("/v2/models/table/infer", json=REQUEST).json()) == "1"
        assert call(service, "unload", "slow") == (200, "")
        assert call(service, "unload", "nobody") == (200, ""), "it is not loaded, as in Triton"
        assert "nobody" not in service.post("/v2/repository/index").text
        assert call(service, "load", "nobody")[0] == 404
        assert call(service, "load", "slow") == (200, "")
        assert states(service) == {"slow/1": "READY", "table/1": "READY"}
    assert "bnfold: unloaded slow/1" in service.lines
    assert any(line.startswith("bnfold: loaded slow/1 (cpu) in ") for line in service.lines)


def test_readiness_is_of_the_service_or_of_all_models(folder: Path) -> None:
    """Lenient by default: a broken version must not take what serves out of every load balancer."""

    def ready(service: Service) -> bool:
        answer = service.get("/v2/health/ready")
        with triton.InferenceServerClient(service.grpc) as client:
            assert client.is_server_ready() is answer.is_success
        assert service.metric("bnfold_ready") == answer.is_success
        return answer.is_success

    with (
        start(folder, **EXPLICIT, grpc_port=0) as lenient,
        start(folder, **EXPLICIT, grpc_port=0, readiness="strict") as strict,
    ):
        assert (ready(lenient), ready(strict)) == (True, True)
        publish_broken(folder, "byte")
        for service in (lenient, strict):
            assert call(service, "load")[0] == 400
        assert (ready(lenient), ready(strict)) == (True, False)
        assert "a version is broken (POST /v2/repository/index)" in strict.get("/v2/health/ready").json()["error"]
        assert call(strict, "unload") == (200, "")
        assert ready(strict), "what is unloaded on purpose does not count"
        state, reason = index(strict)["table/2"]
        assert state == "UNAVAILABLE"
        assert reason.startswith("unloaded; it could not be loaded: ")
        assert index(strict)["table/1"] == ("UNAVAILABLE", "unloaded")


def test_metrics_of_what_has_left_disappear(folder: Path) -> None:
    with start(folder, **EXPLICIT) as service:
        assert service.post("/v2/models/table/infer", json=REQUEST).status_code == 200
        assert service.post("/v2/models/table/infer", json={}).status_code == 400
        assert labels(service, "table") == {"1"}
        table(folder, 2)
        assert call(service, "load") == (200, "")
        wait(lambda: states(service) == {"table/2": "READY"})
        assert service.post("/v2/models/table/infer", json=REQUEST).status_code == 200
        assert labels(service, "table") == {"2"}
        stats = service.get("/v2/models/table/stats").json()["model_stats"]
        assert [(entry["version"], entry["inference_count"]) for entry in stats] == [("2", ROWS)]
        assert call(service, "unload") == (200, "")
        assert labels(service, "table") == set()
        for state, count in (("READY", 0), ("UNAVAILABLE", 1), ("LOADING", 0), ("UNLOADING", 0)):
            assert service.metric(f'bnfold_repository_versions{{state="{state}"}}') == count
        assert service.metric("bnfold_repository_unloads_total") == 2


LOADED = "bnfold_repository_loads_total"


def proc(service: ServiceProcess, key: str) -> int:
    status = Path(f"/proc/{service.process.pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith(f"{key}:")).split()[1])


def test_thirty_reloads_leave_neither_memory_nor_threads(folder: Path) -> None:
    """8 MB of weights each: what stayed of three of them would be seen."""
    size = 2 << 20
    with start_process(folder, **EXPLICIT) as service:
        sizes = []
        for version in range(2, 36):
            table(folder, version, size)
            assert call(service, "load") == (200, "")
            assert right(service.post("/v2/models/table/infer", json=REQUEST).json()) == str(version)
            wait(lambda version=version: states(service) == {f"table/{version}": "READY"})  # type: ignore[misc]
            wait(lambda: service.metric("bnfold_repository_unloads_total") == service.metric(LOADED) - 1)
            sizes.append((proc(service, "VmRSS"), proc(service, "Threads")))
        early, late = max(rss for rss, _ in sizes[:4]), min(rss for rss, _ in sizes[-4:])
        assert late - early < 3 * size * 4 / 1024, sizes
        assert max(threads for _, threads in sizes[-4:]) <= max(threads for _, threads in sizes[:4])


def test_a_new_version_is_compared_and_proven_as_the_first_one_was(folder: Path) -> None:
    served.net(folder)
    share = 'bnfold_shadow_share{{model="net",version="{}"}}'
    with start(folder, shadow=1, **EXPLICIT) as service:
        wait(lambda: service.metric(share.format(1)) == 1)
        assert service.post("/v2/models/net/equivalence").json()["equivalent"]
        served.net(folder, version=2)
        assert call(service, "load", "net") == (200, "")
        wait(lambda: service.metric(share.format(2)) == 1)
        answer = service.post("/v2/models/net/equivalence").json()
        assert (answer["equivalent"], answer["model_version"]) == (True, "2")
        wait(lambda: labels(service, "net") == {"2"})
