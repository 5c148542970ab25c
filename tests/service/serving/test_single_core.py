"""A second session, whose runs have one core each: who gets one, that it computes the same, that proofs cover it."""

import os
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fold.artifact.directory import read_version
from fold.serving import session as module
from fold.serving.options import SessionOptions
from fold.serving.session import CertificateError, ModelSession
from support.service import serving
from support.service.reloading import wait

CORES = 3


@pytest.fixture
def slow_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """No model counts as fast, on a machine of some cores."""
    monkeypatch.setattr(module, "FAST_SECONDS", 0.0)
    monkeypatch.setattr(module, "cores", lambda: CORES)


def opened(repository: Path, name: str, **options: Any) -> ModelSession:
    return ModelSession.open(read_version(repository / name / "1"), SessionOptions(device="cpu", **options))


@pytest.mark.usefixtures("slow_models")
def test_slow_models_have_a_session_for_one_core_unless_threads_or_batches_are_given(repository: Path) -> None:
    assert opened(repository, "net").single_core_runs == CORES
    for options in ({"threads": 2}, {"batches_in_flight": 1}, {"buckets": "8"}):
        assert opened(repository, "net", **options).single_core_runs == 0, options
    assert opened(repository, "single").single_core_runs == 0, "its rows cannot be told apart"


def test_fast_models_and_machines_of_one_core_have_none(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FAST_SECONDS", 60.0)
    assert opened(repository, "net").single_core_runs == 0
    monkeypatch.setattr(module, "FAST_SECONDS", 0.0)
    monkeypatch.setattr(module, "cores", lambda: 1)
    assert opened(repository, "net").single_core_runs == 0


@pytest.mark.usefixtures("slow_models")
@pytest.mark.parametrize("name", ["net", "echo", "pair", "free", "text", "upper"])
def test_both_sessions_compute_the_same(name: str, repository: Path) -> None:
    session = opened(repository, name)
    random = np.random.default_rng(3)
    for rows in (0, 1, 5):
        inputs = {}
        for spec in session.version.manifest.inputs:
            values = random.integers(0, 2, [rows, *(size if size > 0 else 2 for size in spec.shape[1:])])
            inputs[spec.name] = values.astype(module.DTYPES[spec.datatype])
            if spec.datatype == "BYTES":
                inputs[spec.name] = values.astype(str).astype(object)
        expected = session.run(inputs)
        for run in (session.run_on_one_core, session.run_in_all):
            answered = run(inputs)
            assert answered.keys() == expected.keys()
            for output, array in expected.items():
                np.testing.assert_array_equal(answered[output], array, strict=True)


@pytest.mark.usefixtures("slow_models")
def test_what_is_proven_is_what_either_of_them_answers(folded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A session for one core that computes something else is found by the canary before it serves."""
    right = module.open_session

    def sometimes_wrong(model: Path, **options: Any) -> Any:
        session = right(model, **options)
        if options["threads"] == 1:
            run = session.run
            monkeypatch.setattr(session, "run", lambda *arguments: [array + 1 for array in run(*arguments)])
        return session

    opened(folded, "net")
    monkeypatch.setattr(module, "open_session", sometimes_wrong)
    with pytest.raises(CertificateError, match="its certificate does not hold here"):
        opened(folded, "net")


def test_a_crowd_is_answered_right(folded: Path, start_process: Callable[..., Any]) -> None:
    """By a real service, in which runs have all cores or one, as requests come and go."""
    slow = f"from fold.serving import session\nsession.FAST_SECONDS, session.cores = 0.0, lambda: {CORES}\n"
    spec = read_version(folded / "net" / "2").manifest.inputs[0]
    x = np.random.default_rng(0).normal(size=(40, *spec.shape[1:])).astype(np.float32)

    def ask(rows: np.ndarray) -> np.ndarray:
        tensor = {"name": spec.name, "shape": list(rows.shape), "datatype": "FP32", "data": rows.ravel().tolist()}
        answer = service.post("/v2/models/net/infer", json={"inputs": [tensor]}).json()["outputs"][0]
        return np.array(answer["data"], np.float32).reshape(answer["shape"])

    with start_process(folded, code=slow + serving.SERVE, threads=0) as service, ThreadPoolExecutor(16) as clients:
        config = service.get("/v2/models/net/config").json()
        assert config["instance_group"][0]["count"] == CORES
        one_by_one = np.concatenate([ask(x[i : i + 1]) for i in range(40)])
        for _ in range(5):
            together = np.concatenate(list(clients.map(ask, np.split(x, 40))))
            np.testing.assert_allclose(together, one_by_one, rtol=1e-5, atol=1e-5)
        proof = service.post("/v2/models/net/equivalence", json={"samples": 7}).json()
        assert proof["equivalent"], proof["message"]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux only")
def test_no_thread_leaves_the_processors_of_the_service(folded: Path, start_process: Callable[..., Any]) -> None:
    """Neither of the sessions, nor of the reference, nor of the process that compares, on one processor of several."""
    one = min(os.sched_getaffinity(0))
    bound = f"import os\nos.sched_setaffinity(0, {{{one}}})\nfrom fold.serving import session\n"
    with start_process(
        folded, code=f"{bound}session.FAST_SECONDS = 0.0\n{serving.SERVE}", threads=0, shadow=1
    ) as service:
        assert service.post("/v2/models/net/equivalence", json={"samples": 3}).json()["equivalent"]
        wait(lambda: service.metric('bnfold_shadow_share{model="net",version="2"}') == 1)
        assert service.get("/v2/models/net/config").json()["instance_group"][0]["count"] == 1
        pids = [service.process.pid, *children(service.process.pid)]
        allowed = {
            re.search(r"Cpus_allowed_list:\s*(\S+)", task.read_text())[1]  # type: ignore[index]  # Linux has it
            for pid in pids
            for task in Path(f"/proc/{pid}/task").glob("*/status")
        }
    assert len(pids) > 1
    assert allowed == {str(one)}


def children(pid: int) -> list[int]:
    return [int(child) for file in Path(f"/proc/{pid}/task").glob("*/children") for child in file.read_text().split()]
