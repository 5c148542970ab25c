"""The service as a real process, as its users start it."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

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


@dataclass
class Service:
    """A running service. `lines` is what it has said on stderr."""

    process: "subprocess.Popen[str]"
    url: str = ""
    lines: list[str] = field(default_factory=list)

    @property
    def address(self) -> str:
        return self.url.removeprefix("http://")

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    @property
    def grpc(self) -> str:
        """Host and port of the protocol over gRPC, as clients want them; started with `grpc_port=0`."""
        return self.lines[-1].split("://")[2].split(" ")[0]

    def get(self, path: str, **options: Any) -> httpx.Response:
        return httpx.get(self.url + path, timeout=30, **options)

    def post(self, path: str, **options: Any) -> httpx.Response:
        return httpx.post(self.url + path, timeout=30, **options)

    def metric(self, name: str) -> float:
        """The value of one line of /metrics; `name` with its labels."""
        for line in self.get("/metrics").text.splitlines():
            if line.startswith(f"{name} "):
                return float(line.rsplit(" ", 1)[1])
        raise LookupError(name)


Start = Callable[..., "contextlib.AbstractContextManager[Service]"]


@contextlib.contextmanager
def start(repository: Path, *, code: str = SERVE, ready: bool = True, **settings: Any) -> Iterator[Service]:
    chosen = {"repository": repository, "port": 0, "device": "cpu", "threads": 1, "grace_seconds": 0.2, **settings}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("BNFOLD_")}
    environment |= {f"BNFOLD_{name.upper()}": str(value) for name, value in chosen.items()}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.PIPE, text=True)
    service = Service(process)
    assert process.stderr is not None
    try:
        while ready and "bnfold: serving" not in (service.lines or [""])[-1]:
            line = process.stderr.readline()
            assert line, f"the service ended: {service.lines}"
            service.lines.append(line.rstrip())
        if ready:
            service.url = service.lines[-1].split(" on ")[1].split(" ")[0]
        yield service
    finally:
        process.terminate()
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        service.lines += process.stderr.read().splitlines()
        process.stderr.close()
