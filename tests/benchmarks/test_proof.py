"""The benchmark of planted faults: what each judge says of one model, and how a run goes on."""

import itertools
import os
from pathlib import Path

import pytest

from benchmarks.limited import limited
from benchmarks.proof import JUDGES, Row, plant, tables
from benchmarks.random_models import Drawn, Fold, fold_drawn
from benchmarks.rows import append, read

OURS = [name for name in JUDGES if name != "onnxsim"]  # which the tests do not install
DRAWN = Drawn.named("resnet/ordinary/closed/1")


@pytest.fixture(scope="module")
def folded() -> Fold:
    return fold_drawn(DRAWN)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (0.0, set()),
        (1e-6, {"A", "B, weights"}),
        (1e-1, {"A", "B, weights", "B, effect", "C", "Polygraphy 1e-5"}),
    ],
)
def test_each_judge_says_what_it_must(folded: Fold, size: float, expected: set[str]) -> None:
    case = plant(DRAWN, folded, size)
    assert case is not None
    said = set()
    for judge in OURS:
        row = Row(DRAWN.name, size, judge)
        JUDGES[judge].ask(case, row)
        said |= set(row.said)
    assert expected <= said
    assert said <= {word for judge in OURS for word in JUDGES[judge].words}
    assert size or not said


def test_rows_are_counted_as_far_as_a_run_came(tmp_path: Path) -> None:
    file = tmp_path / "build" / "rows.jsonl"
    assert read(file) == []
    row = Row("a", 1e-3, "A", ["A"], measured=1e-4, seconds=2.0, megabytes=30.0)
    for name in ("a", "b"):
        append(file, {**vars(row), "name": name})
    append(file, {**vars(row), "name": "c", "said": [], "failed": "takes more than 60 s"})
    found = tables([Row(**each) for each in read(file)], [1e-3], ["A"])
    assert "| 0.001 | 1.0e-04 | 2 of 3 |" in found
    assert "| A | 3 | 1 | 2 | 2 | 30 | 30 |" in found


def test_work_in_a_process_of_its_own_is_limited() -> None:
    assert limited(os.getpid, 60, 8000) != os.getpid()
    with pytest.raises(TimeoutError, match="takes more than 1 CPU-seconds"):
        limited(lambda: sum(itertools.repeat(0)), 1, 8000)
    with pytest.raises(ChildProcessError, match="ended with 3"):
        limited(lambda: os._exit(3), 60, 8000)
