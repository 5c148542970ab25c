"""Versions come and go while real clients send without pause: none of them fails, and each answer is right."""

import contextlib
import http.client
import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import served
from onnx import helper
from prometheus_client.parser import text_string_to_metric_families
from serving import Service, start

from fold.artifact import Manifest, write_manifest

TOKEN = {"Authorization": "Bearer boss"}
EXPLICIT = {"repository_control": "explicit", "admin_token": "boss"}
WATCH = {"repository_control": "watch", "watch_seconds": 0.05}
ROWS = 5
REQUEST = {"inputs": [{"name": "index", "shape": [ROWS], "datatype": "INT64", "data": list(range(ROWS))}]}


def table(folder: Path, version: int, size: int = 1000, name: str = "table") -> None:
    """value = index + 1000·version: every answer tells which version gave it. `size` floats of weights."""
    inputs, outputs = [("index", "INT64", -1)], [("value", "FP32", -1)]
    gather = helper.make_node("Gather", ["table", "index"], ["value"])
    weights = {"table": np.arange(size, dtype=np.float32) + 1000 * version}
    served.publish(folder, name, served.graph_of([gather], inputs, outputs, weights), inputs, outputs, version=version)


def right(answer: dict[str, Any]) -> str:
    """The version that answered; fails if the numbers are not that version's."""
    version = str(answer["model_version"])
    assert answer["outputs"][0]["data"] == [1000 * int(version) + index for index in range(ROWS)]
    return version


@dataclass
class Load:
    """Clients that send over connections of their own, one request after the other, until the block ends."""

    service: Service
    path: str = "/v2/models/table/infer"
    seen: Counter[str] = field(default_factory=Counter)
    """Answers, by version."""
    failed: list[str] = field(default_factory=list)

    @contextlib.contextmanager
    def of(self, clients: int) -> Iterator["Load"]:
        done = threading.Event()
        threads = [threading.Thread(target=self._send, args=(done,)) for _ in range(clients)]
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            done.set()
            for thread in threads:
                thread.join()

    def _send(self, done: threading.Event) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.service.port, timeout=60)
        body = json.dumps(REQUEST)
        try:
            while not done.is_set():
                connection.request("POST", self.path, body)
                response = connection.getresponse()
                text = response.read().decode()
                assert response.status == 200, text
                self.seen[right(json.loads(text))] += 1
        except Exception as error:
            self.failed.append(repr(error))
        finally:
            connection.close()

    def go_on(self, version: str, more: int = 20) -> None:
        """Until so many more answers have come from a version."""
        until = self.seen[version] + more
        wait(lambda: self.seen[version] >= until or self.failed)
        assert self.failed == []


def wait(true: Callable[[], Any]) -> None:
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def index(service: Service, **options: Any) -> dict[str, tuple[str, str]]:
    entries = service.post("/v2/repository/index", **options).json()
    return {f"{entry['name']}/{entry['version']}": (entry["state"], entry["reason"]) for entry in entries}


def states(service: Service, **options: Any) -> dict[str, str]:
    return {name: state for name, (state, _) in index(service, **options).items()}


def call(service: Service, verb: str, name: str = "table", **options: Any) -> tuple[int, str]:
    answer = service.post(f"/v2/repository/models/{name}/{verb}", headers=TOKEN, **options)
    return answer.status_code, answer.json()["error"] if answer.content else ""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    table(tmp_path / "repository", 1)
    return tmp_path / "repository"


def corrupt(version: Path) -> None:
    file = version / "model.onnx"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def rewrite(folder: Path, **changes: Any) -> None:
    """Another manifest, with right digests."""
    manifest = Manifest.model_validate_json((folder / "manifest.json").read_text())
    write_manifest(folder, manifest.model_copy(update=changes))


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
            connection = socket.create_connection(("127.0.0.1", service.port), timeout=30)
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


