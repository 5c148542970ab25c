"""How long health, metrics and small requests take while other clients send the worst bodies that there are; and the
memory that is left behind.

    python -m benchmarks.neighbours [--seconds 3] [--memory 0]

For each body, clients in a process of their own send it over and over, and their answers are checked for the status.
Beside them one client asks for health, metrics and a prediction in turn, with a pause between; predictions are compared
with ONNX Runtime's. `--memory 1000` sends so many refused and so many served bodies of 10 MB, and ten times as many
clients leave within a body; the resident memory must end within 1.3 times that of the start.
"""

import argparse
import asyncio
import contextlib
import gzip
import json
import multiprocessing
import os
import re
import socket
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.folding import machine, randomise
from benchmarks.scaling import resident
from benchmarks.serving import free_port, infer_body
from benchmarks.soak import service
from fold.convert import Target, convert
from fold.runtime import open_session, run
from fold.sources import Source
from models.cnn import cnn

PAUSE_SECONDS = 0.01
WANTED_MS = 50
"""At the 99th percentile."""
GROWTH = 1.3
SETTLE_SECONDS = 3
ROW_BYTES = 4 * 3 * 32 * 32
PREDICT = "/v1/models/net:predict"
JSON = {"Content-Type": "application/json"}
HEALTH, METRICS = (f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode() for path in ("/v2/health/live", "/metrics"))


@dataclass(frozen=True)
class Bad:
    """What `clients` send at a time, and the status of the answer."""

    name: str
    body: bytes
    status: int
    clients: int = 1
    encoding: str = ""
    typed: str = ""
    """The field of typed contents in which `body`, packed numbers, goes over gRPC; raw contents if it is `raw`."""

    def request(self) -> bytes:
        more = f"Content-Encoding: {self.encoding}\r\n" if self.encoding else ""
        return post(PREDICT, self.body, f"Content-Type: application/json\r\n{more}")


def post(path: str, body: bytes, headers: str) -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: x\r\n{headers}Content-Length: {len(body)}\r\n\r\n".encode() + body


def bodies() -> list[Bad]:
    rows = np.random.default_rng(1).random((200, 3, 32, 32), np.float32)
    lists = b'{"instances":[' + b"[]," * 20_000_000 + b"[]]}"
    return [
        Bad("nothing", b"", 0, clients=0),
        Bad("20 million empty lists, 60 MB", lists, 400),
        Bad("the same, gzipped", gzip.compress(lists, 9), 400, encoding="gzip"),
        Bad("30 million whole numbers, 60 MB", b'{"instances":[' + b"1," * 30_000_000 + b"1]}", 400),
        Bad(
            "3 million numbers beside the instances, 12 MB",
            b'{"a":[' + b"1.5," * 3_000_000 + b'1],"instances":[[1]]}',
            400,
        ),
        Bad("gzip bomb, 1 GB", gzip.compress(bytes(1 << 30), 9), 413, encoding="gzip"),
        Bad("a text of 60 MB", b'{"instances":["' + b"x" * 60_000_000 + b'"]}', 400),
        Bad(
            "800 rows, 2.5 million numbers",
            json.dumps({"instances": np.tile(rows, (4, 1, 1, 1)).tolist()}).encode(),
            200,
        ),
        Bad("200 rows, 614,400 numbers", json.dumps({"instances": rows.tolist()}).encode(), 200, clients=3),
        Bad("gRPC: 850 rows, typed", np.tile(rows, (5, 1, 1, 1))[:850].tobytes(), 200, typed="fp32_contents"),
        Bad("gRPC: 30 million varints, 30 MB", b"\1" * 30_000_000, 400, typed="int64_contents"),
        Bad("gRPC: 60 MB, raw", bytes(60_000_000), 400, typed="raw"),
    ]


def receive(connection: socket.socket) -> int:
    """The status of the answer, which is read to its end."""
    content = b""
    while b"\r\n\r\n" not in content:
        part = connection.recv(1 << 16)
        if not part:
            return 0
        content += part
    head, _, body = content.partition(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head)
    left = int(length[1] if length else 0) - len(body)
    while left > 0:
        left -= len(connection.recv(1 << 16))
    return int(head.split()[1])


def send_on(bad: Bad, port: int, grpc_port: int, sent: "multiprocessing.sharedctypes.Synchronized[int]") -> None:
    """In a process of its own, until it is terminated. It gives way to the service, whose machine it is not on."""
    os.nice(10)
    if bad.typed:
        call_on(bad, grpc_port, sent)
    request = bad.request()
    while True:
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(request)
            status = receive(connection)
        sent.value = sent.value + 1 if status == bad.status else -1_000_000 - status


