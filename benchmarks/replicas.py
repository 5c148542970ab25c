"""How many replicas a load needs, what its latency is while the autoscaler follows it, and what a lost node costs.

    python -m benchmarks.replicas [--alone 201 --together 386] [--rows-target 1 --wait-target 0.02]

1. One replica is simulated event by event: Poisson arrivals, and the batcher as it is (an idle one runs at once, a busy
   one takes what waits, 64 rows at most). A run of b rows takes a + c·b seconds; a and c are from two rates that
   `benchmarks.serving` measures: requests/s at one connection, and at 64.
2. A fleet is followed second by second, while the load grows for ten minutes, stays, and a node goes. Each replica has
   its share of the load and waits as in 1; what exceeds the capacity of all is a backlog. The autoscaler is that of
   Kubernetes with the numbers of deploy/kubernetes, which stand in `Scaling`.
"""

import argparse
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import ceil

import numpy as np

RATES = (10, 100, 1_000, 100_000)
"""Requests a second, of one row each."""
MOST_ROWS = 64
QUEUE_ROWS = 1024
LOADS = (0.02, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.93, 0.96, 0.98)
"""Of the capacity of one replica, that are simulated."""
REQUESTS = 40_000
"""Of each of these."""
GROWS, HOLDS = 600, 1200
"""Seconds in which the load grows from nothing, and in which it then stays."""
NODES, PER_NODE = 10, 4
"""Nodes that the replicas are spread over, and the most that one of them takes: then there are more nodes."""


@dataclass(frozen=True)
class Service:
    """A model as one replica serves it; rates in requests/s, at one connection and at 64, on two cores."""

    name: str
    alone: float
    together: float

    def seconds(self, rows: int) -> float:
        """Of one run."""
        most = MOST_ROWS / self.together
        each = (most - 1 / self.alone) / (MOST_ROWS - 1)
        return 1 / self.alone + each * (rows - 1)


SERVICES = (Service("digits CNN", 4270, 15174), Service("ResNet-18, 3×64×64", 201, 386))
"""As docs/benchmarks.md has them."""


@dataclass(frozen=True)
class Scaling:
    """What deploy/kubernetes/scaledobject.yaml says, and what a cluster takes for it."""

    rows_target: float = 1.0
    """Rows that wait in each replica."""
    wait_target: float = 0.02
    """Mean seconds of a request in the queue."""
    least: int = 2
    poll: int = 15
    """Seconds between two looks; each sees the mean since the last."""
    window: int = 300
    """Fewer replicas only if that was enough for so many seconds."""
    up_seconds: int = 30
    """Between two looks that may start replicas, at most as many as there are, or four: as long as a start takes, so
    that the first have helped before the next are asked for."""
    down_share: float = 0.1
    """Of the replicas that may go within a minute."""
    start: int = 30
    """Seconds until a new replica is ready: 2 for the process, the rest for pod, image and probe."""
    detect: int = 50
    """Seconds until no request is sent to a node that was lost: the node controller's grace period."""


@dataclass(frozen=True)
class Waits:
    """Of one replica, by its load as a share of its capacity: rows that wait, their mean wait, and latencies."""

    rows: Sequence[float]
    wait: Sequence[float]
    p50: Sequence[float]
    p99: Sequence[float]

    def at(self, values: Sequence[float], load: float) -> float:
        return float(np.interp(load, LOADS, values))


