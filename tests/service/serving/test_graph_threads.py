"""Which thread runs what, where a device keeps something by thread: CUDA graphs, and handles of its libraries. And what
is refused for want of a library."""

import threading
from pathlib import Path

import numpy as np
import pytest

from fold.artifact.directory import read_version
from fold.runtime.devices import ProviderUnavailableError
from fold.serving import placement, refusals
from fold.serving.buckets import Buckets
from fold.serving.graph import Graph
from fold.serving.options import SessionOptions
from fold.serving.session import ModelSession
from support.service.serving import PATIENCE


def test_a_session_with_cuda_graphs_runs_on_one_thread_and_records_only_at_fixed_addresses(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session on the CPU that is told to be on a GPU, without buckets: whoever asks, and nothing may be recorded."""
    monkeypatch.setattr(placement, "provider_of", lambda session: "cuda")
    version = read_version(repository / "pair" / "1")
    options = SessionOptions(device="cpu", buckets="off", cuda_graphs=True, batches_in_flight=3)
    ran: list[tuple[int, str]] = []
    run = Graph.run

    def noted(graph: Graph, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        ran.append((threading.get_ident(), graph._options.get_run_config_entry("gpu_graph_id")))
        return run(graph, inputs)

    monkeypatch.setattr(Graph, "run", noted)
    session = ModelSession.open(version, options)
    assert session.batches_in_flight == 1
    a = np.ones((2, 2), np.float32)
    threads = [threading.Thread(target=session.run, args=({"a": a, "b": a},)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    np.testing.assert_array_equal(session.run({"a": a, "b": a})["sum"], 2 * a)
    assert len(ran) == 5
    assert len(set(ran)) == 1
    assert ran[0][1] == "-1"
    assert ran[0][0] != threading.get_ident()


def test_errors_of_that_thread_are_those_of_the_run(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "provider_of", lambda session: "cuda")
    version = read_version(repository / "pair" / "1")
    session = ModelSession.open(version, SessionOptions(device="cpu", buckets="off", cuda_graphs=True))
    failing = {"a": np.full((1, 2), np.nan, np.float32)}
    with pytest.raises(ValueError, match="missing"):
        session.run(failing)


@pytest.mark.parametrize(("name", "convolves"), [("net", True), ("pair", False)])
def test_a_gpu_without_cudnn_serves_no_convolutions(
    name: str, convolves: bool, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placement, "provider_of", lambda session: "cuda")
    monkeypatch.setattr(refusals, "loaded_cudnn", lambda: None)
    version, options = (
        read_version(repository / name / "1"),
        SessionOptions(device="cpu", buckets="off"),
    )
    if convolves:
        with pytest.raises(ProviderUnavailableError, match="found no cuDNN"):
            ModelSession.open(version, options)
        monkeypatch.setattr(refusals, "loaded_cudnn", lambda: "9.12.0")
    ModelSession.open(version, options)


def test_stagings_of_one_size_are_warmed_up_at_a_time() -> None:
    """Two batches in flight are two threads, and each has to meet the device before it serves."""
    together = threading.Barrier(2, timeout=PATIENCE)

    class Meeting:
        rows = 4

        def run(self, inputs: dict[str, np.ndarray], rows: int) -> dict[str, np.ndarray]:
            together.wait()
            return inputs

    Buckets((4,), 2, lambda size, position: Meeting()).warm_up({"x": np.zeros((1, 3))})  # type: ignore[arg-type, return-value]
    assert not together.broken
