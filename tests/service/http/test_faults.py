"""What goes wrong around a service: it is killed, its files change, its log cannot be written, thousands come at once.

The service is a real process, and so are those who come.
"""

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from support import ROOT
from support.service import serving
from support.service.serving import PATIENCE

IMAGE = np.random.default_rng(3).normal(size=(1, 1, 8, 8)).astype(np.float32)
ROW = {"inputs": [{"name": "image", "shape": [1, 1, 8, 8], "datatype": "FP32", "data": IMAGE.ravel().tolist()}]}
INFER = "/v2/models/net/infer"


def asked(path: str, body: bytes) -> bytes:
    return b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (path.encode(), len(body)) + body


async def answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    head = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head)
    assert length is not None, head
    return int(head.split()[1]), await reader.readexactly(int(length[1]))


def resident(service: Any) -> int:
    """Bytes."""
    status = Path(f"/proc/{service.process.pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert found is not None
    return 1024 * int(found[1])


def test_killed_at_any_time_it_starts_again_on_the_same_port(folded: Path, start_process: Callable[..., Any]) -> None:
    """Nothing of it is left that holds the port, not even what compares answers."""
    port = 0
    for _ in range(3):
        with start_process(folded, port=port, shadow=1) as service:
            port = service.port
            assert service.post(INFER, json=ROW).status_code == 200
            service.process.send_signal(signal.SIGKILL)
            service.process.wait()


def test_files_that_change_under_it_change_no_answer(folded: Path, start: Callable[..., Any], tmp_path: Path) -> None:
    """What serves is in memory. The next start refuses what is not what was published, and says so."""
    shutil.copytree(folded, tmp_path / "r")
    graph = tmp_path / "r" / "net" / "2" / "model.onnx"
    with start(tmp_path / "r") as service:
        before = service.post(INFER, json=ROW).json()["outputs"]
        os.truncate(graph, 100)
        assert service.post(INFER, json=ROW).json()["outputs"] == before
        graph.unlink()
        graph.mkdir()
        assert service.post(INFER, json=ROW).json()["outputs"] == before
    for damage in ("a folder", "nothing", "half"):
        shutil.rmtree(graph, ignore_errors=True)
        if damage == "half":
            content = (folded / "net" / "2" / "model.onnx").read_bytes()
            graph.write_bytes(content[: len(content) // 2])
        elif damage == "a folder":
            graph.mkdir()
        with start(tmp_path / "r") as service:
            states = {entry["version"]: entry for entry in service.post("/v2/repository/index").json()}
            assert states["1"]["state"] == "READY", "the older version serves instead"
            assert states["2"]["state"] == "UNAVAILABLE"
            assert "model.onnx" in states["2"]["reason"]
            assert service.post(INFER, json=ROW).json()["model_version"] == "1"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_log_that_cannot_be_written_stops_nothing(repository: Path) -> None:
    """stderr goes to a disk that is full; each request wants a line there."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {"REPOSITORY": repository, "PORT": port, "DEVICE": "cpu", "ACCESS_LOG": "true", "LOG_FORMAT": "json"}
    environment = {**os.environ, **{f"BNFOLD_{name}": str(value) for name, value in settings.items()}}
    with Path("/dev/full").open("w") as full:
        process = subprocess.Popen([sys.executable, "-c", serving.SERVE], env=environment, stderr=full)
    try:
        end = time.monotonic() + serving.PATIENCE
        while True:
            try:
                status = httpx.post(f"http://127.0.0.1:{port}{INFER}", json=ROW, timeout=serving.PATIENCE).status_code
                break
            except httpx.TransportError:
                assert time.monotonic() < end
                time.sleep(0.05)
        assert status == 200
        assert httpx.post(f"http://127.0.0.1:{port}{INFER}", json=ROW, timeout=serving.PATIENCE).status_code == 200
    finally:
        process.terminate()
        assert process.wait(serving.PATIENCE) == 0


def test_two_thousand_connections_are_served_at_once(repository: Path, start_process: Callable[..., Any]) -> None:
    async def one(port: int, everyone: asyncio.Barrier) -> tuple[int, bytes]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        await everyone.wait()
        writer.write(asked(INFER, json.dumps(ROW).encode()))
        found = await answer(reader)
        writer.close()
        return found

    async def all_of_them(port: int) -> list[tuple[int, bytes]]:
        everyone = asyncio.Barrier(2000)
        return await asyncio.gather(*(one(port, everyone) for _ in range(2000)))

    with start_process(repository, queue_rows=2000) as service:
        answers = asyncio.run(all_of_them(service.port))
    assert {status for status, _ in answers} == {200}
    outputs = np.array([json.loads(body)["outputs"][0]["data"] for _, body in answers])
    assert np.abs(outputs - outputs[0]).max() < 1e-5


def test_clients_that_die_in_the_middle_of_a_body_leave_nothing_behind(
    repository: Path, start_process: Callable[..., Any]
) -> None:
    half = bytes(1 << 20)
    with start_process(repository) as service:
        head = b"POST /v2/models/net/infer HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (2 * len(half))

        def die(times: int) -> None:
            for _ in range(times):
                with closing(socket.create_connection(("127.0.0.1", service.port), timeout=PATIENCE)) as connection:
                    connection.sendall(head + half)
            assert service.post(INFER, json=ROW).status_code == 200

        die(100)
        before = resident(service)
        die(400)
        assert resident(service) < before + (64 << 20), "400 half bodies of 1 MB"


def test_a_million_rows_wait_and_are_answered(tmp_path: Path, start: Callable[..., Any], make_slow: Any) -> None:
    """Behind one whose run is held."""
    make_slow(tmp_path)
    requests, rows = 251, 4000
    enough = (requests - 1) * rows  # one is merged already while the first is computed
    tensor = {"name": "x", "shape": [rows, 1], "datatype": "FP32", "parameters": {"binary_data_size": 4 * rows}}
    header = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()

    def body(number: int) -> bytes:
        """Rows that tell whose they are, and need no work."""
        return header + (-1 - np.arange(rows, dtype=np.float32) - number * rows).astype("<f4").tobytes()

    async def ask(port: int, content: bytes, path: str) -> tuple[int, bytes]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        sent = b"POST %s HTTP/1.1\r\nHost: x\r\nInference-Header-Content-Length: %d\r\nContent-Length: %d\r\n\r\n"
        writer.write(sent % (path.encode(), len(header), len(content)) + content)
        found = await answer(reader)
        writer.close()
        return found

    async def everyone(service: Any) -> list[tuple[int, bytes]]:
        held = np.full(rows, serving.HELD, "<f4").tobytes()
        first = asyncio.create_task(ask(service.port, header + held, path))
        while not await asyncio.to_thread(service.metric, 'bnfold_running_rows{model="slow",version="1"}'):
            assert not first.done()
        found = asyncio.gather(*(ask(service.port, body(number), path) for number in range(requests)))
        while waiting[-1] < enough:
            waiting.append(await asyncio.to_thread(service.metric, 'bnfold_queue_rows{model="slow",version="1"}'))
        hold.release()
        await first
        return await found

    path, waiting = "/v2/models/slow/infer", [0.0]
    with (
        start(tmp_path, max_batch_size=4096, max_request_rows=rows, queue_rows=2_000_000) as service,
        serving.held() as hold,
    ):
        answers = asyncio.run(everyone(service))
    assert {status for status, _ in answers} == {200}
    for number, (_, content) in enumerate(answers):
        assert content[-4 * rows :] == body(number)[-4 * rows :]
    assert waiting[-1] == enough


def test_nothing_waits_by_the_wall_clock() -> None:
    """Which jumps. It is read only where a date is told: in a log line, in what a proof and the statistics say."""
    readers = {
        file.name
        for file in (ROOT / "service").rglob("*.py")
        if re.search(r"\btime\.time(_ns)?\(|datetime\.(now|utcnow)\(", file.read_text())
    }
    assert readers <= {"logs.py", "equivalence.py", "statistics.py", "metrics.py", "traffic.py"}, readers
