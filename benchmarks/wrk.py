"""Loads an HTTP server by wrk, which takes little CPU time itself, while the answers are checked.

wrk counts answers that are not 2xx, and broken connections. A second client sends a request from time to time while the
load runs, and checks its numbers.
"""

import http.client
import re
import subprocess
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

UNITS = {"us": 1e-3, "ms": 1.0, "s": 1e3, "m": 6e4}
PAUSE_SECONDS = 0.9
"""Seconds between two checked requests. Each has a connection of its own, and costs as much as a hundred of wrk's."""

SCRIPT = """
local file = io.open("{body}", "rb")
wrk.method = "POST"
wrk.body = file:read("*a")
file:close()
{headers}
"""


@dataclass(frozen=True)
class Request:
    """One prepared request, and the check of its answer: `check` raises or returns false for a wrong one."""

    port: int
    path: str
    body: bytes
    headers: dict[str, str]
    check: Callable[[bytes], bool]


@dataclass(frozen=True)
class Load:
    """Results of wrk. Times are in milliseconds."""

    requests_per_second: float
    p50: float
    p99: float
    failed: int


def ask(request: Request, timeout: float = 60) -> bytes:
    """The body of one answer. Raises `SystemExit` if it is not 200."""
    connection = http.client.HTTPConnection("127.0.0.1", request.port, timeout=timeout)
    try:
        connection.request("POST", request.path, request.body, request.headers)
        answer = connection.getresponse()
        body = answer.read()
    finally:
        connection.close()
    if answer.status != 200:
        raise SystemExit(f"port {request.port}: {answer.status} {body[:200]!r}")
    return body


def load(request: Request, connections: int, seconds: int) -> Load:
    """Load by keep-alive connections, each of which sends the next request when it has its answer. Checked requests
    count too."""
    wrong: list[str] = []
    checked = 0
    over = threading.Event()

    def check() -> None:
        nonlocal checked
        while not over.wait(PAUSE_SECONDS):
            if not request.check(ask(request)):
                wrong.append(f"port {request.port}: a wrong answer under load")
                return
            checked += 1

    checker = threading.Thread(target=check)
    with tempfile.TemporaryDirectory() as folder:
        body, script = Path(folder) / "body", Path(folder) / "post.lua"
        body.write_bytes(request.body)
        lines = "\n".join(f'wrk.headers["{name}"] = "{value}"' for name, value in request.headers.items())
        script.write_text(SCRIPT.format(body=body, headers=lines))
        url = f"http://127.0.0.1:{request.port}{request.path}"
        command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "30s", "--latency", "-s"]
        checker.start()
        try:
            done = subprocess.run([*command, str(script), url], capture_output=True, text=True, check=True)
        finally:
            over.set()
            checker.join()
    if wrong:
        raise SystemExit(wrong[0])
    seen = read(done.stdout)
    return replace(seen, requests_per_second=seen.requests_per_second + checked / seconds)


def read(text: str) -> Load:
    """Read the numbers of wrk's report."""
    rate = re.search(r"Requests/sec:\s+([\d.]+)", text)
    if rate is None:
        raise SystemExit(f"wrk: {text}")
    errors = re.search(r"Non-2xx or 3xx responses: (\d+)", text)
    cut = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", text)
    failed = (int(errors[1]) if errors else 0) + (sum(map(int, cut.groups())) if cut else 0)
    return Load(float(rate[1]), _milliseconds(text, "50%"), _milliseconds(text, "99%"), failed)


def _milliseconds(text: str, quantile: str) -> float:
    found = re.search(rf"^\s+{re.escape(quantile)}\s+([\d.]+)(us|ms|s|m)$", text, re.MULTILINE)
    return float(found[1]) * UNITS[found[2]] if found else float("nan")