def simulate(service: Service, rate: float, requests: int, seed: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Seconds in the queue and seconds until the answer of each request, and the mean number of rows that wait."""
    arrivals = np.cumsum(np.random.default_rng(seed).exponential(1 / rate, requests))
    waits, latencies = np.empty(requests), np.empty(requests)
    free, begin = 0.0, 0
    while begin < requests:
        start = max(free, arrivals[begin])
        end = min(begin + MOST_ROWS, int(np.searchsorted(arrivals, start, "right")))
        free = start + service.seconds(end - begin)
        waits[begin:end] = start - arrivals[begin:end]
        latencies[begin:end] = free - arrivals[begin:end]
        begin = end
    return waits, latencies, float(waits.sum() / arrivals[-1])


def stationary(service: Service, requests: int = REQUESTS) -> Waits:
    found = []
    for seed, load in enumerate(LOADS):
        waits, latencies, rows = simulate(service, load * service.together, requests, seed)
        found.append((rows, waits.mean(), *np.quantile(latencies, (0.5, 0.99))))
    return Waits(*(tuple(map(float, column)) for column in zip(*found, strict=True)))


@dataclass
class Fleet:
    """Replicas and what waits for them."""

    service: Service
    waits: Waits
    scaling: Scaling
    ready: int = 0
    backlog: float = 0.0
    starting: deque[int] = field(default_factory=deque)
    """When each new replica is ready."""
    refused: float = 0.0
    lost: float = 0.0

    def second(self, now: int, rate: float) -> tuple[float, float, float]:
        """Serve for a second. Returns rows that wait, their mean wait, and the 99th percentile of the latency."""
        while self.starting and self.starting[0] <= now:
            self.starting.popleft()
            self.ready += 1
        capacity = self.ready * self.service.together
        self.backlog = max(0.0, self.backlog + rate - capacity)
        room = self.ready * QUEUE_ROWS
        self.refused += max(0.0, self.backlog - room)
        self.backlog = min(self.backlog, room)
        load = min(rate / capacity, LOADS[-1])
        late = self.backlog / capacity
        rows = self.ready * self.waits.at(self.waits.rows, load) + self.backlog
        return rows, self.waits.at(self.waits.wait, load) + late, self.waits.at(self.waits.p99, load) + late

    def scale(self, now: int, wanted: int) -> None:
        """As Kubernetes, within the bounds of the manifest."""
        there = self.ready + len(self.starting)
        if wanted > there:
            self.starting.extend([now + self.scaling.start] * min(wanted - there, max(there, 4)))
        elif wanted < there:
            self.ready -= min(there - wanted, max(1, int(there * self.scaling.down_share)), self.ready - 1)


@dataclass(frozen=True)
class Second:
    replicas: int
    p99: float


def follow(service: Service, waits: Waits, rate: float, scaling: Scaling) -> tuple[list[Second], Fleet]:
    """A load that grows to `rate`, stays, and loses a node in the middle of that time."""
    fleet = Fleet(service, waits, scaling, ready=scaling.least)
    seen: list[Second] = []
    looks: list[tuple[float, float]] = []
    wishes: deque[tuple[int, int]] = deque()
    lost_at, fewer_at, more_at, dead = GROWS + HOLDS // 2, 0, -scaling.up_seconds, 0
    for now in range(GROWS + HOLDS):
        asked = rate * min(1.0, (now + 1) / GROWS)
        if now == lost_at:
            dead = min(PER_NODE, ceil(fleet.ready / NODES))
            fleet.lost = dead * (waits.at(waits.rows, asked / fleet.ready / service.together) + 1)
        if lost_at <= now < lost_at + scaling.detect:  # a part of all requests goes to pods that are not there
            share = dead / fleet.ready
            fleet.lost += asked * share
            asked *= 1 - share
        if dead and now == lost_at + scaling.detect:
            fleet.ready -= dead
            fleet.starting.extend([now + scaling.start] * dead)
        rows, wait, p99 = fleet.second(now, asked)
        seen.append(Second(fleet.ready, p99))
        looks.append((rows, wait))
        if now % scaling.poll == scaling.poll - 1:
            rows, wait = np.mean(looks, axis=0)
            looks.clear()
            there = fleet.ready + len(fleet.starting)
            wish = max(ceil(rows / scaling.rows_target), ceil(there * wait / scaling.wait_target), scaling.least)
            wishes.append((now, wish))
            while wishes[0][0] < now - scaling.window:
                wishes.popleft()
            if wish > there and now - more_at >= scaling.up_seconds:
                fleet.scale(now, wish)
                more_at = now
            elif (now - fewer_at) >= 60 and (most := max(number for _, number in wishes)) < there:
                fleet.scale(now, most)
                fewer_at = now
    return seen, fleet


def rows(services: Sequence[Service], scaling: Scaling) -> Iterator[list[str]]:
    for service in services:
        waits = stationary(service)
        for rate in RATES:
            seen, fleet = follow(service, waits, rate, scaling)
            held = seen[GROWS + HOLDS // 4 : GROWS + HOLDS // 2]
            after = seen[GROWS + HOLDS // 2 :]
            replicas = [second.replicas for second in held]
            grew = [second.p99 for second in seen[:GROWS]]
            yield [
                service.name,
                f"{rate:,}",
                str(replicas[0]) if len(set(replicas)) == 1 else f"{min(replicas)} to {max(replicas)}",
                f"{rate / np.mean(replicas) / service.together:.2f}",
                f"{1e3 * np.mean([second.p99 for second in held]):.1f}",
                f"{1e3 * max(grew):,.1f}",
                f"{fleet.refused:,.0f}",
                f"{fleet.lost:,.0f}",
                f"{1e3 * max(second.p99 for second in after):,.1f}",
            ]


HEAD = (
    "model", "requests/s", "replicas", "load of each", "p99 ms", "at most while it grows", "refused then",
    "lost with a node", "p99 ms after that",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--alone", type=float, help="requests/s of your model at one connection")
    parser.add_argument("--together", type=float, help="the same at 64 connections")
    parser.add_argument("--rows-target", type=float, default=Scaling.rows_target)
    parser.add_argument("--wait-target", type=float, default=Scaling.wait_target)
    chosen = parser.parse_args()
    services = SERVICES
    if chosen.alone and chosen.together:
        services = (Service("yours", chosen.alone, chosen.together),)
    scaling = Scaling(chosen.rows_target, chosen.wait_target)
    from benchmarks.folding import markdown  # noqa: PLC0415  # imports PyTorch, which tests of the numbers need not

    print(markdown(HEAD, list(rows(services, scaling))))


if __name__ == "__main__":
    main()
