"""Requests a second: the service beside the FastAPI handler that a user would write, under the same load, in one run.

    python -m benchmarks.serving [--seconds 4]

Both serve the same folded graph of a small network (cnn of models/, 1x8x8, random statistics) in ONNX Runtime on the
CPU, one process each on uvicorn. The client is one more process on the same machine: plain sockets with keep-alive,
every answer checked. The servers take turns (A-B-A-B), medians and ratios are reported. The handler takes JSON, since
that is what people write; it is compared with our JSON, and our binary tensors stand beside it.
"""

import argparse
import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.folding import randomise
from fold.convert import Source, Target, convert
from fold.runtime import open_session, run
from models.cnn import cnn

PLAIN = """
import sys
import numpy as np, onnxruntime, uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
app = FastAPI()

class Body(BaseModel):
    instances: list[list[list[list[float]]]]

@app.post("/predict")
def predict(body: Body):
    (out,) = session.run(None, {"x": np.array(body.instances, np.float32)})
    return {"predictions": out.tolist()}

uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), log_level="warning", access_log=False)
"""


@dataclass(frozen=True)
class Asked:
    """What is asked of which server: one prepared request, and how its answer is told to be right."""

    name: str
    port: int
    request: bytes
    binary: bool


def http_request(path: str, body: bytes, headers: dict[str, str]) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


async def load(target: Asked, connections: int, seconds: float, expected: np.ndarray) -> float:
    """Requests a second over keep-alive connections, each sending the next request when it has its answer."""
    stop = time.perf_counter() + seconds
    counts = [0] * connections

    async def client(number: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", target.port)
        while time.perf_counter() < stop:
            writer.write(target.request)
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
            body = await reader.readexactly(length)
            if not head.startswith(b"HTTP/1.1 200"):
                raise SystemExit(f"{target.name}: {body[:200]!r}")
            answer = np.frombuffer(body[-expected.nbytes :], np.float32) if target.binary else _json_answer(body)
            if np.abs(answer - expected.ravel()).max() > 1e-4 * np.abs(expected).max():
                raise SystemExit(f"{target.name}: a wrong answer")
            counts[number] += 1
        writer.close()

    started = time.perf_counter()
    await asyncio.gather(*(client(number) for number in range(connections)))
    return sum(counts) / (time.perf_counter() - started)


def _json_answer(body: bytes) -> np.ndarray:
    return np.array(json.loads(body)["predictions"], np.float32).ravel()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def server(command: list[str], port: int) -> Iterator[None]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(300):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield
    finally:
        process.terminate()
        process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--out", type=Path, default=Path("build/benchmarks/serving.json"))
    arguments = parser.parse_args()
    console = Console(stderr=True)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "cnn.pt"
        torch.manual_seed(0)
        torch.save(randomise(cnn()).state_dict(), checkpoint)
        published = convert(Source(checkpoint, "models.cnn:cnn", (), ["1,8,8"]), Target(Path(folder) / "r", "cnn"))
        assert published.path is not None
        graph = published.path / "model.onnx"
        x = np.random.default_rng(0).random((1, 1, 8, 8), np.float32)
        expected = next(iter(run(open_session(graph, provider="cpu"), {"x": x}).values()))
        ours, plain = free_port(), free_port()
        instances = json.dumps({"instances": x.tolist()}).encode()
        header = json.dumps(
            {
                "inputs": [
                    {"name": "x", "shape": [1, 1, 8, 8], "datatype": "FP32", "parameters": {"binary_data_size": 256}}
                ],
                "parameters": {"binary_data_output": True},
            }
        ).encode()
        as_json = {"Content-Type": "application/json"}
        targets = [
            Asked("plain FastAPI, JSON", plain, http_request("/predict", instances, as_json), False),
            Asked("bnfold, JSON", ours, http_request("/v1/models/cnn:predict", instances, as_json), False),
            Asked(
                "bnfold, binary",
                ours,
                http_request(
                    "/v2/models/cnn/infer", header + x.tobytes(), {"Inference-Header-Content-Length": str(len(header))}
                ),
                True,
            ),
        ]
        rates: dict[tuple[str, int], list[float]] = {}
        plain_server = [sys.executable, "-c", PLAIN, str(graph), str(plain)]
        our_server = [sys.executable, "-m", "fold", "serve", str(Path(folder) / "r"), "--port", str(ours)]
        with server(plain_server, plain), server(our_server, ours):
            for turn in range(arguments.rounds):
                for connections in arguments.connections:
                    for target in targets:
                        console.print(f"round {turn + 1}: {target.name}, {connections} connections")
                        rate = asyncio.run(load(target, connections, arguments.seconds, expected))
                        rates.setdefault((target.name, connections), []).append(rate)
    table = Table("Server", *(f"{c} connections, requests/s (ratio)" for c in arguments.connections))
    table.title = f"ONNX Runtime {onnxruntime.__version__}, {os.cpu_count()} cores, client on the same machine"
    medians = {key: statistics.median(values) for key, values in rates.items()}
    for target in targets:
        cells = []
        for connections in arguments.connections:
            rate = medians[target.name, connections]
            cells.append(f"{rate:.0f} ({rate / medians[targets[0].name, connections]:.2f})")
        table.add_row(target.name, *cells)
    Console(width=120).print(table)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    content = [{"server": name, "connections": c, "requests_per_second": r} for (name, c), r in rates.items()]
    arguments.out.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
