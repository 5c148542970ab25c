"""Loads the service from processes of our own, for machines without wrk. Every answer is read and checked.

A process has one thread for each connection. Each thread has a raw socket that is kept alive, and sends the next
prepared request when it has its answer. Requests and answers are binary tensors of the Open Inference Protocol. A
process imports little more than numpy, so that many can start.

    python -m benchmarks.clients QUESTIONS PORT PATH CONNECTIONS START SECONDS     one process; `load` starts several
"""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

TIMEOUT_SECONDS = 60.0
START_SECONDS = 1.5
"""Time for the processes to start, so that all begin at once."""
KEPT_LATENCIES = 100_000
DATATYPES = {"float32": "FP32", "uint8": "UINT8"}
"""The protocol's names of numpy's types."""


@dataclass(frozen=True)
class Question:
    """A request as bytes, and the numbers of a right answer: float32, within `tolerance` of each."""

    request: bytes
    rows: int
    expected: np.ndarray
    tolerance: float

    def right(self, body: bytes) -> bool:
        """The numbers of an answer's body, which ends with its only tensor."""
        if len(body) < self.expected.nbytes:
            return False
        found = np.frombuffer(body[-self.expected.nbytes :], np.float32)
        return bool(np.abs(found - self.expected.ravel()).max(initial=0) <= self.tolerance)


@dataclass(frozen=True)
class Seen:
    """Results of all connections. `failed` had another status than 200, `wrong` had other numbers; `answered` counts
    neither. Times are in milliseconds."""

    seconds: float
    answered: int
    rows: int
    wrong: int
    failed: int
    p50: float
    p99: float

    @property
    def rows_per_second(self) -> float:
        return self.rows / self.seconds


def write_questions(path: Path, tensor: str, questions: Sequence[tuple[np.ndarray, np.ndarray]], error: float) -> None:
    """Write the questions: inputs for the tensor of that name, with right answers, each to `error` of its largest
    number."""
    arrays = {f"x{i}": x for i, (x, _) in enumerate(questions)}
    arrays |= {f"y{i}": y.astype(np.float32) for i, (_, y) in enumerate(questions)}
    np.savez(path, tensor=np.array(tensor), error=np.array(error), **arrays)  # type: ignore[arg-type]


def read_questions(path: Path, route: str) -> list[Question]:
    with np.load(path) as file:
        count = sum(name.startswith("x") for name in file.files)
        tensor, error = str(file["tensor"]), float(file["error"])
        return [question(tensor, route, file[f"x{i}"], file[f"y{i}"], error) for i in range(count)]


def question(tensor: str, route: str, x: np.ndarray, expected: np.ndarray, error: float) -> Question:
    """`expected` is the answer to `x`; it may be off by `error` of its largest number."""
    size = {"binary_data_size": x.nbytes}
    described = {"name": tensor, "shape": list(x.shape), "datatype": DATATYPES[x.dtype.name], "parameters": size}
    header = json.dumps({"inputs": [described], "parameters": {"binary_data_output": True}}).encode()
    head = (
        f"POST {route} HTTP/1.1\r\nHost: 127.0.0.1\r\nInference-Header-Content-Length: {len(header)}\r\n"
        f"Content-Length: {len(header) + x.nbytes}\r\n\r\n"
    )
    return Question(head.encode() + header + x.tobytes(), len(x), expected, error * float(np.abs(expected).max()))


