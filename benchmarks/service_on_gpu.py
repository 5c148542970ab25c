"""Compares `bnfold serve` on a device with the session alone: its share of R*, and the latency of lone requests."""

import json
import sys
import urllib.request
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.clients import Question, Seen, load, question, write_questions
from benchmarks.contestants import Answer, in_onnxruntime, in_torch, rate, relative_error, seconds_of
from benchmarks.graphs import MODEL, OfBytes, build, network
from benchmarks.servers import Running, Server
from benchmarks.serving import free_port, infer_body
from benchmarks.wrk import Request

SIZES = (1, 2, 4, 8, 16, 32, 64)
"""The buckets of a service with default settings."""
CONNECTIONS = (1, 64)
ROWS = 16
"""The number of different rows in the requests."""
MIXED = (1, 16, 2, 5, 1, 9, 3, 12)
"""Rows of requests of mixed sizes, which come over `MIXED_CONNECTIONS`."""
MIXED_CONNECTIONS = 16
WRONG = 2e-4
INPUT = "x"
ROUTE = f"/v2/models/{MODEL}/infer"
SHORTEST = 0.05


@dataclass(frozen=True)
class Serving:
    """`best` is R* in rows per second, `how` the batch size and threads that reached it. Then: milliseconds of one row
    in the session alone; results for each number of connections, and with requests of mixed sizes; runs of cold shapes;
    the device and options that the service reports."""

    network: str
    best: float
    how: str
    alone_p50: float
    alone_p99: float
    seen: dict[int, Seen]
    mixed: Seen
    cold_shapes: float
    parameters: dict[str, str]

    def share(self, connections: int) -> float:
        """The share of R*."""
        return self.seen[connections].rows_per_second / self.best

    def tell(self, console: Console) -> None:
        table = Table("connections", "rows/s", "of R*", "p50 ms", "p99 ms", "over the session's p50", "wrong", "failed")
        table.title = f"{self.network} served, images of bytes, one a request; R* {self.best:.0f} rows/s ({self.how})"
        shown = {str(connections): seen for connections, seen in self.seen.items()}
        for name, seen in (shown | {f"{MIXED_CONNECTIONS}, mixed rows": self.mixed}).items():
            slower = f"{seen.p50 / self.alone_p50:.2f}" if name == "1" else ""
            numbers = (f"{seen.rows_per_second:.0f}", f"{seen.rows_per_second / self.best:.3f}", f"{seen.p50:.2f}")
            table.add_row(name, *numbers, f"{seen.p99:.2f}", slower, str(seen.wrong), str(seen.failed))
        console.print(table)
        console.print(f"cold shapes {self.cold_shapes:.0f}; {self.parameters}", markup=False, highlight=False)


def serve(name: str, folder: Path, device: str, seconds: float, wrong: list[str]) -> Serving:
    """Measure the repository below `folder`. About half of `seconds` is for the session. Wrong answers are added to
    `wrong`."""
    repository = folder / "repository"
    [graph] = repository.glob(f"{MODEL}/*/model.onnx")
    x = np.random.default_rng(3).integers(0, 256, (ROWS, *network(name).shape), np.uint8)
    alone = in_onnxruntime(graph, device, SIZES, copies=2)
    truth = in_torch(OfBytes(build(name)).to(device), device)(x)
    if relative_error(alone(x), truth) > WRONG:
        wrong.append(f"{name}, served graph: {relative_error(alone(x), truth):.2g} from PyTorch in float32")
    asked = folder / "questions.npz"
    write_questions(asked, INPUT, [(x[i : i + 1], truth[i : i + 1]) for i in range(ROWS)], WRONG)
    mixed = folder / "mixed.npz"
    write_questions(mixed, INPUT, [(x[:rows], truth[:rows]) for rows in MIXED], WRONG)
    step = max(SHORTEST, seconds / 2 / (2 * 2 * len(SIZES) + 2))
    rates = best_rate(alone, x, step)
    latencies = [1000 * second for second in seconds_of(alone, x[:1], 2 * step)]
    with ExitStack() as stack:
        port = free_port()
        right = question(INPUT, ROUTE, x[:1], truth[:1], WRONG)
        running = Running(server(repository, device, port, x[:1], right), folder / "log")
        stack.callback(running.stop)
        each = max(4 * SHORTEST, seconds / 4 / (len(CONNECTIONS) + 1))
        seen = {n: load(asked, port, ROUTE, connections=n, seconds=each) for n in CONNECTIONS}
        of_mixed = load(mixed, port, ROUTE, connections=MIXED_CONNECTIONS, seconds=each)
        cold = metric(port, "bnfold_cold_shapes_total")
        parameters = placed(port)
    after = best_rate(alone, x, step)
    how, best = max((*rates.items(), *after.items()), key=lambda pair: pair[1])
    loads: dict[int | str, Seen] = {**seen, "mixed": of_mixed}
    wrong += [f"{name} served at {n} connections: {s.wrong} wrong answers" for n, s in loads.items() if s.wrong]
    p50, p99 = (float(np.percentile(latencies, q)) for q in (50, 99))
    return Serving(network(name).name, best, how, p50, p99, seen, of_mixed, cold, parameters)


def best_rate(answer: Answer, x: np.ndarray, seconds: float) -> dict[str, float]:
    """Rows per second by batch size and threads, each measured for this many seconds."""
    return {
        f"{size} rows, {threads} {'thread' if threads == 1 else 'threads'}": rate(
            answer, np.resize(x, (size, *x.shape[1:])), threads, seconds
        )
        for size in SIZES
        for threads in (1, 2)
    }


def server(repository: Path, device: str, port: int, x: np.ndarray, right: Question) -> Server:
    body, length = infer_body(x)
    request = Request(port, ROUTE, body, {"Inference-Header-Content-Length": str(length)}, right.right)
    command = [sys.executable, "-m", "fold", "serve", str(repository), "--port", str(port), "--device", device]
    return Server("bnfold", command, request)


def metric(port: int, name: str) -> float:
    """The sum of a metric over its labels."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as page:
        lines = page.read().decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith((f"{name}{{", f"{name} ")))


def placed(port: int) -> dict[str, str]:
    """The devices of the model's nodes and the provider's options, from its configuration."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/models/{MODEL}/config", timeout=30) as answer:
        parameters = json.load(answer)["parameters"]
    return {name: value["string_value"] for name, value in parameters.items()}
