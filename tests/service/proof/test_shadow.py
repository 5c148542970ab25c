"""Shadow checks: live answers are compared with the reference in the background, and nobody waits for it."""

import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from fold.proof.decisions import Decision
from fold.proof.run_time import WINDOW, OutputVerdict, Verdict
from service.proof.shadow import ShadowSampler
from support.service.serving import HELD, PATIENCE, held

FROM_THE_COMMAND_LINE = """
import os
from fold.cli import main
main(["serve", os.environ["BNFOLD_REPOSITORY"], "--shadow", "0.001"])
"""
LABELS = 'model="net",version="1"'
INFER = "/v2/models/net/infer"
RANDOM = np.random.default_rng(8)


def image(rows: int = 1) -> dict[str, Any]:
    data = RANDOM.normal(size=(rows, 1, 8, 8)).astype(np.float32)
    tensor = {"name": "image", "shape": list(data.shape), "datatype": "FP32", "data": data.ravel().tolist()}
    return {"inputs": [tensor]}


def until(service: Any, name: str, least: float, send: Callable[[], Any]) -> float:
    """Send until a metric is at least so large."""
    end = time.monotonic() + PATIENCE
    while (value := service.metric(name)) < least:
        assert time.monotonic() < end, service.get("/metrics").text
        send()
    return float(value)


def compares(service: Any, model: str, version: int = 1) -> None:
    """Wait until the reference is loaded."""
    end = time.monotonic() + PATIENCE
    while not service.metric(f'bnfold_shadow_share{{model="{model}",version="{version}"}}'):
        assert time.monotonic() < end, service.lines
        time.sleep(0.02)


def test_answers_are_compared_and_agree(folded: Path, start: Callable[..., Any]) -> None:
    labels = 'model="net",version="2"'
    with start(folded, shadow=1) as service:
        compares(service, "net", 2)
        assert service.metric(f"bnfold_shadow_share{{{labels}}}") == 1
        instances = {"instances": RANDOM.normal(size=(3, 1, 8, 8)).tolist()}
        until(service, f"bnfold_shadow_rows_total{{{labels}}}", 6, lambda: service.post(INFER, json=image(2)))
        rows = service.metric(f"bnfold_shadow_rows_total{{{labels}}}")
        predict = "/v1/models/net:predict"
        until(service, f"bnfold_shadow_rows_total{{{labels}}}", rows + 3, lambda: service.post(predict, json=instances))
        busy = 'bnfold_shadow_drops_total{model="net",reason="busy",version="2"}'
        assert service.metric(busy) > 0, "it rests after each comparison"
        for kind in ("error", "decision"):
            assert service.metric(f'bnfold_shadow_disagreements_total{{kind="{kind}",{labels}}}') == 0
        assert 0 < service.metric(f"bnfold_shadow_error_ratio{{{labels}}}") <= 1
        assert "Shadow check: 100 % of the responses" in service.get("/").text
    assert service.said == [], "nothing is said of answers that agree"


def test_at_most_a_few_rows_of_a_request_are_compared(folded: Path, start: Callable[..., Any]) -> None:
    with start(folded, shadow=1) as service:
        compares(service, "net", 2)
        assert service.post(INFER, json=image(40)).status_code == 200
        assert until(service, 'bnfold_shadow_rows_total{model="net",version="2"}', 1, lambda: time.sleep(0.02)) == 8


