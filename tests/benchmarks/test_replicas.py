"""The simulation of replicas against what can be counted by hand."""

import numpy as np
import pytest

from benchmarks.replicas import GROWS, MOST_ROWS, SERVICES, Scaling, Service, follow, simulate, stationary


@pytest.mark.parametrize("service", SERVICES, ids=lambda service: service.name)
def test_runs_take_what_was_measured(service: Service) -> None:
    assert service.seconds(1) == pytest.approx(1 / service.alone)
    assert service.seconds(MOST_ROWS) == pytest.approx(MOST_ROWS / service.together)


def test_a_batch_is_what_waits_when_the_one_before_ends() -> None:
    """The same requests, one event after the other."""
    service, rate, requests = Service("one", 100, 640), 500.0, 2000
    waits, latencies, rows = simulate(service, rate, requests, seed=3)
    arrivals = np.cumsum(np.random.default_rng(3).exponential(1 / rate, requests)).tolist()
    queue: list[float] = []
    now, found = 0.0, []
    while arrivals or queue:
        if not queue:
            now = max(now, arrivals[0])
        while arrivals and arrivals[0] <= now:
            queue.append(arrivals.pop(0))
        batch, queue = queue[:MOST_ROWS], queue[MOST_ROWS:]
        end = now + service.seconds(len(batch))
        found += [(now - arrival, end - arrival) for arrival in batch]
        now = end
    np.testing.assert_allclose(np.transpose([waits, latencies]), found)
    assert rows == pytest.approx(waits.mean() * rate, rel=0.1), "Little's law"


def test_the_autoscaler_finds_enough_replicas_and_replaces_those_of_a_node() -> None:
    service = SERVICES[1]
    seen, fleet = follow(service, stationary(service, 2000), 1000, Scaling())
    held = [second.replicas for second in seen[GROWS + 300 :]]
    assert min(held) * service.together > 1000
    assert max(held) < 4 * 1000 / service.together
    assert fleet.lost > 0
    assert fleet.refused == 0
    assert seen[-1].p99 < 0.1
