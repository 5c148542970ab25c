"""What benchmarks/gpu.py counts and concludes, without a GPU: networks, ratios, tables, and clients that check."""

import io
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from benchmarks import gpu, gpu_facts, gpu_summary
from benchmarks.clients import Client, Seen, question, read_questions, total, write_questions
from benchmarks.contestants import relative_error, seconds_of
from benchmarks.convolutions import convolutions
from benchmarks.published import FIRST, NETWORKS
from benchmarks.service_on_gpu import Serving, best_rate
from fold.runtime import open_session
from support import ROOT

ROUTE = "/v2/models/net/infer"


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_have_as_many_parameters_as_were_published(name) -> None:
    with torch.device("meta"):  # no weights are drawn
        module = NETWORKS[name].build().eval()
        scores = module(torch.zeros(2, *NETWORKS[name].shape))
    assert scores.shape == (2, 1000)
    count = sum(parameter.numel() for parameter in module.parameters())
    assert count == pytest.approx(1e6 * NETWORKS[name].millions, rel=0.005)


# Clients


@contextmanager
def serving(*answers: bytes) -> Iterator[int]:
    """The port of a server that gives these answers in turns, each connection from the first."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve(connection: socket.socket) -> None:
        connection.settimeout(10)
        with connection, connection.makefile("rb") as stream:
            turn = 0
            while (size := _body_size(stream)) is not None:
                assert len(stream.read(size)) == size
                connection.sendall(answers[turn % len(answers)])
                turn += 1

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    accepting = threading.Thread(target=accept, daemon=True)
    accepting.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        accepting.join(10)


def _body_size(stream) -> int | None:
    size = 0
    while (line := stream.readline()) not in (b"\r\n", b""):
        name, _, value = line.partition(b":")
        size = int(value) if name.lower() == b"content-length" else size
    return size if line else None


def answer(content: bytes, status: str = "200 OK") -> bytes:
    return f"HTTP/1.1 {status}\r\ncontent-length: {len(content)}\r\nx-more: 1\r\n\r\n".encode() + content


X, Y = np.ones((3, 2), np.float32), np.array([[1, 2], [3, 4], [5, -8]], np.float32)
ASKED = question("x", ROUTE, X, Y, 1e-3)


def test_a_question_is_a_whole_request_and_knows_the_right_answer() -> None:
    head, _, body = ASKED.request.partition(b"\r\n\r\n")
    headers = dict(line.split(b": ") for line in head.split(b"\r\n")[1:])
    length = int(headers[b"Inference-Header-Content-Length"])
    assert int(headers[b"Content-Length"]) == len(body) == length + X.nbytes
    [tensor] = json.loads(body[:length])["inputs"]
    assert (tensor["name"], tensor["shape"], tensor["datatype"]) == ("x", [3, 2], "FP32")
    assert ASKED.right(b"{}" + Y.tobytes())
    assert ASKED.right((Y + 0.007).tobytes()), "0.001 of the largest number, which is 8"
    assert not ASKED.right((Y + 0.009).tobytes())
    assert not ASKED.right(np.full_like(Y, np.nan).tobytes())
    assert not ASKED.right(Y.tobytes()[:-4])
    assert not ASKED.right(b"")


def test_wrong_answers_and_failures_are_counted_as_what_they_are() -> None:
    right, wrong = answer(b"{}" + Y.tobytes()), answer(b"{}" + (-Y).tobytes())
    with serving(right, wrong, answer(b'{"error": "busy"}', "429 Too Many Requests"), right) as port:
        client = Client([ASKED], port)
        told = client.run(2, 0.4)
    counts = client.counts
    assert counts["answered"] > 0
    assert counts["rows"] == 3 * counts["answered"]
    assert abs(counts["answered"] - 2 * counts["wrong"]) <= 4
    assert abs(counts["failed"] - counts["wrong"]) <= 2
    assert len(told["latencies"]) == counts["answered"]


def test_a_service_that_is_gone_is_a_failure() -> None:
    with serving() as port:
        pass
    client = Client([ASKED], port)
    client.run(1, 0.05)
    assert client.counts["failed"] > 0
    assert client.counts["answered"] == client.counts["wrong"] == 0


def test_a_client_is_a_process_that_tells_what_it_saw(tmp_path) -> None:
    write_questions(tmp_path / "asked.npz", "x", [(X, Y), (X[:1], Y[:1])], 1e-3)
    asked = read_questions(tmp_path / "asked.npz", ROUTE)
    assert asked[0].request == ASKED.request
    assert [one.rows for one in asked] == [3, 1]
    with serving(answer(Y.tobytes()), answer(Y[:1].tobytes())) as port:
        command = [sys.executable, "-m", "benchmarks.clients", tmp_path / "asked.npz", port, ROUTE, 1, 0, 0.2]
        done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True, check=True)
    seen = total([json.loads(done.stdout)])
    assert seen.answered > 0
    assert seen.wrong == seen.failed == 0
    assert 0 < seen.p50 <= seen.p99


def test_processes_are_counted_together() -> None:
    one = {
        "answered": [3.0],
        "rows": [6.0],
        "wrong": [1.0],
        "failed": [0.0],
        "seconds": [2.0],
        "latencies": [0.001] * 3,
    }
    other = one | {"seconds": [4.0], "latencies": [0.003] * 3, "wrong": [0.0]}
    seen = total([one, other])
    assert (seen.answered, seen.rows, seen.wrong, seen.failed, seen.p50) == (6, 12, 1, 0, pytest.approx(2))
    assert seen.rows_per_second == 3
    with pytest.raises(SystemExit):
        total([])


# Numbers


def test_errors_are_relative_to_the_largest_and_what_is_no_number_is_infinitely_wrong() -> None:
    assert relative_error(Y + 0.08, Y) == pytest.approx(0.01, rel=1e-3)
    assert relative_error(np.where(Y == 2, np.nan, Y), Y) == float("inf")
    assert relative_error(Y[:1], Y) == float("inf")


def results() -> gpu.Results:
    machine = {"cpu": "c", "cores": 2, "gpu": "A GPU", "system": "s"}
    return gpu.Results("cpu", machine, {"python": "3.12", "torch": "2", "onnxruntime-gpu": "1", "rich": "9"}, "9.12.0")


def test_right_answers_are_timed_and_wrong_ones_told() -> None:
    found = {
        "PyTorch": lambda x: x[:, 0, 0, :4],
        "closed": lambda x: x[:, 0, 0, :4] * (1 + 1e-6),
        "unfolded": lambda x: (time.sleep(0.003), x[:, 0, 0, :4])[1],
        "opened": lambda x: x[:, 0, 0, :4] * 1.01,
        "closed fp16": lambda x: x[:, 0, 0, :4] * np.inf,
        "torch.compile": lambda x: x[:, :, 7],
    }
    seen = results()
    gpu.measure("preact18", 2, found, 0.05, seen)  # type: ignore[arg-type]
    [row] = seen.latency
    assert set(row["median_ms"]) == {"PyTorch", "closed", "unfolded"}
    assert [text.split(":")[0] for text in seen.wrong] == ["preact18 at 2, opened", "preact18 at 2, torch.compile"]
    assert [text.split(":")[0] for text in seen.told] == ["preact18 at 2, closed fp16"]
    assert gpu.ratios(row)["unfolded"] == row["median_ms"]["unfolded"] / row["median_ms"]["closed"]
    assert set(gpu.ratios(row)) == {"PyTorch", "unfolded"}
    assert gpu.ratios({"median_ms": {"PyTorch": 1.0}}) == {}


@pytest.mark.parametrize("kind", gpu_facts.KINDS)
def test_what_convolutions_amount_to_in_float64_is_what_the_runtime_computes(kind) -> None:
    x = np.random.default_rng(0).standard_normal((2, 4, 5, 5)).astype(np.float32)
    for half, error in ((False, 1e-5), (True, 1e-2)):
        model = convolutions(3, 4, 5, half=half, **gpu_facts.KINDS[kind])
        [found] = open_session(model.SerializeToString(), provider="cpu").run(None, {"x": x})
        truth = gpu_facts.in_float64(model, x, "cpu")
        assert 1e-9 < relative_error(found, truth) < error


def test_rounds_fill_the_time_within_limits() -> None:
    assert gpu.rounds_within(10, 0.5) == 20
    assert gpu.rounds_within(0, 0.5) == 5
    assert gpu.rounds_within(10, 1e-6) == 100


def test_the_best_rate_is_over_sizes_and_threads() -> None:
    rates = best_rate(lambda x: time.sleep(0.001), np.zeros((3, 2), np.float32), 0.01)  # type: ignore[arg-type]
    assert set(rates) >= {"1 rows, 1 thread", "64 rows, 2 threads"}
    assert all(rate > 0 for rate in rates.values())
    assert len(seconds_of(lambda x: x, X, 0)) == 3


# Tables

SEEN = Seen(seconds=2.0, answered=100, rows=100, wrong=0, failed=1, p50=1.5, p99=4.0)
SERVING = Serving("a net", 200.0, "64 rows, 2 threads", 1.0, 2.0, {1: SEEN, 64: SEEN}, SEEN, 0.0, {"cudnn": "9.12.0"})


def test_the_service_is_a_share_of_the_best_rate() -> None:
    assert SERVING.share(64) == 0.25


TESTS = """passed\ttest_certificate_holds_on_the_device[cnn-fp32]@cnn
failed\ttest_certificate_holds_on_the_device[mlp-fp32]
passed\ttest_certificate_holds_on_the_device[cnn-tf32]@cnn
not run\ttest_certificate_holds_on_the_device[mlp-tf32]
skipped\ttest_metrics
passed\ttest_more
"""


def summarised(folder: Path, tests: str | None, benchmark: gpu.Results | None) -> tuple[int, str]:
    if tests is not None:
        (folder / "tests.txt").write_text(tests)
    if benchmark is not None:
        (folder / "gpu.json").write_text(gpu.as_json(benchmark))
    command = [sys.executable, "-m", "benchmarks.gpu_summary", str(folder / "tests.txt"), str(folder / "gpu.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    return done.returncode, done.stdout


def test_the_summary_counts_by_precision_and_fails_where_something_was_wrong(tmp_path) -> None:
    found = results()
    compiled = {"closed": 8.0, "closed fp16, NHWC": 5.0, "torch.compile fp16": 4.0}
    found.latency = [
        {"network": network, "batch": batch, "median_ms": times, "errors": {}}
        for network, batch, times in (
            ("resnet50", 8, {"closed": 2.0, "unfolded": 2.5, "PyTorch": 4.0}),
            ("repvgg_a0", 8, {"closed": 2.0, "unfolded": 3.0}),
            ("repvgg_a0", 64, {"closed": 20.0, "unfolded": 26.0}),
            ("resnet50", 64, compiled),
        )
    ]
    found.equivalence = [
        {"network": name, "precision": "fp16", "equivalent": name != "vgg"} for name in ("resnet50", "vgg")
    ]
    found.serving, found.told = SERVING, ["resnet50, torch.compile: no compiler"]
    code, text = summarised(tmp_path, TESTS.replace("failed", "passed"), found)
    assert code == 0
    lines = {line[: gpu_summary.WIDTH].strip(): line[gpu_summary.WIDTH :] for line in text.splitlines()}
    assert lines["equivalence in fp32"] == "2 of 2 architectures"
    assert lines["equivalence in tf32"] == "1 of 2 architectures, 1 not run"
    assert lines["other tests"] == "1 passed, 1 skipped"
    assert lines["resnet50, 8 rows"] == "unfolded 1.25, PyTorch 2.00 of closed"
    assert lines["served, 64 connections"] == "0.250 of R*, p50 1.50 ms, p99 4.00 ms, 0 wrong, 1 failed"
    assert lines["served, 16 mixed connections"] == lines["served, 64 connections"]
    assert lines["networks in fp16"] == "1 of 2 equivalent"
    assert lines["cold shapes while serving"] == "0"
    assert (lines["cuDNN"], lines["machine"]) == ("9.12.0", "A GPU")
    assert lines["versions"] == "python 3.12, torch 2, onnxruntime-gpu 1"
    assert lines["not measured"] == "resnet50, torch.compile: no compiler"
    goals = {line.removeprefix("goal: "): told for line, told in lines.items() if line.startswith("goal: ")}
    assert goals == {
        "never slower than unfolded": "reached: 1.25 (resnet50, 8 rows)",
        "repvgg_a0 1.4 times": "NOT reached: 1.30 (repvgg_a0, 64 rows)",
        "mobileone_s0 1.4 times": "not measured",
        "fastvit_t8 1.4 times": "not measured",
        "fp16 0.9 of compiled": "NOT reached: 0.80 (resnet50, 64 rows)",
        "served 0.9 of R*": "NOT reached: 0.25",
        "mixed p99 < 3 p50": "reached: 2.67",
    }
    assert set(gpu_summary.BRANCHED) < set(FIRST) < set(NETWORKS)

    code, text = summarised(tmp_path, TESTS, None)
    assert code == 1
    assert "test_certificate_holds_on_the_device[mlp-fp32]" in text
    found.wrong = ["resnet50 at 8, closed: 0.5"]
    assert summarised(tmp_path, TESTS.replace("failed", "passed"), found)[0] == 1


def test_missing_reports_are_no_success(tmp_path) -> None:
    code, text = summarised(tmp_path, None, None)
    assert code == 1
    assert "no report" in text
    assert "no results" in text


INTERPRETER = """#!/bin/sh
echo "ran $*"
case "$*" in *benchmarks.gpu\\ *) echo measuring; exec sleep 60;; esac
"""
"""In place of Python for scripts/gpu-check: it says what it should run, and the networks take long."""


def test_the_script_tells_each_step_at_once_and_ends_with_a_table_also_if_it_is_stopped(tmp_path) -> None:
    python, out = tmp_path / "python", tmp_path / "out"
    python.write_text(INTERPRETER)
    python.chmod(0o755)
    environment = {**os.environ, "PYTHON": str(python), "OUT": str(out)}
    command = [str(ROOT / "scripts" / "gpu-check"), "--dry-run"]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as done:
        assert done.stdout is not None
        said = list(takewhile(lambda line: line != "measuring\n", done.stdout))
        done.terminate()
        said += done.stdout.readlines()
    assert [line.split()[1] for line in said if ", at most" in line] == ["machine,", "loads,", "networks,"]
    assert f"ran -m benchmarks.gpu_summary {out}/tests.txt {out}/benchmark.json\n" in said
    told = (out / "report.txt").read_text().splitlines(keepends=True)
    assert sorted(line.split()[2] for line in told if line.startswith("ran ")) == [
        "benchmarks.gpu",
        "benchmarks.gpu_facts",
        "benchmarks.gpu_facts",
    ]
    assert set(told) <= {*said, "measuring\n"}


def test_what_was_measured_is_shown_though_the_rest_is_missing() -> None:
    console = Console(width=150, record=True, file=io.StringIO())
    found = results()
    found.latency = [{"network": "repvgg_a0", "batch": 1, "median_ms": {"closed": 2.0, "unfolded": 3.0}}]
    found.wrong = ["something"]
    gpu.tell(found, console)
    text = console.export_text()
    assert "RepVGG-A0, 3×224×224" in text
    assert "1.50" in text
    assert "WRONG: something" in text
