"""Measures what open pages cost a service: its CPU time while it does nothing else, and the requests per second beside
them.

    python -m benchmarks.pages [--pages 20] [--seconds 20] [--rounds 5] [--idle 60]

A page is what its script asks for: every ten seconds the list of models and their traffic, and on the tab Traffic,
which asks most, that of one version. No browser draws it, because that would take its time from the same cores. The
history of the service is full before anything is measured: its first intervals are short, under load.

With pages and without are measured in turn, and the median of the ratios is reported. CPU time is the surer number:
a ratio varies by several percent where other work runs.
"""

import argparse
import contextlib
import http.client
import json
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from benchmarks.folding import machine
from benchmarks.servers import Running
from benchmarks.serving import ours, publish
from benchmarks.wrk import load
from service.telemetry.traffic import INTERVAL_SECONDS, INTERVALS

ASKED = (
    ("POST", "/v2/repository/index", b"{}"),
    ("GET", "/v2/traffic", None),
    ("GET", "/v2/models/net/versions/1/traffic", None),
)
"""By a page on the tab Traffic, every ten seconds."""
FILLING = 0.1
"""Seconds of an interval until the history is full."""
SERVE = f"""
from service.telemetry import traffic
copy = traffic.Traffic.copy
def filling(self, *given):
    copy(self, *given)
    full = len(self._usage) > traffic.INTERVALS
    traffic.INTERVAL_SECONDS = {INTERVAL_SECONDS} if full else {FILLING}
traffic.Traffic.copy = filling
from fold.cli import main
main()
"""


@dataclass(frozen=True)
class Idle:
    """CPU milliseconds of the service in a second in which only pages ask."""

    pages: int
    cpu: float


@dataclass(frozen=True)
class Round:
    """Requests per second without pages and beside them, and answers to the pages meanwhile."""

    without: float
    beside: float
    answered: int


@contextlib.contextmanager
def opened(port: int, pages: int) -> Iterator[list[int]]:
    """So many pages are open inside this block, at even distances in time; counts their answers."""
    over, answered, failed = threading.Event(), [0], list[str]()

    def ask() -> None:
        connections = [http.client.HTTPConnection("127.0.0.1", port, timeout=60) for _ in range(pages)]
        due = time.monotonic()
        while True:
            for connection in connections:
                if over.wait(max(0.0, due - time.monotonic())):
                    return
                due += INTERVAL_SECONDS / pages
                for method, path, body in ASKED:
                    connection.request(method, path, body)
                    answer = connection.getresponse()
                    content = answer.read()
                    if answer.status != 200:
                        failed.append(f"{path}: {answer.status} {content[:200]!r}")
                        return
                    answered[0] += 1

    thread = threading.Thread(target=ask, daemon=True)
    if pages:
        thread.start()
    try:
        yield answered
    finally:
        over.set()
        if pages:
            thread.join()
    if failed:
        raise SystemExit(failed[0])


def idle(one: Running, pages: int, seconds: float) -> Idle:
    with opened(one.server.request.port, pages):
        before, began = one.cpu_seconds(), time.monotonic()
        time.sleep(seconds)
        return Idle(pages, 1000 * (one.cpu_seconds() - before) / (time.monotonic() - began))


def measure(one: Running, pages: int, connections: int, seconds: int, *, first: bool) -> Round:
    """A round; `first` says whether the pages come first."""
    rates, answered = {}, 0
    for count in (pages, 0) if first else (0, pages):
        with opened(one.server.request.port, count) as told:
            seen = load(one.server.request, connections, seconds)
            if seen.failed:
                raise SystemExit(f"{seen.failed} requests failed under load")
        rates[count] = seen.requests_per_second
        answered += told[0]
    return Round(rates[0], rates[pages], answered)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages", type=int, default=20)
    parser.add_argument("--seconds", type=int, default=20, help="of each half of a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--idle", type=float, default=60, help="seconds of each measurement without load")
    parser.add_argument("--out", type=Path, default=Path("build/benchmarks/pages.json"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        server = ours(publish("digits", Path(folder)), "bnfold")
        served = replace(server, command=[sys.executable, "-c", SERVE, *server.command[3:]])
        one = Running(served, Path(folder) / "log")
        try:
            load(served.request, arguments.connections, round(INTERVALS * FILLING) + 2)
            rest = [idle(one, pages, arguments.idle) for pages in (0, 1, arguments.pages)]
            rounds = [
                measure(one, arguments.pages, arguments.connections, arguments.seconds, first=bool(turn % 2))
                for turn in range(arguments.rounds)
            ]
        finally:
            one.stop()
    print(machine(("onnxruntime", "uvicorn", "orjson")))
    for each in rest:
        print(f"{each.pages} open pages and nothing else: {each.cpu:.2f} ms of CPU time in a second")
    ratio = statistics.median(each.beside / each.without for each in rounds)
    rate = statistics.median(each.without for each in rounds)
    print(
        f"{arguments.connections} connections: {rate:.0f} requests/s; {ratio:.3f} of it beside {arguments.pages} pages"
    )
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    result = {"idle": [asdict(each) for each in rest], "rounds": [asdict(each) for each in rounds]}
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
