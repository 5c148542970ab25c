"""The service in front of a repository: in this process, on a thread and a port of its own, or as a process.

Both are spoken to over sockets. A process takes a second of CPU to start; it is there for what only a process has:
the environment, signals, stderr, an exit code, memory.
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import httpx
import numpy as np

from fold.arrays import Arrays
from fold.serving.graph import Graph
from service import app
from service.http import server
from service.settings import load_settings

SERVE = """
import sys
from fold.errors import BnfoldError
from service.app import serve
from service.settings import load_settings
try:
    code = serve(load_settings())
except BnfoldError as error:
    print(f"bnfold: {error}", file=sys.stderr)
    code = 2
sys.exit(code)
"""
LOGGERS = ("bnfold", "uvicorn.error", "grpc")
PATIENCE = 120.0
"""Seconds that a client waits for an answer: longer than any takes, on a machine that has other work, too."""
HELD = -0.5
"""An `x` that holds the run that computes it: see `held`."""


def hold_runs(wait: Callable[[], object]) -> Any:
    """Let each run of this process that has `HELD` in its `x` call `wait` first. Returns the patch, to be started."""
    run = Graph.run

    def held_run(graph: Graph, inputs: Arrays) -> Arrays:
        x = inputs.get("x")
        if x is not None and x.dtype == np.float32 and (x == HELD).any():
            wait()
        return run(graph, inputs)

    return mock.patch.object(Graph, "run", held_run)


class Hold:
    """Runs that are held, each until it is released. `begun` is set when there is one."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.runs = 0
        self._released = threading.Semaphore(0)

    def wait(self) -> None:
        self.runs += 1
        self.begun.set()
        self._released.acquire()

    def release(self, runs: int = 1_000_000) -> None:
        """Let the next runs end, or all."""
        self._released.release(runs)


@contextlib.contextmanager
def held() -> Iterator[Hold]:
    """Runs of this process that have `HELD` in their `x` end when they are released, or this context ends: a test sees
    on any machine what it wants to see while a run lasts."""
    hold = Hold()
    with hold_runs(hold.wait):
        try:
            yield hold
        finally:
            hold.release()


def held_by(file: Path) -> str:
    """As `held`, for a process of its own: the `code` to start it with. Such runs end when `file` is gone."""
    file.touch()
    return f"""
import pathlib, time
from tests.support.service.serving import hold_runs
def wait():
    while pathlib.Path({str(file)!r}).exists():
        time.sleep(0.01)
hold_runs(wait).start()
{SERVE}"""


@dataclass
class Service:
    """A running service. `lines` is what it has logged."""

    lines: list[str] = field(default_factory=list)
    url: str = ""

    @property
    def address(self) -> str:
        return self.url.removeprefix("http://")

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    @property
    def grpc(self) -> str:
        """Host and port of the protocol over gRPC, as clients want them; started with `grpc_port=0`."""
        return self._start_line().split("://")[2].split(" ")[0]

    def get(self, path: str, **options: Any) -> httpx.Response:
        return httpx.get(self.url + path, timeout=PATIENCE, **options)

    def post(self, path: str, **options: Any) -> httpx.Response:
        return httpx.post(self.url + path, timeout=PATIENCE, **options)

    def metric(self, name: str) -> float:
        """The value of one line of /metrics; `name` with its labels."""
        for line in self.get("/metrics").text.splitlines():
            if line.startswith(f"{name} "):
                return float(line.rsplit(" ", 1)[1])
        raise LookupError(name)

    @property
    def said(self) -> list[str]:
        """What it has logged since its start line."""
        return self.lines[self.lines.index(self._start_line()) + 1 :]

    def _start_line(self) -> str:
        return next((line for line in self.lines if "bnfold: serving" in line), "")

    def _started(self) -> bool:
        line = self._start_line()
        self.url = line.split(" on ")[1].split(" ")[0] if line else ""
        return bool(line)


@dataclass
class ServiceProcess(Service):
    """One in a process of its own; `lines` is what it has said on stderr."""

    process: "subprocess.Popen[str]" = None  # type: ignore[assignment]  # always given


Start = Callable[..., "contextlib.AbstractContextManager[Service]"]


def _settings(repository: Path, settings: dict[str, Any]) -> dict[str, Any]:
    return {"repository": repository, "port": 0, "device": "cpu", "threads": 1, "grace_seconds": 0.2, **settings}


class _Lines(logging.Handler):
    """Keeps what is logged, and tells when the service has started."""

    def __init__(self, service: Service) -> None:
        super().__init__()
        self._service = service
        self.settled = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self._service.lines += self.format(record).splitlines()
        if self._service._started():
            self.settled.set()


@contextlib.contextmanager
def _listening(handler: logging.Handler) -> Iterator[None]:
    """Let the handler have what services log, and not pytest, whose records would keep models alive."""
    loggers = [logging.getLogger(name) for name in LOGGERS]
    levels = [(logger.level, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.propagate = False
    logging.getLogger("bnfold").setLevel(logging.INFO)
    try:
        yield
    finally:
        for logger, (level, propagate) in zip(loggers, levels, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(level)
            logger.propagate = propagate


@contextlib.contextmanager
def start(repository: Path, **settings: Any) -> Iterator[Service]:
    """The service on a thread. Raises what `serve` raises if it does not start.

    All services of this process log to the same loggers: `lines` holds what others say meanwhile, too.
    """
    service, stops, failed = Service(), list[Callable[[], Any]](), list[BaseException]()
    handler = _Lines(service)

    class Kept(server.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            stops.append(
                partial(asyncio.get_running_loop().call_soon_threadsafe, self.handle_exit, signal.SIGTERM, None)
            )
            await super().startup(sockets)

    def run() -> None:
        try:
            app.serve(chosen)
        except BaseException as error:
            failed.append(error)
        finally:
            handler.settled.set()

    with mock.patch.dict(os.environ):
        for name in [name for name in os.environ if name.startswith("BNFOLD_")]:
            del os.environ[name]
        chosen = load_settings(**_settings(repository, settings))
    thread = threading.Thread(target=run, name=f"service of {repository}")
    with _listening(handler):
        try:
            with mock.patch.object(server, "Server", Kept), mock.patch.object(app, "configure_logging"):
                thread.start()
                handler.settled.wait()
            if failed:
                raise failed[0]
            yield service
        finally:
            for stop in stops:
                with contextlib.suppress(RuntimeError):  # its loop has ended already
                    stop()
            thread.join()
    assert not failed, failed


@contextlib.contextmanager
def start_process(
    repository: Path, *, code: str = SERVE, ready: bool = True, **settings: Any
) -> Iterator[ServiceProcess]:
    """The service as a process that is told everything by its environment."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("BNFOLD_")}
    environment |= {f"BNFOLD_{name.upper()}": str(value) for name, value in _settings(repository, settings).items()}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.PIPE, text=True)
    service = ServiceProcess(process=process)
    assert process.stderr is not None
    try:
        while ready and not service._started():
            line = process.stderr.readline()
            assert line, f"the service ended: {service.lines}"
            service.lines.append(line.rstrip())
        yield service
    finally:
        process.terminate()
        try:
            process.wait(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
        finally:
            service.lines += process.stderr.read().splitlines()
            process.stderr.close()
