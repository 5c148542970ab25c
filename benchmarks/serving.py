"""Measures requests per second: the service beside its alternatives, under the same load, in one run.

    python -m benchmarks.serving [--model digits|resnet18] [--seconds 4] [--rounds 3] [--without mlserver ...]
    python -m benchmarks.serving --shadow 0.01      the cost of comparing live answers: with that share, and without

All serve the same folded graph with ONNX Runtime on the CPU. `bare` is a uvicorn application that only reads the body
and answers with the same number of bytes. R* is the best rate of the session alone, over batch sizes and threads; `run`
is the session alone with one row at a time. wrk makes the load on the same machine, while a second client checks
numbers. The servers and the session alone are measured in turn while all others are stopped, and medians over the
rounds are reported.

Each peer runs in an environment of its own, which is made once under build/peers.
"""

import argparse
import base64
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import urllib.request
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.clients import DATATYPES
from benchmarks.folding import machine, randomise
from benchmarks.servers import PEERS, Running, Server, environment, mlserver_folder
from benchmarks.wrk import Load, Request, load
from fold.convert import Target, convert
from fold.runtime import open_session, run
from fold.sources import Source

MODELS = {"digits": ("models.cnn:cnn", (1, 8, 8)), "resnet18": ("benchmarks.networks:resnet18", (3, 64, 64))}
RUNTIME = f"onnxruntime=={onnxruntime.__version__}"
ENVIRONMENTS = {
    "LitServe": ("litserve", RUNTIME, "numpy"),
    "MLServer": ("mlserver", RUNTIME, "numpy"),
    "BentoML": ("bentoml", RUNTIME, "numpy"),
}
BATCHES = (1, 2, 4, 8, 16, 32, 64)
CANDIDATES = 3
"""How many ways to run the session alone are measured in each round: the best ones of a first measurement of all."""
TOLERANCE = 1e-4
RAW = """
import sys, time, numpy as np, onnxruntime
from concurrent.futures import ThreadPoolExecutor
graph, threads, parallel, seconds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
shape = tuple(map(int, sys.argv[5].split(",")))
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = threads
session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
x = np.random.default_rng(0).random(shape, np.float32)
def work(_):
    count, end = 0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        session.run(None, {"x": x})
        count += len(x)
    return count
session.run(None, {"x": x})
began = time.perf_counter()
with ThreadPoolExecutor(parallel) as pool:
    done = sum(pool.map(work, range(parallel)))
print(done / (time.perf_counter() - began))
"""


@dataclass(frozen=True)
class Published:
    """A folded model, one row for it, and the right answer."""

    repository: Path
    graph: Path
    x: np.ndarray
    expected: np.ndarray

    @property
    def shape(self) -> str:
        return ",".join(map(str, self.x.shape[1:]))

    def right(self, answer: np.ndarray) -> bool:
        return bool(np.abs(answer.ravel() - self.expected.ravel()).max() <= TOLERANCE * np.abs(self.expected).max())


@dataclass(frozen=True)
class Measured:
    """One measurement of one server. `CPU` is seconds for a thousand requests."""

    server: str
    connections: int
    load: Load
    cpu: float
    megabytes: float
    seconds_to_ready: float


def publish(model: str, folder: Path) -> Published:
    arch, shape = MODELS[model]
    module, _, factory = arch.partition(":")
    torch.manual_seed(0)
    net = randomise(getattr(__import__(module, fromlist=[factory]), factory)())
    torch.save(net.state_dict(), folder / "net.pt")
    source = Source(folder / "net.pt", arch, (), [",".join(map(str, shape))])
    published = convert(source, Target(folder / "repository", "net"), samples=2, provider="cpu")
    assert published.path is not None, published.certificate.message
    graph = published.path / "model.onnx"
    x = np.random.default_rng(0).random((1, *shape), np.float32)
    expected = next(iter(run(open_session(graph, provider="cpu"), {"x": x}).values()))
    return Published(folder / "repository", graph, x, expected)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def infer_body(x: np.ndarray) -> tuple[bytes, int]:
    """A request with a binary input `x` that wants a binary answer, and the length of its JSON."""
    size = {"binary_data_size": x.nbytes}
    tensor = {"name": "x", "shape": list(x.shape), "datatype": DATATYPES[x.dtype.name], "parameters": size}
    header = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    return header + x.tobytes(), len(header)