def test_what_queues_at_the_old_version_is_answered_by_it(tmp_path: Path) -> None:
    """Eight requests that compute for a while, one after the other; the new version does not wait for them."""
    folder = tmp_path / "repository"
    served.slow(folder)
    row = {"inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [100]}]}
    with start(folder, max_batch_size=1, **EXPLICIT) as service, ThreadPoolExecutor(8) as pool:
        calls = [pool.submit(service.post, "/v2/models/slow/infer", json=row) for _ in range(8)]
        wait(lambda: service.metric('bnfold_queue_rows{model="slow",version="1"}') >= 6)
        served.slow(tmp_path / "staging", quick=True)
        (tmp_path / "staging" / "slow" / "1").rename(folder / "slow" / "2")
        rewrite(folder / "slow" / "2", version="2")
        assert call(service, "load", "slow") == (200, "")
        assert service.post("/v2/models/slow/infer", json=row).json()["model_version"] == "2"
        assert states(service)["slow/1"] == "UNLOADING"
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
    row = {"inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [100]}]}
    with start(folder, max_batch_size=1, **EXPLICIT) as service, ThreadPoolExecutor(9) as pool:
        calls = [pool.submit(service.post, "/v2/models/slow/infer", json=row) for _ in range(8)]
        wait(lambda: service.metric('bnfold_queue_rows{model="slow",version="1"}') >= 7)
        unloading = pool.submit(call, service, "unload", "slow")
        wait(lambda: index(service)["slow/1"] == ("UNLOADING", "it is being unloaded"))
        late = service.post("/v2/models/slow/infer", json=row)
        assert (late.status_code, "is not ready: it is being unloaded" in late.json()["error"]) == (503, True)
        assert [call.result().status_code for call in calls] == [200] * 8
        assert unloading.result() == (200, "")
        assert index(service) == {"slow/1": ("UNAVAILABLE", "unloaded"), "table/1": ("READY", "")}
        assert service.post("/v2/models/slow/infer", json=row).status_code == 503
        assert service.get("/v2/models/slow/ready").status_code == 503
        assert right(service.post("/v2/models/table/infer", json=REQUEST).json()) == "1"
        assert call(service, "unload", "slow") == (200, "")
        assert call(service, "unload", "nobody")[0] == 404
        assert call(service, "load", "nobody")[0] == 404
        assert call(service, "load", "slow") == (200, "")
        assert states(service) == {"slow/1": "READY", "table/1": "READY"}
    assert "bnfold: unloaded slow/1" in service.lines
    assert any(line.startswith("bnfold: loaded slow/1 (cpu) in ") for line in service.lines)


def labels(service: Service, name: str) -> set[str]:
    """Versions of a model that stand in /metrics."""
    families = text_string_to_metric_families(service.get("/metrics").text)
    samples = [sample for family in families for sample in family.samples]
    return {sample.labels["version"] for sample in samples if sample.labels.get("model") == name}


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


def proc(service: Service, key: str) -> int:
    status = Path(f"/proc/{service.process.pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith(f"{key}:")).split()[1])


def test_thirty_reloads_leave_neither_memory_nor_threads(folder: Path) -> None:
    """8 MB of weights each: what stayed of three of them would be seen."""
    size = 2 << 20
    with start(folder, **EXPLICIT) as service:
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


def test_watching_follows_the_folder(tmp_path: Path) -> None:
    """From an empty repository to one of two models, and back; each step under load once there is something."""
    folder = tmp_path / "repository"
    folder.mkdir()
    with start(folder, **WATCH) as service:
        assert service.lines[-1].startswith("bnfold: serving no model yet on http://")
        assert service.get("/v2/health/ready").json() == {"ready": True}
        table(folder, 1)
        wait(lambda: states(service) == {"table/1": "READY"})
        with Load(service).of(3) as load:
            load.go_on("1")
            table(folder, 2)
            load.go_on("2")
            publish_broken_as(folder, 3)
            wait(lambda: states(service).get("table/3") == "UNAVAILABLE")
            load.go_on("2")
            remove(folder / "table" / "2")
            load.go_on("1")
            wait(lambda: states(service) == {"table/1": "READY", "table/3": "UNAVAILABLE"})
            table(folder, 1, name="other")
            wait(lambda: states(service).get("other/1") == "READY")
            remove(folder / "table" / "3")
            wait(lambda: "table/3" not in states(service))
            assert 'version="3"' not in service.get("/metrics").text
            remove(folder / "other")
            wait(lambda: states(service) == {"table/1": "READY"})
            assert service.post("/v2/models/other/infer", json=REQUEST).status_code == 404
        assert load.failed == []
        status, error = call(service, "load")
        assert (status, error) == (
            403, "load and unload are off: repository_control is watch; set BNFOLD_REPOSITORY_CONTROL=explicit",
        )  # fmt: skip
    assert sum(line.startswith("bnfold: not serving table/3: ") for line in service.lines) == 2, "once for each try"


def publish_broken_as(folder: Path, version: int) -> None:
    table(folder.parent / "staging", version)
    staged = folder.parent / "staging" / "table" / str(version)
    corrupt(staged)
    staged.rename(folder / "table" / str(version))


def remove(version: Path) -> None:
    """As an atomic step: into a folder that nobody looks at."""
    away = version.parent / f".gone-{version.name}"
    version.rename(away)


def test_a_folder_that_goes_away_changes_nothing(folder: Path) -> None:
    """A share that is not mounted for a while."""
    with start(folder, **WATCH) as service:
        folder.rename(folder.with_name("away"))
        table(folder.with_name("away"), 2)
        assert right(service.post("/v2/models/table/infer", json=REQUEST).json()) == "1"
        time.sleep(0.5)
        assert states(service) == {"table/1": "READY"}
        folder.with_name("away").rename(folder)
        wait(lambda: states(service) == {"table/2": "READY"})
    said = [line for line in service.lines if "cannot be looked through, so all serve on: " in line]
    assert len(said) == 1


FROM_THE_COMMAND_LINE = """
import os
from fold.cli import main
main(["serve", os.environ["BNFOLD_REPOSITORY"], "--watch"])
"""


def test_the_command_line_watches(folder: Path) -> None:
    with start(folder, code=FROM_THE_COMMAND_LINE, watch_seconds=0.05) as service:
        table(folder, 2)
        wait(lambda: states(service) == {"table/2": "READY"})


def test_a_new_version_is_watched_and_proven_as_the_first_one_was(folder: Path) -> None:
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
