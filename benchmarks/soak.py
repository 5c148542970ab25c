"""A long run at 80 % of the service's capacity, with a new version every few seconds: no request may fail, no answer
may be wrong, and memory must not grow.

    python -m benchmarks.soak [--seconds 1800] [--every 3] [--odd-clients]

The load is open: on each connection requests are due at random times (Poisson), even if the previous one is not yet
answered. Latency counts from the time when a request was due. The capacity is measured first, by the same client. Two
versions of one network take turns under one name. Each is put in its place by a rename and loaded by the admin call, as
in a deployment. Every answer is compared with that of the version that it names.
"""

import argparse
import asyncio
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import numpy as np
import torch
import uvloop
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from benchmarks.folding import machine, randomise
from benchmarks.odd_clients import OddClients
from benchmarks.scaling import resident
from benchmarks.serving import free_port, infer_body
from fold.convert import Target, convert
from fold.runtime import open_session, run
from fold.sources import Source
from models.cnn import cnn

if TYPE_CHECKING:
    from collections.abc import Iterator

SHARE = 0.8
"""The share of the capacity."""
SHARE_BESIDE = 0.5
"""Beside odd clients, which take some of it."""
CONNECTIONS = 32
CAPACITY_SECONDS = 4
SETTLED = 0.2
"""The share of the run in which arenas and caches may fill. After it, memory may grow only by `GROWTH` bytes, from the
least of the next such share to the least of the last: a large body is in memory only for a moment."""
GROWTH = 24 << 20
TOKEN = "soak"
PATH = "/v2/models/net/infer"


@dataclass
class Seen:
    """Results of the client. Seconds count from the time when a request was due."""

    latencies: list[float] = field(default_factory=list)
    by_version: dict[str, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)


class Client:
    """One request, sent over connections that are kept open, and its answer by version."""

    def __init__(self, port: int, x: np.ndarray, expected: dict[str, np.ndarray]) -> None:
        self._port = port
        body, length = infer_body(x)
        head = f"POST {PATH} HTTP/1.1\r\nHost: soak\r\nInference-Header-Content-Length: {length}\r\n"
        self.request = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
        self._expected = expected
        self._idle: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()
        self.seen = Seen()

    async def connect(self, count: int) -> None:
        for _ in range(count):
            self._idle.put_nowait(await asyncio.open_connection("127.0.0.1", self._port))

    async def ask(self, due: float) -> None:
        reader, writer = await self._idle.get()
        try:
            writer.write(self.request)
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", head)
            body = await reader.readexactly(int(length[1]) if length else 0)
            self.check(head, body)
        except (OSError, EOFError) as error:
            self.seen.failures.append(repr(error))
            reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        self.seen.latencies.append(time.perf_counter() - due)
        self._idle.put_nowait((reader, writer))

    def check(self, head: bytes, body: bytes) -> None:
        if not head.startswith(b"HTTP/1.1 200"):
            self.seen.failures.append(repr(body[:200]))
            return
        version = re.search(rb'"model_version":"(\d+)"', body)
        assert version is not None, body
        name = version[1].decode()
        answer, right = np.frombuffer(body[-self._expected[name].nbytes :], np.float32), self._expected[name].ravel()
        if np.abs(answer - right).max() > 1e-4 * np.abs(right).max():
            self.seen.failures.append(f"a wrong answer of version {name}")
        self.seen.by_version[name] = self.seen.by_version.get(name, 0) + 1

    async def flood(self, seconds: float) -> float:
        """Requests per second if each connection sends the next request when it has its answer."""
        end = time.perf_counter() + seconds
        before = len(self.seen.latencies)

        async def one() -> None:
            while time.perf_counter() < end:
                await self.ask(time.perf_counter())

        await asyncio.gather(*(one() for _ in range(CONNECTIONS)))
        return (len(self.seen.latencies) - before) / seconds

    async def poisson(self, rate: float, seconds: float) -> None:
        """Requests that are due at random, `rate` per second over all connections."""
        end = time.perf_counter() + seconds

        async def one() -> None:
            due = time.perf_counter()
            while (due := due + random.expovariate(rate / CONNECTIONS)) < end:
                if (early := due - time.perf_counter()) > 0:
                    await asyncio.sleep(early)
                await self.ask(due)

        await asyncio.gather(*(one() for _ in range(CONNECTIONS)))


def publish(folder: Path, x: np.ndarray) -> dict[str, np.ndarray]:
    """Make versions 1 and 2 of `net`, two different networks, and their answers."""
    found = {}
    for version in (1, 2):
        torch.manual_seed(version)
        torch.save(randomise(cnn()).state_dict(), folder / "net.pt")
        source = Source(folder / "net.pt", "models.cnn:cnn", (), ["1,8,8"])
        path = convert(source, Target(folder / "repository", "net", version), samples=2, provider="cpu").path
        assert path is not None
        found[str(version)] = next(iter(run(open_session(path / "model.onnx", provider="cpu"), {"x": x}).values()))
    return found


