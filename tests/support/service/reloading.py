"""A model that tells by its answers which version gave them, and clients that ask it without pause."""

import contextlib
import http.client
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper
from prometheus_client.parser import text_string_to_metric_families

from fold.artifact import ModelVersion, read_version
from fold.artifact.directory import write_manifest
from fold.artifact.manifest import Manifest
from support.service import served
from support.service.serving import PATIENCE, Service

TOKEN = {"Authorization": "Bearer boss"}
EXPLICIT = {"repository_control": "explicit", "models": "*", "admin_token": "boss"}
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
        connection = http.client.HTTPConnection("127.0.0.1", self.service.port, timeout=PATIENCE)
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
    end = time.monotonic() + PATIENCE
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


def tampered(path: Path, folder: Path, change: Callable[[dict[str, np.ndarray]], None]) -> ModelVersion:
    """The same model directory with changed weights in its graph, and digests that are right for them."""
    for file in path.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    model = onnx.load(folder / "model.onnx")
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor).copy() for tensor in model.graph.initializer}
    change(arrays)
    for tensor in model.graph.initializer:
        tensor.CopyFrom(onnx.numpy_helper.from_array(arrays[tensor.name], tensor.name))
    onnx.save(model, folder / "model.onnx")
    write_manifest(folder, read_version(path).manifest)
    return read_version(folder)


def corrupt(version: Path) -> None:
    file = version / "model.onnx"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def rewrite(folder: Path, **changes: Any) -> None:
    """Another manifest, with right digests."""
    manifest = Manifest.model_validate_json((folder / "manifest.json").read_text())
    write_manifest(folder, manifest.model_copy(update=changes))


def labels(service: Service, name: str) -> set[str]:
    """Versions of a model that stand in /metrics."""
    families = text_string_to_metric_families(service.get("/metrics").text)
    samples = [sample for family in families for sample in family.samples]
    return {sample.labels["version"] for sample in samples if sample.labels.get("model") == name}