def ours(p: Published, name: str, *options: str, as_json: bool = False) -> Server:
    port = free_port()
    command = [sys.executable, "-m", "fold", "serve", str(p.repository), "--port", str(port), "--device", "cpu"]
    if as_json:
        body = json.dumps({"instances": p.x.tolist()}).encode()
        headers = {"Content-Type": "application/json"}
        request = Request(port, "/v1/models/net:predict", body, headers, partial(_json_right, p, "predictions"))
    else:
        body, length = infer_body(p.x)
        headers = {"Inference-Header-Content-Length": str(length)}
        request = Request(port, "/v2/models/net/infer", body, headers, partial(_bytes_right, p))
    return Server(name, [*command, *options], request)


def bare(p: Published, like: Server) -> Server:
    port = free_port()
    size = 200 + p.expected.nbytes  # the size of our answer: its JSON header and the tensor
    request = Request(port, "/", like.request.body, {}, lambda answer: len(answer) == size)
    return Server("bare uvicorn", [sys.executable, str(PEERS / "bare.py"), str(size), str(port)], request)


def plain(p: Published) -> list[Server]:
    lists, raw = free_port(), free_port()
    as_json = {"Content-Type": "application/json"}
    body = json.dumps({"instances": p.x.tolist()}).encode()
    return [
        Server(
            "plain FastAPI, lists",
            [sys.executable, str(PEERS / "plain_json.py"), str(p.graph), str(lists)],
            Request(lists, "/predict", body, as_json, partial(_json_right, p, "predictions")),
        ),
        Server(
            "plain FastAPI, bytes",
            [sys.executable, str(PEERS / "plain_bytes.py"), str(p.graph), str(raw), p.shape],
            Request(raw, "/predict", p.x.tobytes(), {}, partial(_bytes_right, p)),
        ),
    ]


def peers(p: Published, folder: Path, without: list[str]) -> list[Server]:
    found = []
    for name, requirements in ENVIRONMENTS.items():
        home = None if name.lower() in without else environment(folder, name.lower(), requirements)
        if home is not None:
            found.append(_peer(name, p, home, folder))
    return found


def _peer(name: str, p: Published, home: Path, folder: Path) -> Server:
    port = free_port()
    as_json = {"Content-Type": "application/json"}
    encoded = base64.b64encode(p.x.tobytes()).decode()
    where = {"GRAPH": str(p.graph), "SHAPE": p.shape, "PATH": f"{home}:{os.environ['PATH']}"}
    if name == "LitServe":
        command = [str(home / "python"), str(PEERS / "lit.py"), str(p.graph), str(port), p.shape]
        body = json.dumps({"x": encoded}).encode()
        return Server(name, command, Request(port, "/predict", body, as_json, partial(_base64_right, p)), where)
    if name == "BentoML":
        command = [str(home / "bentoml"), "serve", "bento:Net", "--port", str(port), "--host", "127.0.0.1"]
        body = json.dumps({"x": [encoded]}).encode()
        return Server(name, command, Request(port, "/predict", body, as_json, partial(_base64_right, p)), where, PEERS)
    home_of_model = mlserver_folder(folder)
    settings = {"host": "127.0.0.1", "http_port": port, "grpc_port": free_port(), "metrics_port": free_port()}
    (home_of_model / "settings.json").write_text(json.dumps({**settings, "parallel_workers": 0}))
    tensor = {"name": "x", "shape": list(p.x.shape), "datatype": "FP32", "data": p.x.ravel().tolist()}
    body = json.dumps({"inputs": [tensor]}).encode()
    request = Request(port, "/v2/models/net/infer", body, as_json, partial(_v2_right, p))
    return Server(name, [str(home / "mlserver"), "start", "."], request, where, home_of_model)


def _json_right(p: Published, key: str, answer: bytes) -> bool:
    return p.right(np.array(json.loads(answer)[key], np.float32))


