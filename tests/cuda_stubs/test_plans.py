"""What the host does for a batch: plans of cuDNN, CUDA graphs, and copies during which other threads run."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cuda_stubs import stubs
from cuda_stubs.networks import CONVOLUTIONS, chain, rows

from fold.artifact.manifest import PrecisionName
from fold.convert import Target, convert
from fold.serving.options import SessionOptions
from fold.serving.session import ModelSession
from fold.sources import Source

pytestmark = pytest.mark.cuda_stubs

SIZES = 7
"""Powers of two up to 64."""
MIXED = (1, 8, 1, 64, 3, 40, 2, 1, 17)


def opened(repository: Path, precision: str = "fp32", *, depthwise: bool = False, **options: Any) -> ModelSession:
    version = chain(repository, precision, depthwise=depthwise)
    return ModelSession.open(version, SessionOptions(device="cuda", max_batch_size=64, **options))


def in_threads(session: ModelSession, threads: int, *, copies: bool) -> None:
    """Batches of all sizes, from several threads at a time. With `copies`, what is copied on the device is right; the
    kernels of a CUDA graph do nothing, and neither do its copies."""
    failed: list[Exception] = []

    def ask(seed: int) -> None:
        try:
            for turn, size in enumerate(np.random.default_rng(seed).permutation(MIXED)):
                batch = rows(int(size), seed=100 * seed + turn)
                found = session.run(batch)
                assert found["y"].shape == batch["x"].shape
                if copies:
                    np.testing.assert_array_equal(found["same"], batch["x"])
        except Exception as error:
            failed.append(error)

    running = [threading.Thread(target=ask, args=(seed,)) for seed in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    assert not failed


@pytest.mark.parametrize("depthwise", [False, True])
@pytest.mark.parametrize("nhwc", [False, True])
@pytest.mark.parametrize("graphs", [False, True])
def test_no_plan_is_built_while_serving(graphs: bool, nhwc: bool, depthwise: bool, tmp_path: Path) -> None:
    before = stubs.cudnn_counts().plans
    session = opened(tmp_path, depthwise=depthwise, cuda_graphs=graphs, nhwc=nhwc)
    warm, captures = stubs.cudnn_counts(), stubs.counts().captures
    assert warm.plans - before == CONVOLUTIONS * SIZES
    for size in MIXED:
        session.run(rows(size))
    in_threads(session, 3, copies=not graphs)
    assert session.run(rows(0))["y"].shape == (0, 4, 8, 8)
    assert stubs.cudnn_counts().plans == warm.plans
    assert (session.cold_shapes, stubs.counts().captures) == (0, captures)
    assert (stubs.cudnn_counts().runs == warm.runs) == graphs, "what is recorded is launched as one"


def test_each_size_is_recorded_once(tmp_path: Path) -> None:
    before = stubs.counts()
    session = opened(tmp_path, cuda_graphs=True)
    warm = stubs.counts()
    assert warm.captures - before.captures == SIZES
    for size in MIXED:
        session.run(rows(size))
    after = stubs.counts()
    assert after.graph_launches - warm.graph_launches == len(MIXED)
    assert (after.captures, after.launches) == (warm.captures, warm.launches)


def test_without_buckets_a_change_of_the_batch_size_is_counted(tmp_path: Path) -> None:
    """The provider builds all plans again each time."""
    session = opened(tmp_path, buckets="off")
    before = stubs.cudnn_counts().plans
    for size in (8, 8, 1, 8, 8, 1):
        session.run(rows(size))
    assert session.cold_shapes == 4
    assert stubs.cudnn_counts().plans - before == 4 * CONVOLUTIONS


def test_a_run_allocates_nothing_on_the_device(tmp_path: Path) -> None:
    session = opened(tmp_path)
    before = stubs.counts()
    for size in MIXED:
        session.run(rows(size))
    after = stubs.counts()
    assert (after.allocations, after.pinned) == (before.allocations, before.pinned)


@pytest.mark.parametrize(("precision", "has"), [("fp32", False), ("tf32", True), ("fp16", True)])
def test_tensor_cores(precision: str, has: bool, tmp_path: Path) -> None:
    """cuDNN's first engine has them: it is taken where the precision allows it."""
    before = stubs.cudnn_counts()
    opened(tmp_path, precision)
    after = stubs.cudnn_counts()
    plans = after.plans - before.plans
    assert plans == CONVOLUTIONS * SIZES
    assert after.plans_with_tensor_cores - before.plans_with_tensor_cores == (plans if has else 0)


@pytest.mark.parametrize(("precision", "has"), [("fp32", False), ("tf32", True), ("fp16", True)])
def test_tensor_cores_of_a_certificate(precision: PrecisionName, has: bool, tmp_path: Path) -> None:
    """U and F, the graph before and after the fold, which are both wrong here."""
    source = Source(chain(tmp_path / "source").reference_file)
    before = stubs.cudnn_counts()
    conversion = convert(source, Target(tmp_path / "repository", "net"), precision=precision, provider="cuda")
    after = stubs.cudnn_counts()
    assert conversion.path is None
    plans = after.plans - before.plans
    assert plans >= 2 * CONVOLUTIONS
    assert after.plans_with_tensor_cores - before.plans_with_tensor_cores == (plans if has else 0)


def test_exhaustive_search_is_mode_b_of_the_heuristic(tmp_path: Path) -> None:
    modes = {}
    for search in ("heuristic", "exhaustive"):
        before = stubs.cudnn_counts()
        opened(tmp_path / search, conv_search=search)
        after = stubs.cudnn_counts()
        modes[search] = (after.asked_mode_a > before.asked_mode_a, after.asked_mode_b > before.asked_mode_b)
    assert modes == {"heuristic": (True, False), "exhaustive": (False, True)}


@pytest.mark.parametrize("graphs", [False, True])
def test_other_threads_run_while_a_batch_is_copied(graphs: bool, tmp_path: Path) -> None:
    """Each copy waits until this thread, which needs the interpreter for it, lets it pass."""
    session = opened(tmp_path, cuda_graphs=graphs)
    before = stubs.counts()
    batch = threading.Thread(target=session.run, args=(rows(64),))
    with stubs.held_copies():
        batch.start()
        passed = 0
        while batch.is_alive():
            if stubs.counts().waiting:
                stubs.let_a_copy_pass()
                passed += 1
            batch.join(0.001)
    after = stubs.counts()
    assert passed == after.copies - before.copies >= 3, "the input and both outputs"
    assert after.given_up == before.given_up
