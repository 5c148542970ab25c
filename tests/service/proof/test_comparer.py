"""The process that compares: it dies without harm, is started again, and never outlives the service."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fold.artifact.directory import read_version
from fold.errors import BnfoldError
from service.proof.comparer import Comparer, Task
from support.service.serving import PATIENCE

ROW = {"inputs": [{"name": "image", "shape": [1, 1, 8, 8], "datatype": "FP32", "data": [0.5] * 64}]}


@pytest.fixture
def comparer() -> Iterator[Comparer]:
    comparer = Comparer()
    yield comparer
    comparer.stop()


def task(path: Path, rows: int = 0, shift: float = 0.0) -> Task:
    """To load the reference, or to compare `rows` rows of what the graph answers, off by `shift`."""
    version = read_version(path)
    if not rows:
        return Task("net/1", version.manifest.digest, path, "cpu")
    from fold.runtime.session import open_session, run  # noqa: PLC0415

    asked = {"image": np.random.default_rng(rows).normal(size=(rows, 1, 8, 8)).astype(np.float32)}
    answered = run(open_session(version.model_file, provider="cpu"), asked)
    return Task("net/1", version.manifest.digest, path, "cpu", asked, {k: v + shift for k, v in answered.items()})


def children(pid: int) -> list[int]:
    return [int(child) for file in Path(f"/proc/{pid}/task").glob("*/children") for child in file.read_text().split()]


def comparing(pid: int) -> list[int]:
    """The processes of a service that compare; beside them Python keeps one that tidies up."""
    return [child for child in children(pid) if b"spawn_main" in command_line(child)]


def command_line(pid: int) -> bytes:
    """Empty once it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def gone(pid: int) -> bool:
    try:
        return "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True


def until(true: Callable[[], Any]) -> None:
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_answers_are_judged_and_nothing_of_them_is_kept(folded: Path, comparer: Comparer) -> None:
    path = folded / "net" / "1"
    loaded = comparer.compare(task(path))
    assert (loaded.verdict, loaded.failure) == (None, "")
    right, wrong = comparer.compare(task(path, 3)), comparer.compare(task(path, 2, shift=0.01))
    assert right.verdict
    assert right.verdict.samples == 3
    assert right.verdict.evidence is None
    assert wrong.verdict is not None
    assert not wrong.verdict
    assert wrong.seconds > 0


def test_a_version_that_was_replaced_is_not_taken_for_the_one_that_serves(folded: Path, comparer: Comparer) -> None:
    other = Task("net/1", "another", folded / "net" / "1", "cpu")
    assert comparer.compare(other).failure.endswith("is another version than the one that serves")
    assert comparer.compare(task(folded / "net" / "1", 1)).verdict


def test_a_process_that_dies_is_told_of_and_started_again(folded: Path, comparer: Comparer) -> None:
    path = folded / "net" / "1"
    assert comparer.compare(task(path, 1)).verdict
    (child,) = comparing(os.getpid())
    os.kill(child, signal.SIGKILL)
    with pytest.raises(BnfoldError, match="the process that compares has died"):
        comparer.compare(task(path, 1))
    assert comparer.compare(task(path, 1)).verdict, "and has loaded its reference anew"


def test_the_service_goes_on_without_it_and_does_not_leave_it_behind(
    folded: Path, start_process: Callable[..., Any]
) -> None:
    rows = 'bnfold_shadow_rows_total{model="net",version="2"}'
    with start_process(folded, shadow=1) as service:
        send = lambda: service.post("/v2/models/net/infer", json=ROW)  # noqa: E731
        until(lambda: send() and service.metric(rows) > 0)
        (child,) = comparing(service.process.pid)
        os.kill(child, signal.SIGKILL)
        seen = service.metric(rows)
        until(lambda: send() and service.metric(rows) > seen)
        assert service.metric('bnfold_shadow_drops_total{model="net",reason="failed",version="2"}') == 1
        (child,) = comparing(service.process.pid)
        service.process.kill()
        service.process.wait()
        until(lambda: gone(child))


def test_a_comparison_under_way_does_not_outlive_the_service(
    tmp_path: Path, start_process: Callable[..., Any], make_slow: Callable[..., None]
) -> None:
    make_slow(tmp_path, quick=True)
    row = {"inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [1e7]}]}  # computes for hours
    share, busy = (f'bnfold_shadow_{name},version="1"}}' for name in (
        'share{model="slow"', 'drops_total{model="slow",reason="busy"'
    ))  # fmt: skip
    with start_process(tmp_path, shadow=1) as service:
        until(lambda: service.metric(share) == 1)
        until(lambda: service.post("/v2/models/slow/infer", json=row) and service.metric(busy) > 0)
        (child,) = comparing(service.process.pid)
        service.process.kill()
        service.process.wait()
        until(lambda: gone(child))


def test_a_comparer_that_was_stopped_starts_no_process(folded: Path) -> None:
    comparer = Comparer()
    comparer.stop()
    with pytest.raises(BnfoldError, match="is stopping"):
        comparer.compare(task(folded / "net" / "1"))


def test_one_that_dies_while_it_loads_is_started_again_and_not_for_ever(
    folded: Path, start_process: Callable[..., Any]
) -> None:
    """First it is killed once and then left alone, then another service's is killed as often as it comes."""
    share = 'bnfold_shadow_share{model="net",version="2"}'
    killed: list[int] = []
    with start_process(folded, shadow=1) as service:
        until(lambda: kill_next(service.process.pid, killed))
        until(lambda: service.metric(share) == 1)
    restarts = [line for line in service.lines if "it is started again" in line]
    assert restarts == [
        "bnfold: the process that compares died over net/2, perhaps for lack of memory; it is started again (1 of 3)"
    ]
    killed.clear()
    with start_process(folded, shadow=1) as service:
        until(lambda: kill_next(service.process.pid, killed) and len(killed) > 3)
        assert service.post("/v2/models/net/infer", json=ROW).status_code == 200
        assert service.metric(share) == 0
        until(lambda: not comparing(service.process.pid))
    assert [line.rpartition("(")[2] for line in service.lines if "it is started again" in line] == [
        f"{number} of 3)" for number in (1, 2, 3)
    ]
    given_up = "bnfold: not comparing net/2 with its reference: the process that compares has died, perhaps for lack of"
    assert len([line for line in service.lines if line.startswith(given_up)]) == 1


def kill_next(pid: int, killed: list[int]) -> bool:
    """Whether there was a process that compares, which was not killed before."""
    found = [child for child in comparing(pid) if child not in killed]
    for child in found:
        os.kill(child, signal.SIGKILL)
    killed += found
    return bool(found)