def _v2_right(p: Published, answer: bytes) -> bool:
    return p.right(np.array(json.loads(answer)["outputs"][0]["data"], np.float32))


def _bytes_right(p: Published, answer: bytes) -> bool:
    return p.right(np.frombuffer(answer[-p.expected.nbytes :], np.float32))


def _base64_right(p: Published, answer: bytes) -> bool:
    content = json.loads(answer)
    text = content["y"] if isinstance(content, dict) else content[0]
    return p.right(np.frombuffer(base64.b64decode(text), np.float32))


def raw_rate(p: Published, batch: int, threads: int, parallel: int, seconds: float) -> float:
    """Rows per second of the session alone."""
    shape = ",".join(map(str, (batch, *p.x.shape[1:])))
    command = [sys.executable, "-c", RAW, str(p.graph), str(threads), str(parallel), str(seconds), shape]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


class Alone:
    """The session without a server, measured in turn with the servers, because the speed of the machine varies."""

    def __init__(self, p: Published) -> None:
        """Find how the best rate is reached: one run on all cores, or one run on each core."""
        self._p = p
        cores = os.cpu_count() or 1
        ways = [(batch, *how) for batch in BATCHES for how in dict.fromkeys([(cores, 1), (1, cores)])]
        best = sorted(ways, key=lambda way: raw_rate(p, *way, seconds=1))[-CANDIDATES:]
        self._rates: dict[tuple[int, int, int], list[float]] = {way: [] for way in [(1, cores, 1), *best]}

    def measure(self) -> None:
        for way, rates in self._rates.items():
            rates.append(raw_rate(self._p, *way, seconds=2))

    @property
    def run(self) -> float:
        """Runs per second with one row at a time."""
        return statistics.median(next(iter(self._rates.values())))

    @property
    def best(self) -> tuple[float, str]:
        """R*, and how it was reached."""
        rate, (batch, threads, parallel) = max((statistics.median(r), way) for way, r in self._rates.items())
        return rate, f"{batch} rows, {parallel} x {threads} threads"


def measure(
    servers: list[Server], arguments: argparse.Namespace, console: Console, log: Path, alone: Alone
) -> list[Measured]:
    """Measure all servers and the session alone, in turn."""
    found = []
    with ExitStack() as stack:
        running = []
        for server in servers:
            console.print(f"starting {server.name}")
            one = Running(server, log)
            stack.callback(one.stop)
            with one.alone():
                load(server.request, 8, 1)  # warm-up: the first requests are not measured
            running.append(one)
        for turn in range(arguments.rounds):
            for connections in arguments.connections:
                console.print(f"round {turn + 1}: the session alone")
                alone.measure()
                for one in running if turn % 2 == 0 else running[::-1]:
                    console.print(f"round {turn + 1}: {one.server.name}, {connections} connections")
                    with one.alone():
                        before = one.cpu_seconds()
                        seen = load(one.server.request, connections, arguments.seconds)
                        cpu = one.cpu_seconds() - before
                    thousands = seen.requests_per_second * arguments.seconds / 1000
                    size, ready = one.megabytes(), one.seconds_to_ready
                    found.append(Measured(one.server.name, connections, seen, cpu / thousands, size, ready))
    return found


def tell(found: list[Measured], references: dict[int, tuple[str, float]]) -> None:
    """A table for each number of connections, with the ratio to its reference."""
    for connections, (reference, rate) in references.items():
        table = Table("server", "requests/s", f"of {reference}", "p50 ms", "p99 ms", "CPU s/1000", "MB", "ready s")
        table.title = f"{connections} connections"
        turns = [turn for turn in found if turn.connections == connections]
        for name in dict.fromkeys(turn.server for turn in turns):
            own = [turn for turn in turns if turn.server == name]
            middle = statistics.median(turn.load.requests_per_second for turn in own)
            failed = sum(turn.load.failed for turn in own)
            numbers = (
                statistics.median(values)
                for values in zip(
                    *((t.load.p50, t.load.p99, t.cpu, t.megabytes, t.seconds_to_ready) for t in own), strict=True
                )
            )
            p50, p99, cpu, size, ready = numbers
            shown = f"{name} ({failed} failed)" if failed else name
            table.add_row(
                shown,
                f"{middle:.0f}",
                f"{middle / rate:.3f}",
                f"{p50:.2f}",
                f"{p99:.2f}",
                f"{cpu:.2f}",
                f"{size:.0f}",
                f"{ready:.1f}",
            )
        Console(width=130).print(table)


