"""`bnfold predict` is killed at random moments, and reads a data set that is larger than its memory."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.datasets import load_digits

from benchmarks.scaling import resident
from support.service import served

pytestmark = pytest.mark.integration

KILLS = 20


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "fold", "predict", *map(str, words), "--device", "cpu"]


def test_killed_at_any_moment_the_sum_of_all_starts_is_each_row_once(tmp_path: Path) -> None:
    """Some rows fail, so that their errors are committed with the shards, too."""
    served.net(tmp_path / "repository")
    digits = np.concatenate([load_digits().images[:, None] / 16] * 2).astype(np.float32)
    rows = digits.reshape(len(digits), 64).tolist()
    bad = range(5, len(rows), 101)
    for row in bad:
        rows[row] = rows[row][:-1]
    pq.write_table(pa.table({"image": rows, "key": range(len(rows))}), tmp_path / "d.parquet", row_group_size=500)
    out = tmp_path / "out"
    start = command(
        tmp_path / "repository" / "net", tmp_path / "d.parquet", "--id", "key", "--shard-rows", 7, "--out", out
    )
    chosen, kills = random.Random(0), 0
    while kills < KILLS:
        changes = chosen.randint(1, 12)
        before = names(out)
        process = subprocess.Popen(start, stderr=subprocess.DEVNULL)
        while changes and process.poll() is None:
            found = names(out)
            changes -= found != before
            before = found
        assert process.poll() is None, "it ended before it could be killed"
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
    assert len(list(out.glob("part-*.parquet"))) >= 1
    assert not (out / "errors.parquet").exists()
    assert subprocess.run(start, check=False, capture_output=True).returncode == 1
    found, errors = (pq.read_table(sorted(out.glob(name))) for name in ("part-*.parquet", "errors.parquet"))
    assert Counter(found["id"].to_pylist() + errors["id"].to_pylist()) == Counter(range(len(rows)))
    assert errors["id"].to_pylist() == list(bad)
    good = [row for row in range(len(rows)) if row not in set(bad)]
    assert found["id"].to_pylist() == good
    [scores] = ort.InferenceSession(tmp_path / "repository/net/1/model.onnx").run(None, {"image": digits[good]})
    assert found["index"].to_pylist() == np.asarray(scores).argmax(axis=1).tolist()
    assert [path for path in out.iterdir() if path.name.startswith(".partial")] == []


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder)) if folder.exists() else []


def test_a_data_set_may_be_larger_than_memory(tmp_path: Path) -> None:
    """3 GB of rows in a file without blocks, with memory for a fifth of it."""
    served.others(tmp_path / "repository")
    rows, size = 20_000, 40_000
    data = np.lib.format.open_memmap(tmp_path / "d.npy", mode="w+", dtype=np.float32, shape=(rows, size))
    data[::1000, 0] = np.arange(20)
    del data
    assert (tmp_path / "d.npy").stat().st_blocks * 512 < 1 << 20
    start = command(tmp_path / "repository" / "free", tmp_path / "d.npy", "--out", tmp_path / "out")
    process, peak = subprocess.Popen(start, stderr=subprocess.DEVNULL), 0.0
    while process.poll() is None:  # what `wait4` tells is at least what this process has
        with contextlib.suppress(OSError, AssertionError):  # it has just ended
            peak = resident("VmHWM", process.pid)
        time.sleep(0.01)
    assert process.returncode == 0
    found = pq.read_table(tmp_path / "out")["total"].to_numpy()
    assert found[::1000].tolist() == list(range(20))
    assert len(found) == rows
    assert found.sum() == 190
    assert 0 < peak < 600e6
