"""Starts the servers that are compared: ours, uvicorn alone, and the alternatives that users have.

Each peer gets a virtual environment of its own, made once. While one server is measured, the others are stopped by a
signal, so that their idle work takes no time from it.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import venv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.wrk import Request, ask

PEERS = Path(__file__).parent / "peers"
START_SECONDS = 90
TICK = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGESIZE")


@dataclass(frozen=True)
class Server:
    """How a server is started, and the request that it gets."""

    name: str
    command: Sequence[str]
    request: Request
    environment: dict[str, str] = field(default_factory=dict)
    folder: Path | None = None


class Running:
    """A process with its children. Only one server runs at a time."""

    def __init__(self, server: Server, log: Path) -> None:
        self.server = server
        began = time.monotonic()
        with log.open("wb") as out:
            self._process = subprocess.Popen(
                server.command,
                env={**os.environ, **server.environment},
                cwd=server.folder,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        while True:
            if self._process.poll() is not None or time.monotonic() > began + START_SECONDS:
                self.stop()
                raise SystemExit(f"{server.name} does not start: {log.read_text()[-500:]}")
            with contextlib.suppress(OSError):
                right = server.request.check(ask(server.request))
                break
            time.sleep(0.02)
        self.seconds_to_ready = time.monotonic() - began
        if not right:
            self.stop()
            raise SystemExit(f"{server.name}: a wrong answer")

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """The server runs inside this block. Outside of it, it is stopped."""
        self._signal(signal.SIGCONT)
        try:
            yield
        finally:
            self._signal(signal.SIGSTOP)

    def stop(self) -> None:
        self._signal(signal.SIGCONT)
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(10)
        self._signal(signal.SIGKILL)  # to processes that are still alive

    def cpu_seconds(self) -> float:
        """CPU seconds of all its processes that are alive."""
        return sum(sum(map(int, fields[11:13])) for fields in self._processes().values()) / TICK

    def megabytes(self) -> float:
        return sum(int(fields[21]) for fields in self._processes().values()) * PAGE / 1e6

    def _signal(self, number: signal.Signals) -> None:
        for pid in self._processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def _processes(self) -> dict[int, list[str]]:
        """The /proc status of each process of the session (process groups stay in it), and of their children, which may
        be in sessions of their own."""
        seen: dict[int, list[str]] = {}
        for file in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                seen[int(file.parent.name)] = file.read_text().rpartition(")")[2].split()
        own = {pid for pid, fields in seen.items() if int(fields[3]) == self._process.pid}
        while more := {pid for pid, fields in seen.items() if int(fields[1]) in own} - own:
            own |= more
        return {pid: seen[pid] for pid in own}


def environment(folder: Path, name: str, requirements: Sequence[str]) -> Path | None:
    """The `bin` of an environment with `requirements`, made if it does not exist; None if they cannot be installed."""
    home = folder / name
    done = home / "installed"
    if not done.exists():
        shutil.rmtree(home, ignore_errors=True)
        venv.create(home, with_pip=True)
        installed = subprocess.run(
            [home / "bin" / "pip", "install", "--quiet", *requirements], capture_output=True, text=True, check=False
        )
        if installed.returncode:
            print(f"{name} cannot be installed here: {installed.stderr.strip().splitlines()[-1]}", file=sys.stderr)
            return None
        done.touch()
    return home / "bin"


def mlserver_folder(folder: Path) -> Path:
    """MLServer's own description of a model."""
    home = folder / "mlserver-model"
    home.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(PEERS / "mlserver_model.py", home / "mlserver_model.py")
    (home / "model-settings.json").write_text(
        json.dumps(
            {
                "name": "net",
                "implementation": "mlserver_model.Net",
                "max_batch_size": 64,
                "max_batch_time": 0.001,
                "parallel_workers": 0,
            }
        )
    )
    return home