def beside_peers(arguments: argparse.Namespace, console: Console, scratch: Path) -> list[Measured]:
    p = publish(arguments.model, scratch)
    binary = ours(p, "bnfold, binary")
    servers = [bare(p, binary), binary, ours(p, "bnfold, JSON", as_json=True), *plain(p)]
    servers += peers(p, arguments.environments.absolute(), [name.lower() for name in arguments.without])
    session = Alone(p)
    found = measure(servers, arguments, console, scratch / "log", session)
    alone, (best, how) = session.run, session.best
    print(f"{machine(('onnxruntime', 'uvicorn', 'fastapi', 'numpy'))}\n")
    print(f"{arguments.model}: R* {best:.0f} rows/s ({how}); one row at a time {alone:.0f}\n")
    rates = {
        connections: statistics.median(
            t.load.requests_per_second for t in found if (t.server, t.connections) == ("bare uvicorn", connections)
        )
        for connections in arguments.connections
    }
    if arguments.model == "digits":
        tell(found, {connections: ("bare", rate) for connections, rate in rates.items()})
    else:
        tell(found, {c: ("run", alone) if c == 1 else ("R*", best) for c in arguments.connections})
    return found


def watching(arguments: argparse.Namespace, console: Console, scratch: Path) -> list[Measured]:
    """The same requests to a service that compares its answers and to one that does not."""
    p = publish(arguments.model, scratch)
    without = ours(p, "bnfold")
    with_share = ours(p, f"bnfold, shadow {arguments.shadow:g}", "--shadow", str(arguments.shadow))
    found = []
    with ExitStack() as stack:
        running = []
        for server in (without, with_share):
            one = Running(server, scratch / "log")
            stack.callback(one.stop)
            load(server.request, 8, 6)  # until the reference is loaded
            running.append(one)
        for turn in range(arguments.rounds):
            for connections in arguments.connections:
                for one in running if turn % 2 == 0 else running[::-1]:
                    console.print(f"round {turn + 1}: {one.server.name}, {connections} connections")
                    seen = load(one.server.request, connections, arguments.seconds)
                    found.append(Measured(one.server.name, connections, seen, 0, one.megabytes(), one.seconds_to_ready))
        with urllib.request.urlopen(f"http://127.0.0.1:{with_share.request.port}/metrics") as page:
            lines = [line for line in page.read().decode().splitlines() if line.startswith("bnfold_shadow_")]
    for connections in arguments.connections:
        own, base = (
            [t.load.requests_per_second for t in found if (t.server, t.connections) == (server.name, connections)]
            for server in (with_share, without)
        )
        ratio = statistics.median(a / b for a, b in zip(own, base, strict=True))
        print(f"{connections} connections: {statistics.median(base):.0f} requests/s without, ratio with {ratio:.3f}")
    print("\n".join(lines))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="digits")
    parser.add_argument("--seconds", type=int, default=4, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--without", nargs="*", default=[], help="peers to leave out, such as mlserver")
    parser.add_argument(
        "--shadow", type=float, default=0, help="measure the cost of comparing this share of the answers"
    )
    parser.add_argument("--environments", type=Path, default=Path("build/peers"))
    parser.add_argument("--out", type=Path, default=Path("build/benchmarks/serving.json"))
    arguments = parser.parse_args()
    console = Console(stderr=True)
    with tempfile.TemporaryDirectory() as folder:
        found = (watching if arguments.shadow else beside_peers)(arguments, console, Path(folder))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps([asdict(turn) for turn in found], indent=2) + "\n")
    if any(turn.load.failed for turn in found):
        raise SystemExit("requests failed under load")


if __name__ == "__main__":
    main()
