"""Requests a second: the service beside the FastAPI handler that a user would write, under the same load, in one run.

    python -m benchmarks.serving [--seconds 4]
    python -m benchmarks.serving --shadow 0.01      what watching costs: the service with that share, and without

Both serve the same folded graph of a small network (cnn of models/, 1x8x8, random statistics) in ONNX Runtime on the
CPU, one process each on uvicorn. The client is one more process on the same machine: plain sockets with keep-alive,
every answer checked. The servers take turns (A-B-A-B), medians and ratios are reported. The handler takes JSON, since
that is what people write; it is compared with our JSON, and our binary tensors stand beside it.

With `--shadow` two services take turns, their order changing with each round, and the ratio is the median over rounds:
one that watches has the same load as one that does not, a moment apart. What it compared and dropped is told, too.
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
import urllib.request
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


@dataclass(frozen=True)
class Published:
    """The model that is asked: its repository and graph, the requests for one row, and their answer."""

    repository: Path
    graph: Path
    as_json: bytes
    json_headers: dict[str, str]
    as_binary: bytes
    binary_headers: dict[str, str]
    expected: np.ndarray

    def binary(self, name: str, port: int) -> Asked:
        return Asked(name, port, http_request("/v2/models/cnn/infer", self.as_binary, self.binary_headers), True)


def publish(folder: Path) -> Published:
    checkpoint = folder / "cnn.pt"
    torch.manual_seed(0)
    torch.save(randomise(cnn()).state_dict(), checkpoint)
    published = convert(Source(checkpoint, "models.cnn:cnn", (), ["1,8,8"]), Target(folder / "r", "cnn"))
    assert published.path is not None
    graph = published.path / "model.onnx"
    x = np.random.default_rng(0).random((1, 1, 8, 8), np.float32)
    expected = next(iter(run(open_session(graph, provider="cpu"), {"x": x}).values()))
    tensor = {"name": "x", "shape": [1, 1, 8, 8], "datatype": "FP32", "parameters": {"binary_data_size": 256}}
    header = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    return Published(
        folder / "r",
        graph,
        json.dumps({"instances": x.tolist()}).encode(),
        {"Content-Type": "application/json"},
        header + x.tobytes(),
        {"Inference-Header-Content-Length": str(len(header))},
        expected,
    )


def serve(repository: Path, port: int, *options: str) -> list[str]:
    return [sys.executable, "-m", "fold", "serve", str(repository), "--port", str(port), *options]


def beside_plain(published: Published, arguments: argparse.Namespace, console: Console) -> None:
    ours, plain = free_port(), free_port()
    targets = [
        Asked("plain FastAPI, JSON", plain, http_request("/predict", published.as_json, published.json_headers), False),
        Asked(
            "bnfold, JSON",
            ours,
            http_request("/v1/models/cnn:predict", published.as_json, published.json_headers),
            False,
        ),
        published.binary("bnfold, binary", ours),
    ]
    rates: dict[tuple[str, int], list[float]] = {}
    plain_server = [sys.executable, "-c", PLAIN, str(published.graph), str(plain)]
    with server(plain_server, plain), server(serve(published.repository, ours), ours):
        for turn in range(arguments.rounds):
            for connections in arguments.connections:
                for target in targets:
                    console.print(f"round {turn + 1}: {target.name}, {connections} connections")
                    rate = asyncio.run(load(target, connections, arguments.seconds, published.expected))
                    rates.setdefault((target.name, connections), []).append(rate)
    medians = {key: statistics.median(values) for key, values in rates.items()}
    ratios = {key: medians[key] / medians[targets[0].name, key[1]] for key in medians}
    tell(rates, ratios, arguments)


def watched(published: Published, arguments: argparse.Namespace, console: Console) -> None:
    """The same requests to a service that watches and to one that does not."""
    without, watching = (
        published.binary("bnfold", free_port()),
        published.binary(f"bnfold, shadow {arguments.shadow:g}", free_port()),
    )
    rates: dict[tuple[str, int], list[float]] = {}
    with (
        server(serve(published.repository, without.port), without.port),
        server(serve(published.repository, watching.port, "--shadow", str(arguments.shadow)), watching.port),
    ):
        for turn in range(arguments.rounds):
            for connections in arguments.connections:
                for target in (without, watching) if turn % 2 == 0 else (watching, without):
                    console.print(f"round {turn + 1}: {target.name}, {connections} connections")
                    rate = asyncio.run(load(target, connections, arguments.seconds, published.expected))
                    rates.setdefault((target.name, connections), []).append(rate)
        with urllib.request.urlopen(f"http://127.0.0.1:{watching.port}/metrics") as page:
            lines = [line for line in page.read().decode().splitlines() if line.startswith("bnfold_shadow_")]
    ratios = {
        (target.name, connections): statistics.median(
            rate / base
            for rate, base in zip(rates[target.name, connections], rates[without.name, connections], strict=True)
        )
        for target in (without, watching)
        for connections in arguments.connections
    }
    tell(rates, ratios, arguments)
    console.print("\n".join(lines), markup=False, highlight=False)


def tell(
    rates: dict[tuple[str, int], list[float]], ratios: dict[tuple[str, int], float], arguments: argparse.Namespace
) -> None:
    table = Table("Server", *(f"{c} connections, requests/s (ratio)" for c in arguments.connections))
    table.title = f"ONNX Runtime {onnxruntime.__version__}, {os.cpu_count()} cores, client on the same machine"
    for name in dict.fromkeys(name for name, _ in rates):
        cells = (f"{statistics.median(rates[name, c]):.0f} ({ratios[name, c]:.3f})" for c in arguments.connections)
        table.add_row(name, *cells)
    Console(width=120).print(table)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    content = [{"server": name, "connections": c, "requests_per_second": r} for (name, c), r in rates.items()]
    arguments.out.write_text(json.dumps(content, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--shadow", type=float, default=0, help="measure what watching this share of the answers costs")
    parser.add_argument("--out", type=Path, default=Path("build/benchmarks/serving.json"))
    arguments = parser.parse_args()
    console = Console(stderr=True)
    with tempfile.TemporaryDirectory() as folder:
        (watched if arguments.shadow else beside_plain)(publish(Path(folder)), arguments, console)


if __name__ == "__main__":
    main()