def load(questions: Path, port: int, route: str, *, connections: int, seconds: float) -> Seen:
    """Load by this many connections for this long, from at most half of the machine's cores."""
    processes = max(1, min(connections, (os.cpu_count() or 1) // 2, 8))
    shares = [connections // processes + (i < connections % processes) for i in range(processes)]
    start = time.monotonic() + START_SECONDS
    arguments = [str(questions), str(port), route]
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "benchmarks.clients", *arguments, str(share), str(start), str(seconds)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for share in shares
    ]
    try:
        told = [process.communicate(timeout=seconds + START_SECONDS + 2 * TIMEOUT_SECONDS)[0] for process in running]
    finally:
        for process in running:
            process.kill()
            process.wait()
    return total([json.loads(text) for text in told if text])


def total(told: Sequence[dict[str, list[float]]]) -> Seen:
    """The results of the processes together. Raises `SystemExit` if no process has any."""
    if not told:
        raise SystemExit("the clients ended without a word")
    counts = {name: sum(int(one[name][0]) for one in told) for name in ("answered", "rows", "wrong", "failed")}
    latencies = 1000 * np.concatenate([one["latencies"] for one in told])
    p50, p99 = (float(np.percentile(latencies, q)) if latencies.size else float("nan") for q in (50, 99))
    return Seen(max(one["seconds"][0] for one in told), **counts, p50=p50, p99=p99)


class Connection:
    """One connection. It is opened again after it failed."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._socket: socket.socket | None = None

    def ask(self, request: bytes) -> tuple[int, bytes]:
        """Status and body. Raises `OSError` if the connection breaks."""
        try:
            if self._socket is None:
                self._socket = socket.create_connection(("127.0.0.1", self._port), TIMEOUT_SECONDS)
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._socket.sendall(request)
            return _read_answer(self._socket)
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _read_answer(connection: socket.socket) -> tuple[int, bytes]:
    received = bytearray()
    while (end := received.find(b"\r\n\r\n")) < 0:
        _receive(connection, received)
    lines = bytes(received[:end]).split(b"\r\n")
    headers = dict(line.lower().split(b":", 1) for line in lines[1:])
    size = end + 4 + int(headers.get(b"content-length", 0))
    while len(received) < size:
        _receive(connection, received)
    return int(lines[0].split(b" ")[1]), bytes(received[end + 4 : size])


def _receive(connection: socket.socket, into: bytearray) -> None:
    part = connection.recv(1 << 18)
    if not part:
        raise ConnectionResetError("the service closed the connection")
    into += part


class Client:
    """The connections of one process. Each begins with another question."""

    def __init__(self, questions: Sequence[Question], port: int) -> None:
        self._questions = questions
        self._port = port
        self._lock = threading.Lock()
        self.counts = {"answered": 0, "rows": 0, "wrong": 0, "failed": 0}
        self.latencies: list[float] = []

    def run(self, connections: int, seconds: float) -> dict[str, list[float]]:
        began = time.monotonic()
        threads = [threading.Thread(target=self._ask, args=(i, began + seconds)) for i in range(connections)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        counts = {name: [float(count)] for name, count in self.counts.items()}
        return {**counts, "seconds": [time.monotonic() - began], "latencies": self.latencies[:KEPT_LATENCIES]}

    def _ask(self, first: int, until: float) -> None:
        connection, turn = Connection(self._port), first
        try:
            while time.monotonic() < until:
                self._ask_once(connection, self._questions[turn % len(self._questions)])
                turn += 1
        finally:
            connection.close()

    def _ask_once(self, connection: Connection, asked: Question) -> None:
        began = time.perf_counter()
        try:
            status, body = connection.ask(asked.request)
        except OSError:
            status, body = 0, b""
        taken = time.perf_counter() - began
        outcome = "failed" if status != 200 else "answered" if asked.right(body) else "wrong"
        with self._lock:
            self.counts[outcome] += 1
            if outcome == "answered":
                self.counts["rows"] += asked.rows
                self.latencies.append(taken)
        if status == 0:
            time.sleep(0.01)  # Nothing listens yet: trying faster does not help.


def main() -> None:
    path, port, route, connections, start, seconds = sys.argv[1:]
    client = Client(read_questions(Path(path), route), int(port))
    time.sleep(max(0.0, float(start) - time.monotonic()))
    print(json.dumps(client.run(int(connections), float(seconds))))


if __name__ == "__main__":
    main()
