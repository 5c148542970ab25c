"""A real local cluster of Ray: `bnfold predict --engine ray` goes on when a worker is killed, and Ray Serve serves."""

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import onnxruntime as ort
import pyarrow.parquet as pq
import pytest
import tritonclient.http as triton
import yaml
from sklearn.datasets import load_digits

from support import ROOT
from support.commands import bnfold
from support.service import served
from support.service.reloading import ROWS, Load, table
from support.service.serving import Service

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """Two processors, whatever the machine has."""
    import ray  # noqa: PLC0415  # takes a second

    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error", namespace="serve")
        yield
        ray.shutdown()


def test_a_cluster_goes_on_when_a_worker_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two workers; the first that is seen to write is killed."""
    served.net(tmp_path / "repository")
    digits = np.concatenate([load_digits().images[:, None] / 16] * 2).astype(np.float32)
    np.save(tmp_path / "d.npy", digits)
    monkeypatch.chdir(tmp_path)
    seen: list[int] = []
    ended = threading.Event()

    def kill_the_first() -> None:
        while not ended.is_set():
            for name in os.listdir("out") if Path("out").exists() else ():
                if name.startswith(".partial-") and (pid := int(name.split("-")[1])) not in seen:
                    if not seen:
                        os.kill(pid, signal.SIGKILL)
                    seen.append(pid)

    watch = threading.Thread(target=kill_the_first)
    watch.start()
    try:
        words = ("d.npy", "--shard-rows", 20, "--engine", "ray", "--out", "out", "--json")
        done = bnfold("predict", "repository/net", *words, "--device", "cpu")
    finally:
        ended.set()
        watch.join()
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["predicted"] == len(digits)
    assert len(seen) >= 3, "two workers, and one in the place of that which was killed"
    found = pq.read_table(sorted((tmp_path / "out").glob("part-*.parquet")))
    assert found["row"].to_pylist() == list(range(len(digits)))
    [scores] = ort.InferenceSession(tmp_path / "repository/net/1/model.onnx").run(None, {"image": digits})
    assert found["index"].to_pylist() == np.asarray(scores).argmax(axis=1).tolist()


@pytest.fixture
def port() -> Iterator[int]:
    """Nobody else gets it while the test runs: this socket holds it and does not listen, and Ray shares it."""
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


def deploy(folder: Path, port: int, **args: Any) -> None:
    """`serve run` with deploy/ray/serve.yaml; only sizes, port and arguments are those of a test."""
    from ray.serve.scripts import cli  # noqa: PLC0415

    config = yaml.safe_load((ROOT / "deploy" / "ray" / "serve.yaml").read_text())
    config["http_options"] |= {"host": "127.0.0.1", "port": port}
    [application] = config["applications"]
    application["args"] = {"repository": str(folder), "device": "cpu", **args}
    [deployment] = application["deployments"]
    deployment["ray_actor_options"] = {"num_cpus": 0.5}
    (folder.parent / "serve.yaml").write_text(yaml.safe_dump(config))
    cli.main(["run", "--non-blocking", str(folder.parent / "serve.yaml")], standalone_mode=False)


def until(true: Callable[[], Any]) -> None:
    """Replicas start as fast as the machine is; what fails is said at once."""
    while not true():
        time.sleep(0.1)


def test_ray_serve_serves_and_updates_without_a_failed_request(tmp_path: Path, port: int) -> None:
    """Two replicas, as the file says. An update to the next version comes by Serve's file, under load."""
    from ray import serve  # noqa: PLC0415

    def running() -> bool:
        found = serve.status().applications["bnfold"]
        assert found.status not in ("DEPLOY_FAILED", "UNHEALTHY"), found
        return found.status == "RUNNING" and found.deployments["bnfold"].replica_states == {"RUNNING": 2}

    for version in (1, 2):
        table(tmp_path / "repository", version)
    try:
        deploy(tmp_path / "repository", port, version_policy="1")
        until(running)
        with triton.InferenceServerClient(f"127.0.0.1:{port}") as client:
            assert client.is_server_live()
            assert client.is_server_ready()
            asked = triton.InferInput("index", [ROWS], "INT64")
            asked.set_data_from_numpy(np.arange(ROWS))
            answer = client.infer("table", [asked])
            assert answer.as_numpy("value").tolist() == [1000.0, 1001.0, 1002.0, 1003.0, 1004.0]
            assert answer.get_response()["model_version"] == "1"
        here = cast(Service, SimpleNamespace(port=port))
        with Load(here).of(3) as load:
            load.go_on("1")
            deploy(tmp_path / "repository", port, version_policy="2")
            until(lambda: load.seen["2"] or load.failed)
            until(running)
            before = load.seen["1"]
            load.go_on("2")
            assert load.seen["1"] == before, "the old replicas are gone"
        assert load.failed == []
    finally:
        serve.shutdown()