def test_another_graph_than_the_reference_is_found_and_told_without_its_tensors(
    tmp_path: Path, start: Callable[..., Any], make_net: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.proof.shadow.LOG_SECONDS", math.inf)  # or a slow machine would be told twice
    monkeypatch.setattr("service.proof.shadow.REST", 0)
    make_net(tmp_path, "net", wrong=True)
    with start(tmp_path, shadow=1) as service:
        wrong = f'bnfold_shadow_disagreements_total{{kind="error",{LABELS}}}'
        until(service, wrong, 3, lambda: service.post(INFER, json=image()))
        assert service.metric(f"bnfold_shadow_error_ratio{{{LABELS}}}") > 100
    (warning,) = service.said
    assert warning.startswith("bnfold: model net/1: answers disagree with the reference: NOT equivalent over 1 samples")
    assert "[" not in warning


def test_without_a_share_nothing_is_compared_and_nothing_is_loaded(service: Any) -> None:
    assert service.post(INFER, json=image()).status_code == 200
    text = service.get("/metrics").text
    assert service.metric(f"bnfold_shadow_share{{{LABELS}}}") == 0
    assert "bnfold_shadow_rows_total{" not in text
    assert "ShadowSampler" not in service.get("/").text


def test_a_slow_reference_delays_no_answer(
    tmp_path: Path, start: Callable[..., Any], make_slow: Callable[..., None]
) -> None:
    """The reference takes minutes for this row, the served graph nothing: all are answered before one is compared."""
    make_slow(tmp_path, quick=True)
    row = {"inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [10_000]}]}
    with start(tmp_path, shadow=1) as service:
        compares(service, "slow")
        for _ in range(20):
            assert service.post("/v2/models/slow/infer", json=row).status_code == 200
        assert service.metric('bnfold_shadow_rows_total{model="slow",version="1"}') == 0
        assert service.metric('bnfold_shadow_drops_total{model="slow",reason="busy",version="1"}') == 18


def test_under_load_comparisons_are_dropped_first(
    tmp_path: Path, start: Callable[..., Any], make_slow: Callable[..., None]
) -> None:
    make_slow(tmp_path)
    rows = [{"inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [x]}]} for x in (HELD, *[0] * 7)]
    with start(tmp_path, shadow=1, max_batch_size=1) as service, ThreadPoolExecutor(8) as pool, held() as hold:
        compares(service, "slow")
        calls = [pool.submit(service.post, "/v2/models/slow/infer", json=rows[0])]
        assert hold.begun.wait(PATIENCE)
        calls += [pool.submit(service.post, "/v2/models/slow/infer", json=row) for row in rows[1:]]
        until(service, 'bnfold_queue_rows{model="slow",version="1"}', 7, lambda: time.sleep(0.02))
        hold.release()
        assert [call.result().status_code for call in calls] == [200] * 8
        assert service.metric('bnfold_shadow_drops_total{model="slow",reason="load",version="1"}') >= 4


def test_a_reference_that_fails_is_counted_and_told_once(
    tmp_path: Path, start: Callable[..., Any], make_net: Callable[..., None]
) -> None:
    """Its rows are of another size than the served graph takes, so that it cannot run at all."""
    make_net(tmp_path, "net", other=True)
    with start(tmp_path, shadow=1) as service:
        failed = 'bnfold_shadow_drops_total{model="net",reason="failed",version="1"}'
        until(service, failed, 3, lambda: service.post(INFER, json=image()))
    (line,) = service.said
    assert "an answer could not be compared: " in line


def verdict(error: float, limit: float, *, flips: int = 0) -> Verdict:
    output = OutputVerdict("y", error <= limit, limit / 4, error, limit, 0.0, 0.0, 1.0, 0, 1, limit)
    return Verdict((output,), (Decision("y", 1, flips, 0, 1.0),), 1, None, "cpu", "fp32", 0.01)


class Proven:
    """As much of a model and of a checker as counting takes."""

    share = 1.0

    def __init__(self, limit: float) -> None:
        self.manifest = self
        self.verdict = {"outputs": [{"name": "y", "limit": limit}]}


def test_a_row_without_rounding_of_its_own_is_judged_with_those_before_it() -> None:
    """One row may be lucky in float32; the folded graph need not be as lucky on the same row."""
    model: Any = Proven(limit=0.0)
    sampler = ShadowSampler(model, model)
    sampler.count(verdict(0.9, 1.0))
    sampler.count(verdict(0.9, 0.5))
    assert sampler.disagreements == {"error": 0, "decision": 0}
    assert sampler.error_ratio == 0.9
    sampler.count(verdict(1.1, 0.5))
    assert sampler.disagreements == {"error": 1, "decision": 0}
    for _ in range(WINDOW):
        sampler.count(verdict(0.1, 0.5))
    sampler.count(verdict(0.9, 0.5))
    assert sampler.disagreements["error"] == 2, "a limit of long ago holds no more"
    assert sampler.rows == WINDOW + 4


def test_the_certificates_own_limit_holds_from_the_first_row_on() -> None:
    model: Any = Proven(limit=2.0)
    sampler = ShadowSampler(model, model)
    sampler.count(verdict(1.0, 0.25))
    assert sampler.disagreements["error"] == 0
    sampler.count(verdict(np.nan, 0.25))
    assert (sampler.disagreements["error"], sampler.error_ratio) == (1, np.inf)


def test_a_flipped_decision_is_a_disagreement_of_its_own() -> None:
    model: Any = Proven(limit=1.0)
    sampler = ShadowSampler(model, model)
    sampler.count(verdict(0.1, 1.0, flips=1))
    assert sampler.disagreements == {"error": 0, "decision": 1}


def test_every_metric_of_shadow_checks_is_there_from_the_start(folded: Path, start_process: Callable[..., Any]) -> None:
    """An alert on a counter's increase needs the counter before the first disagreement."""
    with start_process(folded, code=FROM_THE_COMMAND_LINE) as service:
        compares(service, "net", 2)
        assert service.metric('bnfold_shadow_share{model="net",version="2"}') == 0.001
        families = {family.name: family for family in text_string_to_metric_families(service.get("/metrics").text)}
    assert {s.labels["kind"] for s in families["bnfold_shadow_disagreements"].samples} == {"error", "decision"}
    assert {s.labels["reason"] for s in families["bnfold_shadow_drops"].samples} == {"load", "busy", "proof", "failed"}
    assert all(sample.value == 0 for sample in families["bnfold_shadow_rows"].samples)
