"""Proofs that are watched: server-sent events, and the checks since the model was loaded."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from service.repository.model import CHECKS
from support.service.serving import HELD, PATIENCE, held

PROVE = "/v2/models/net/equivalence"
EVENTS = {"Accept": "text/event-stream"}


def events(text: str) -> list[tuple[str, Any]]:
    found = []
    for block in text.split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.splitlines() if line.startswith(("event", "data")))
        if lines:
            found.append((lines["event"], json.loads(lines["data"])))
    return found


def test_steps_and_parts_come_before_the_verdict(folded: Path, start: Callable[..., Any]) -> None:
    body = {"samples": 4, "parts": ["algebra", "rounding", "search"], "search_seconds": 60}
    with start(folded) as service:
        answer = service.post(PROVE, json=body, headers=EVENTS)
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        told = events(answer.text)
        names = [name for name, _ in told]
        assert names[0] == "step"
        assert names[-1] == "verdict"
        assert "search" in names
        part, *others = (data for name, data in told if name == "part")
        assert names.index("part") < names.index("search")
        verdict = told[-1][1]
        assert verdict["equivalent"] is True
        assert (part["outputs"], part["decisions"]) == (verdict["outputs"], verdict["decisions"])
        assert others == [{name: verdict[name]} for name in ("algebra", "search", "rounding")]
        assert told.index(("part", others[0])) < names.index("search"), "A is told before E begins"
        steps = [data["text"] for name, data in told if name == "step"]
        assert steps[0].startswith("parts C and D")
        assert any(step.startswith("part A") for step in steps)
        assert any(step.startswith("part B") for step in steps)

        made = service.get(PROVE).json()
        assert made["published"]["verdict"]["algebra"]["holds"] is True
        assert [each["verdict"] for each in made["checks"]] == [verdict]
        service.post(PROVE, json={"samples": 2})
        assert [each["verdict"]["samples"] for each in service.get(PROVE).json()["checks"]] == [2, 4]
        counted = 'bnfold_requests_total{model="net",route="equivalence",status="2xx",version="2"}'
        assert service.metric(counted) == 2


def test_the_checks_that_are_kept_are_bounded(service: Any) -> None:
    path = "/v2/models/single/equivalence"
    with httpx.Client(timeout=PATIENCE) as client:
        for seed in range(CHECKS + 2):
            assert client.post(service.url + path, json={"samples": 1, "seed": seed}).status_code == 200
    seeds = [each["verdict"]["seed"] for each in service.get(path).json()["checks"]]
    assert seeds == list(range(CHECKS + 1, 1, -1))
    assert service.get("/v2/models/broken/equivalence").status_code == 503


def test_a_refusal_is_json_and_a_later_error_is_an_event(
    tmp_path: Path, start: Callable[..., Any], make_slow: Callable[..., None]
) -> None:
    make_slow(tmp_path)
    path = "/v2/models/slow/equivalence"
    rows = {"inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [HELD]}]}
    with start(tmp_path, equivalence_seconds=1) as service, held():
        refused = service.post(path, json={"samples": 0}, headers=EVENTS)
        assert (refused.status_code, refused.headers["content-type"]) == (400, "application/json")
        last = events(service.post(path, json=rows, headers=EVENTS).text)[-1]
        message = "model slow/1: not proven within 1 seconds; ask for fewer samples or parts"
        assert last == ("error", {"error": message, "status": 504})
        assert service.metric('bnfold_errors_total{kind="overdue",model="slow",version="1"}') == 1
        assert service.get(path).json()["checks"] == []


def test_a_client_that_leaves_ends_the_check(
    tmp_path: Path, start: Callable[..., Any], make_slow: Callable[..., None]
) -> None:
    make_slow(tmp_path)
    path = "/v2/models/slow/equivalence"
    rows = {"inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [HELD]}]}
    gone = 'bnfold_errors_total{kind="client_gone",model="slow",version="1"} 1.0'
    with start(tmp_path) as service, held() as hold:
        stream = httpx.stream("POST", service.url + path, json=rows, headers=EVENTS, timeout=PATIENCE)
        with stream as answer:
            assert next(answer.iter_lines()) == "event: step"
            hold.begun.wait()
        end = time.monotonic() + PATIENCE
        while gone not in service.get("/metrics").text:
            assert time.monotonic() < end
        hold.release()
        assert service.post(path, json={"samples": 1}).status_code == 200
