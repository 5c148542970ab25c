"""How many processors there are for this process."""

import os

import pytest

from fold.runtime import machine


@pytest.mark.parametrize(
    ("limit", "found"),
    [("max 100000", 4), ("250000 100000", 2), ("50000 100000", 1), ("800000 100000", 4), ("nonsense", 4), (None, 4)],
)
def test_cores_are_those_of_the_affinity_within_the_containers_limit(tmp_path, monkeypatch, limit, found) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 2, 5, 7}, raising=False)
    monkeypatch.setattr(machine, "LIMIT", tmp_path / "cpu.max")
    if limit is not None:
        (tmp_path / "cpu.max").write_text(limit)
    assert machine.cores() == found
