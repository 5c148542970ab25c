"""nginx with deploy/nginx.conf in front of two processes: nobody notices that there are two, nor that one dies."""

import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest
import tritonclient.http as triton

from service.settings import Settings
from support import ROOT
from support.service.served import net
from support.service.serving import PATIENCE, ServiceProcess, start_process

CONFIG = (ROOT / "deploy" / "nginx.conf").read_text()
NGINX = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin") or ""
pytestmark = [pytest.mark.integration, pytest.mark.skipif(not NGINX, reason="no nginx; .ci/run installs it")]

IMAGES = np.random.default_rng(3).random((3, 1, 8, 8), np.float32)
ROW = {"inputs": [{"name": "image", "shape": [1, 1, 8, 8], "datatype": "FP32", "data": IMAGES[0].ravel().tolist()}]}


@dataclass
class Balanced:
    url: str
    services: list[ServiceProcess]

    @property
    def address(self) -> str:
        return self.url.removeprefix("http://")

    def counts(self) -> list[float]:
        """Requests that each process has answered."""
        return [answered(service) for service in self.services]


def answered(service: ServiceProcess) -> float:
    return sum(float(n) for n in re.findall(r"^bnfold_requests_total{.*} (\S+)$", service.get("/metrics").text, re.M))


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


@pytest.fixture
def balanced(tmp_path: Path) -> Iterator[Balanced]:
    """The configuration as it is, but for the three ports and the place of its files."""
    net(tmp_path / "repository")
    with start_process(tmp_path / "repository") as first, start_process(tmp_path / "repository") as second:
        port = free_port()
        config = CONFIG.replace("127.0.0.1:8100", first.address).replace("127.0.0.1:8101", second.address)
        config = config.replace("listen 8080;", f"listen 127.0.0.1:{port};")
        assert config.count("127.0.0.1:") == 3
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"):
            config = config.replace("http {", f"http {{\n    {kind}_temp_path {tmp_path}/{kind};", 1)
        config = config.replace("http {", f"http {{\n    access_log {tmp_path}/access.log;", 1)
        (tmp_path / "nginx.conf").write_text(config)
        tmp_path.chmod(0o755)
        outside = f"daemon off; pid {tmp_path}/pid; error_log {tmp_path}/error.log;"
        files = ["-p", str(tmp_path), "-e", f"{tmp_path}/error.log", "-c", f"{tmp_path}/nginx.conf"]
        process = subprocess.Popen([NGINX, *files, "-g", outside], stderr=subprocess.DEVNULL)
        try:
            wait_for(port, process, tmp_path)
            yield Balanced(f"http://127.0.0.1:{port}", [first, second])
        finally:
            process.terminate()
            process.wait(PATIENCE)


def wait_for(port: int, process: "subprocess.Popen[bytes]", folder: Path) -> None:
    deadline = time.monotonic() + 30
    while True:
        assert process.poll() is None, (folder / "error.log").read_text()
        assert time.monotonic() < deadline, "nginx does not listen"
        try:
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
        except ConnectionRefusedError:
            time.sleep(0.02)
        else:
            return


def connections_to(port: int) -> int:
    """Connections to `port` on this machine, those that were closed a moment ago among them."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(row[2].endswith(f":{port:04X}") or (row[1].endswith(f":{port:04X}") and row[3] == "06") for row in rows)


def test_both_compute_over_connections_that_are_kept(balanced: Balanced) -> None:
    with httpx.Client(timeout=30) as client:
        for _ in range(200):
            assert client.post(f"{balanced.url}/v2/models/net/infer", json=ROW).status_code == 200
    open_connections = [connections_to(service.port) for service in balanced.services]
    assert sum(balanced.counts()) == 200
    assert min(balanced.counts()) >= 50
    # besides nginx's own only those of the two metrics' pages above
    assert max(open_connections) <= 20


def test_binary_bodies_and_headers_pass_unchanged(balanced: Balanced) -> None:
    tensor = triton.InferInput("image", list(IMAGES.shape), "FP32").set_data_from_numpy(IMAGES)
    wanted = [triton.InferRequestedOutput("scores", binary_data=True)]
    body, header = triton.InferenceServerClient.generate_request_body([tensor], outputs=wanted)
    sent = {"Inference-Header-Content-Length": str(header)}
    path = "/v2/models/net/infer"
    direct = balanced.services[0].post(path, content=body, headers=sent)
    passed = httpx.post(balanced.url + path, content=body, headers=sent, timeout=30)
    assert direct.status_code == passed.status_code == 200
    assert passed.content == direct.content
    for name in ("inference-header-content-length", "content-type", "content-length"):
        assert passed.headers[name] == direct.headers[name]
    with triton.InferenceServerClient(balanced.address) as client:
        scores = client.infer("net", [tensor], outputs=wanted).as_numpy("scores")
    assert scores.shape == (3, 10)


def test_who_is_killed_under_load_costs_nobody_an_answer(balanced: Balanced) -> None:
    statuses: list[int] = []
    done = threading.Event()

    def client() -> None:
        with httpx.Client(timeout=30) as http:
            while not done.is_set():
                statuses.append(http.post(f"{balanced.url}/v2/models/net/infer", json=ROW).status_code)

    threads = [threading.Thread(target=client) for _ in range(8)]
    for thread in threads:
        thread.start()
    try:
        deadline = time.monotonic() + 60
        for least in (200, 400):
            while len(statuses) < least:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            if least == 200:
                balanced.services[0].process.send_signal(signal.SIGKILL)
                balanced.services[0].process.wait(PATIENCE)
    finally:
        done.set()
        for thread in threads:
            thread.join(60)
    assert set(statuses) == {200}
    with httpx.Client(timeout=30) as http:
        for _ in range(20):
            assert http.post(f"{balanced.url}/v2/models/net/infer", json=ROW).status_code == 200


def test_an_error_is_passed_on_and_metrics_are_not(balanced: Balanced) -> None:
    refused = httpx.post(f"{balanced.url}/v2/models/net/infer", json={}, timeout=30)
    assert (refused.status_code, "error" in refused.json()) == (400, True)
    assert httpx.get(f"{balanced.url}/metrics", timeout=PATIENCE).status_code == 404
    assert httpx.get(f"{balanced.url}/v2/health/ready", timeout=PATIENCE).json() == {"ready": True}


def test_its_numbers_go_with_the_services_own() -> None:
    defaults = Settings(repository=Path("/models"))

    def seconds(name: str) -> float:
        [found] = re.findall(rf"^\s*{name} (\d+)s;", CONFIG, re.MULTILINE)
        return float(found)

    assert seconds("keepalive_timeout") < defaults.keep_alive_seconds
    assert seconds("proxy_read_timeout") > max(defaults.timeout_seconds, defaults.equivalence_seconds)
    [megabytes] = re.findall(r"client_max_body_size (\d+)m;", CONFIG)
    assert int(megabytes) << 20 == defaults.max_body_bytes