def call_on(bad: Bad, port: int, sent: "multiprocessing.sharedctypes.Synchronized[int]") -> None:
    import grpc  # noqa: PLC0415  # a process that has it cannot fork

    from service.grpc.messages import ModelInferRequest  # noqa: PLC0415

    request = ModelInferRequest(model_name="net")
    tensor = request.inputs.add(name="x", datatype="FP32", shape=[len(bad.body) // ROW_BYTES, 3, 32, 32])
    if bad.typed == "raw":
        request.raw_input_contents.append(bad.body)
    else:
        number = tensor.contents.DESCRIPTOR.fields_by_name[bad.typed].number
        size = ModelInferRequest(id="x" * len(bad.body)).SerializeToString()[1 : -len(bad.body)]
        tensor.contents.MergeFromString(bytes([number << 3 | 2]) + size + bad.body)
    content = request.SerializeToString()
    call = grpc.insecure_channel(f"127.0.0.1:{port}").unary_unary("/inference.GRPCInferenceService/ModelInfer")
    while True:
        try:
            call(content)
            status = 200
        except grpc.RpcError as error:
            status = 400 if error.code() is grpc.StatusCode.INVALID_ARGUMENT else 500
        sent.value = sent.value + 1 if status == bad.status else -1_000_000 - status


@contextlib.contextmanager
def sending(bad: Bad, port: int, grpc_port: int) -> Iterator[list["multiprocessing.sharedctypes.Synchronized[int]"]]:
    context = multiprocessing.get_context("fork")
    counts = [context.Value("q", 0) for _ in range(bad.clients)]
    processes = [context.Process(target=send_on, args=(bad, port, grpc_port, count)) for count in counts]
    for process in processes:
        process.start()
    try:
        yield counts
    finally:
        for process in processes:
            process.kill()
            process.join()


async def beside(port: int, request: bytes, expected: np.ndarray, seconds: float) -> dict[str, list[float]]:
    """Milliseconds of each kind of request."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    taken: dict[str, list[float]] = {"health": [], "metrics": [], "infer": []}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for kind, sent in (("health", HEALTH), ("metrics", METRICS), ("infer", request)):
            began = time.perf_counter()
            writer.write(sent)
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", head)
            body = await reader.readexactly(int(length[1] if length else 0))
            taken[kind].append(1000 * (time.perf_counter() - began))
            right = np.frombuffer(body[-expected.nbytes :], np.float32) if kind == "infer" else expected
            if not head.startswith(b"HTTP/1.1 200") or np.abs(right - expected).max() > 1e-4:
                raise SystemExit(f"{kind}: a wrong answer: {head!r}")
            await asyncio.sleep(PAUSE_SECONDS)
    writer.close()
    return taken


def measure_memory(port: int, pid: int, count: int) -> bool:
    """Whether memory ends within `GROWTH` of the start."""
    rows, length = infer_body(np.zeros((850, 3, 32, 32), np.float32))
    served = post("/v2/models/net/infer", rows, f"Inference-Header-Content-Length: {length}\r\n")
    refused = post(PREDICT, b'{"instances":[' + b"1," * 5_000_000 + b"1]}", "Content-Type: application/json\r\n")
    right, start = True, 0
    for name, request, status, times in (
        ("warm", served, 200, 5),
        ("clients that leave", served[: len(served) // 2], None, 10 * count),
        ("refused", refused, 400, count),
        ("served", served, 200, count),
    ):
        for _ in range(times):
            with socket.create_connection(("127.0.0.1", port)) as connection:
                connection.sendall(request)
                if status is not None and receive(connection) != status:
                    raise SystemExit(f"{name}: another status than {status}")
        time.sleep(SETTLE_SECONDS)
        now = resident("VmRSS", pid)
        start = start or now
        right = right and now < GROWTH * start
        print(f"| {times} × {name} | {now / 1e6:.0f} | {now / start:.2f} |", flush=True)
    return right


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--memory", type=int, default=0)
    arguments = parser.parse_args()
    x = np.random.default_rng(0).random((1, 3, 32, 32), np.float32)
    fine = True
    with tempfile.TemporaryDirectory() as scratch:
        folder, port, grpc_port = Path(scratch), free_port(), free_port()
        os.environ["BNFOLD_GRPC_PORT"] = str(grpc_port)
        torch.manual_seed(0)
        torch.save(randomise(cnn(in_channels=3, channels=(8, 16), depth=1)).state_dict(), folder / "net.pt")
        how = ["in_channels=3", "channels=(8,16)", "depth=1"]
        source = Source(folder / "net.pt", "models.cnn:cnn", how, ["3,32,32"])
        path = convert(source, Target(folder / "repository", "net", 1), samples=2, provider="cpu").path
        assert path is not None
        expected = next(iter(run(open_session(path / "model.onnx", provider="cpu"), {"x": x}).values())).ravel()
        body, length = infer_body(x)
        request = post("/v2/models/net/infer", body, f"Inference-Header-Content-Length: {length}\r\n")
        print(machine(("onnxruntime", "orjson", "uvicorn", "numpy")))
        with service(folder / "repository", port) as process:
            print("| beside | answered | health p50, p99 (ms) | metrics | infer |\n|---|---|---|---|---|")
            for bad in bodies() if arguments.seconds else ():
                with sending(bad, port, grpc_port) as counts:
                    taken = asyncio.run(beside(port, request, expected, arguments.seconds))
                    answered = [count.value for count in counts]
                quantiles = {kind: np.quantile(values, (0.5, 0.99)) for kind, values in taken.items()}
                fine = fine and min(answered, default=0) >= 0 and all(p99 < WANTED_MS for _, p99 in quantiles.values())
                cells = " | ".join(f"{p50:.1f}, {p99:.0f}" for p50, p99 in quantiles.values())
                print(f"| {bad.name} × {bad.clients} | {sum(answered)} | {cells} |", flush=True)
            if arguments.memory:
                print("| bodies of 10 MB | resident MB | over the start |\n|---|---|---|")
                fine = measure_memory(port, process.pid, arguments.memory) and fine
            print(f"at most {resident('VmHWM', process.pid) / 1e6:.0f} MB at any time")
    if not fine:
        raise SystemExit("not as wanted")


if __name__ == "__main__":
    main()