@contextmanager
def service(repository: Path, port: int) -> "Iterator[subprocess.Popen[bytes]]":
    settings = {"REPOSITORY_CONTROL": "explicit", "MODELS": "*", "ADMIN_TOKEN": TOKEN, "DEVICE": "cpu"}
    environment = {**os.environ, **{f"BNFOLD_{name}": value for name, value in settings.items()}}
    command = [sys.executable, "-m", "fold", "serve", str(repository), "--port", str(port)]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    try:
        for _ in range(300):
            try:
                if httpx.get(f"http://127.0.0.1:{port}/v2/health/ready").status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.1)
        yield process
    finally:
        process.terminate()
        process.wait(60)


async def reload(repository: Path, port: int, every: float, done: asyncio.Event) -> int:
    """Publish and remove version 2 in turn; version 1 serves while it is removed. Returns the number of reloads."""
    place, aside = repository / "net" / "2", repository.parent / "aside"
    count = 0
    async with httpx.AsyncClient(headers={"Authorization": f"Bearer {TOKEN}"}, timeout=60) as client:
        while not done.is_set():
            await asyncio.sleep(every)
            source, target = (place, aside) if place.exists() else (aside, place)
            source.rename(target)
            answer = await client.post(f"http://127.0.0.1:{port}/v2/repository/models/net/load")
            if answer.status_code != 200:
                raise SystemExit(f"load: {answer.text}")
            count += 1
    return count


async def soak(
    repository: Path, port: int, pid: int, client: Client, seconds: float, every: float, odd: OddClients | None
) -> list[int]:
    """The run itself. Returns the memory at each second."""
    await client.connect(CONNECTIONS)
    await client.flood(1)
    capacity = await client.flood(CAPACITY_SECONDS)
    share = SHARE if odd is None else SHARE_BESIDE
    print(f"capacity {capacity:.0f} requests/s, {share:.0%} of it for {seconds:g} s, a reload every {every:g} s")
    client.seen = Seen()
    done, memory = asyncio.Event(), []
    reloads = asyncio.create_task(reload(repository, port, every, done))

    async def watch() -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task("soaking", total=seconds)
            while not done.is_set():
                memory.append(resident("VmRSS", pid))
                progress.update(task, advance=1, description=f"{memory[-1] / 1e6:.0f} MB")
                await asyncio.sleep(1)

    watching = asyncio.create_task(watch())
    beside = None if odd is None else asyncio.create_task(odd.run(done))
    await client.poisson(share * capacity, seconds)
    done.set()
    await watching
    if beside is not None:
        await beside
    print(f"{await reloads} reloads")
    return memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1800)
    parser.add_argument("--every", type=float, default=3, help="seconds between two reloads")
    parser.add_argument("--odd-clients", action="store_true", help="beside clients that break off, pipeline, and err")
    arguments = parser.parse_args()
    x = np.random.default_rng(0).random((1, 1, 8, 8), np.float32)
    with tempfile.TemporaryDirectory() as scratch:
        expected = publish(Path(scratch), x)
        repository, port = Path(scratch) / "repository", free_port()
        with service(repository, port) as process:
            client = Client(port, x, expected)
            odd = OddClients(port, PATH, client.request, client.check) if arguments.odd_clients else None
            memory = uvloop.run(soak(repository, port, process.pid, client, arguments.seconds, arguments.every, odd))
    seen = client.seen
    p50, p99, worst = np.quantile(seen.latencies, (0.5, 0.99, 1)) * 1000
    part = int(SETTLED * len(memory))
    settled, late = min(memory[part : 2 * part]), min(memory[-part:])
    growth = late - settled
    print(machine(("onnxruntime", "uvicorn", "numpy")))
    print(f"{len(seen.latencies)} requests, {len(seen.failures)} failed; answers by version {seen.by_version}")
    print(f"latency from when it was due: p50 {p50:.2f} ms, p99 {p99:.2f} ms, worst {worst:.0f} ms")
    print(
        f"memory {settled / 1e6:.0f} MB after {SETTLED:.0%} of the time, {late / 1e6:.0f} MB at the end, "
        f"at most {max(memory) / 1e6:.0f} MB"
    )
    if odd is not None:
        turns = ", ".join(f"{name} {count}" for name, count in odd.turns.items())
        print(f"odd clients: {turns}; {len(odd.failures)} had another answer than they should")
        seen.failures += odd.failures
    for failure in seen.failures[:5]:
        print(failure, file=sys.stderr)
    if seen.failures or growth > GROWTH:
        raise SystemExit("the soak failed")


if __name__ == "__main__":
    main()
