"""How many processors there are for this process, and that no thread leaves them."""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from fold.cli import main
from fold.runtime import cgroups, cpus
from support.service import served

V1, V2 = "4:cpu,cpuacct:{}\n1:name=systemd:/\n", "0::{}\n"


@pytest.mark.parametrize(
    ("membership", "files", "found"),
    [
        (V2.format("/"), {"cpu.max": "max 100000"}, 4),
        (V2.format("/"), {"cpu.max": "250000 100000"}, 2),
        (V2.format("/"), {"cpu.max": "50000 100000"}, 1),
        (V2.format("/"), {"cpu.max": "800000 100000"}, 4),
        (V2.format("/"), {"cpu.max": "nonsense"}, 4),
        (V2.format("/"), {}, 4),
        (V2.format("/a/b"), {"a/b/cpu.max": "max 100000", "a/cpu.max": "300000 100000"}, 3),
        (V1.format("/"), {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 4),
        (V1.format("/"), {"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000"}, 2),
        (V1.format("/docker/0"), {"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000"}, 2),
        (V1.format("/k/pod"), {"cpu/k/pod/cpu.cfs_quota_us": "5000", "cpu/k/pod/cpu.cfs_period_us": "10000"}, 1),
        (None, {}, 4),
        ("damaged\n::\n", {}, 4),
    ],
)
def test_cores_are_those_of_the_affinity_within_the_quotas(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, membership: str | None, files: dict[str, str], found: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 2, 5, 7}, raising=False)
    monkeypatch.setattr(cgroups, "CGROUPS", tmp_path / "groups")
    monkeypatch.setattr(cgroups, "MEMBERSHIP", tmp_path / "membership")
    for name in cpus.THREADS:
        monkeypatch.delenv(name, raising=False)
    if membership is not None:
        (tmp_path / "membership").write_text(membership)
    for name, content in files.items():
        file = tmp_path / "groups" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    assert cpus.cores() == found
    assert cpus.thread_limits() == ({} if found == 4 else dict.fromkeys(cpus.THREADS, str(found)))


@pytest.mark.parametrize(
    ("share", "found"), [("1", 1), ("3", 3), ("9", 4), ("2,4", 2), ("", 4), ("0", 4), ("-1", 4), ("many", 4)]
)
def test_a_scheduler_tells_a_process_its_share(monkeypatch: pytest.MonkeyPatch, share: str, found: int) -> None:
    """By OMP_NUM_THREADS, as Ray does. It changes no variable of other libraries."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 2, 5, 7}, raising=False)
    monkeypatch.setattr(cgroups, "MEMBERSHIP", Path("/nowhere"))
    monkeypatch.setattr(cpus, "TOPOLOGY", Path("/nowhere"))
    monkeypatch.setenv("OMP_NUM_THREADS", share)
    assert (cpus.cores(), cpus.physical_cores()) == (found, found)
    assert cpus.thread_limits() == {}


def test_two_processors_of_one_core_are_one_core(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 4, 9}, raising=False)
    monkeypatch.setattr(cgroups, "MEMBERSHIP", tmp_path / "none")
    monkeypatch.setattr(cpus, "TOPOLOGY", tmp_path)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for number, siblings in {0: "0,4", 4: "0,4", 1: "1,5"}.items():
        (tmp_path / f"cpu{number}" / "topology").mkdir(parents=True)
        (tmp_path / f"cpu{number}" / "topology" / "thread_siblings_list").write_text(siblings)
    assert (cpus.cores(), cpus.physical_cores()) == (4, 3)


ON_ONE = """
import json, os, sys, threading
from pathlib import Path
os.sched_setaffinity(0, {int(sys.argv[2])})
import numpy as np
from fold.runtime import open_session, run
x = {"image": np.ones((64, 1, 8, 8), np.float32)}
session = open_session(Path(sys.argv[1]), provider="cpu")
run(session, x)
tasks = [Path(f"/proc/self/task/{task}/status").read_text() for task in os.listdir("/proc/self/task")]
allowed = {line for text in tasks for line in text.splitlines() if line.startswith("Cpus_allowed_list")}
print(json.dumps([len(tasks), sorted(allowed), session.get_session_options().intra_op_num_threads]))
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux only")
def test_on_one_processor_there_is_one_thread_and_it_stays_there(tmp_path: Path) -> None:
    """ONNX Runtime's own choice is a thread for every core of the machine, pinned to it."""
    served.net(tmp_path)
    one = min(os.sched_getaffinity(0))
    command = [sys.executable, "-c", ON_ONE, str(tmp_path / "net" / "1" / "model.onnx"), str(one)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [1, [f"Cpus_allowed_list:\t{one}"], 1]


@pytest.mark.parametrize(
    ("variable", "before", "after"),
    [
        ("OMP_WAIT_POLICY", None, "PASSIVE"),
        ("OMP_WAIT_POLICY", "ACTIVE", "ACTIVE"),
        ("OPENBLAS_NUM_THREADS", None, "1"),
        ("OPENBLAS_NUM_THREADS", "2", "2"),
    ],
)
def test_threads_without_work_sleep_unless_the_user_wants_otherwise(
    monkeypatch: pytest.MonkeyPatch, variable: str, before: str | None, after: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["bnfold", "--version"])
    for name in cpus.WITHOUT_SPINNING:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    if before is not None:
        monkeypatch.setenv(variable, before)
    with warnings.catch_warnings(), pytest.raises(SystemExit):
        main()
    assert os.environ[variable] == after
