"""A cluster of Ray with two nodes, one of which is lost: `bnfold predict --engine ray` goes on with what is left."""

import os
import threading
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from support.commands import bnfold
from support.service import served

pytestmark = [pytest.mark.integration, pytest.mark.filterwarnings("ignore")]


def test_a_run_goes_on_when_a_node_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When both workers have been seen to write. The shard of the lost one waits for the processor of the other."""
    from ray.cluster_utils import Cluster  # noqa: PLC0415  # takes a second

    served.net(tmp_path / "repository")
    rows = 8000
    np.save(tmp_path / "d.npy", np.zeros((rows, 1, 8, 8), np.float32))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    node = cluster.add_node(num_cpus=1)
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    seen: set[int] = set()
    ended, lost = threading.Event(), threading.Event()

    def lose_a_node() -> None:
        while not ended.is_set() and not lost.is_set():
            names = os.listdir(tmp_path / "out") if (tmp_path / "out").exists() else ()
            seen.update(int(name.split("-")[1]) for name in names if name.startswith(".partial-"))
            if len(seen) == 2:
                cluster.remove_node(node, allow_graceful=False)
                lost.set()

    watch = threading.Thread(target=lose_a_node)
    watch.start()
    words = ("--shard-rows", 20, "--engine", "ray", "--threads", 1, "--device", "cpu", "--out", tmp_path / "out")
    try:
        done = bnfold("predict", tmp_path / "repository" / "net", tmp_path / "d.npy", *words)
    finally:
        ended.set()
        watch.join()
        cluster.shutdown()
    assert done.returncode == 0, done.stderr
    assert lost.is_set()
    found = pq.read_table(sorted((tmp_path / "out").glob("part-*.parquet")))
    assert found["row"].to_pylist() == list(range(rows))
