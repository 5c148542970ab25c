"""The proof over HTTP, for the graph that serves; the metrics and the page that show what came of it."""

import json
import os
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.http.routes.proofs import MAX_WAITING
from support.service.serving import HELD, PATIENCE, held

PROVE = "/v2/models/net/equivalence"
RANDOM = np.random.default_rng(5)


def test_an_empty_body_is_enough(service: Any) -> None:
    verdict = service.post(PROVE).json()
    assert (verdict["model_name"], verdict["model_version"]) == ("net", "1")
    assert verdict["equivalent"] is True
    assert (verdict["samples"], verdict["seed"]) == (16, 0)
    assert (verdict["provider"], verdict["precision"]) == ("cpu", "fp32")
    (output,) = verdict["outputs"]
    assert output["name"] == "scores"
    assert 0 < output["folded_error"] <= output["limit"]
    assert service.post("/v2/models/net/versions/1/equivalence", json={}).json()["equivalent"] is True
    assert service.post("/v2/models/net/versions/3/equivalence").status_code == 404


def test_samples_and_seed(service: Any) -> None:
    one, same, other = (service.post(PROVE, json={"samples": 200, "seed": s}).json() for s in (3, 3, 4))
    assert (one["samples"], one["seed"]) == (200, 3)
    assert one["outputs"] == same["outputs"]
    assert one["outputs"] != other["outputs"]


def test_the_callers_own_inputs_as_json_and_as_binary(service: Any) -> None:
    image = RANDOM.normal(size=(70, 1, 8, 8)).astype(np.float32)
    tensor = {"name": "image", "shape": list(image.shape), "datatype": "FP32"}
    plain = service.post(PROVE, json={"inputs": [{**tensor, "data": image.ravel().astype(float).tolist()}]}).json()
    header = json.dumps({"inputs": [{**tensor, "parameters": {"binary_data_size": image.nbytes}}]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(header))}
    binary = service.post(PROVE, content=header + image.tobytes(), headers=headers).json()
    assert (plain["equivalent"], plain["samples"], plain["seed"]) == (True, 70, None)
    assert binary["outputs"] == plain["outputs"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"samples": 0}, "samples is 0; expected a whole number from 1 to 256"),
        ({"samples": 257}, "samples is 257; expected a whole number from 1 to 256"),
        ({"samples": "8"}, "samples is '8'"),
        ({"seed": -1}, "seed is -1; expected a whole number from 0"),
        ({"seed": True}, "seed is True"),
        ({"sample": 8}, "'sample' is not known here; expected {\"samples\": n"),
        ({"parts": ["algebra", "decision"]}, "parts is ['algebra', 'decision']; expected a list of 'algebra', 'round"),
        ({"parts": "algebra"}, "parts is 'algebra'; expected a list of"),
        ({"search_seconds": 0}, "search_seconds is 0; expected a number above 0, at most 300"),
        ({"search_seconds": 301}, "search_seconds is 301; expected a number above 0, at most 300"),
        ({"search_seconds": True}, "search_seconds is True"),
        ([], "the body is a JSON list; expected"),
        ({"inputs": [{"name": "image", "shape": [1], "datatype": "FP32", "data": [1]}]}, "[-1, 1, 8, 8] is expected"),
    ],
)
def test_refusals_name_what_came_and_what_was_expected(service: Any, body: Any, message: str) -> None:
    answer = service.post(PROVE, json=body)
    assert (answer.status_code, message in answer.json()["error"]) == (400, True), answer.text


def test_what_cannot_be_drawn_must_be_given(service: Any) -> None:
    for answer in (service.post("/v2/models/text/equivalence", json={}), service.get("/v2/models/text/layers")):
        assert answer.status_code == 400, answer.text
        assert "no values of type BYTES can be drawn" in answer.json()["error"]


def test_another_model_than_the_reference_is_found_out(
    tmp_path: Path, start: Callable[..., Any], make_net: Callable[..., None]
) -> None:
    make_net(tmp_path, "net", wrong=True)
    with start(tmp_path) as service:
        assert "bnfold_equivalent{" not in service.get("/metrics").text, "nothing is said before the first check"
        assert "checked when it was folded" in service.get("/").text
        verdict = service.post(PROVE).json()
        assert verdict["equivalent"] is False
        assert "NOT equivalent" in verdict["message"]
        labels = 'model="net",version="1"'
        assert service.metric(f"bnfold_equivalent{{{labels}}}") == 0
        error, limit = (service.metric(f'bnfold_equivalence_{key}{{model="net",output="scores",version="1"}}')
                        for key in ("error", "limit"))  # fmt: skip
        assert error == verdict["outputs"][0]["folded_error"] > limit == verdict["outputs"][0]["limit"]
        assert service.metric(f"bnfold_equivalence_timestamp_seconds{{{labels}}}") > 1.7e9
        page = service.get("/").text
        assert "NOT equivalent" in page
        assert "checked when it was folded" not in page


def test_checks_run_one_at_a_time_and_a_few_may_wait(repository: Path, start: Callable[..., Any]) -> None:
    """Many at once: each is either proven or told to come back, and predictions go on meanwhile."""
    with start(repository) as service, ThreadPoolExecutor(16) as pool:
        calls = [pool.submit(service.post, PROVE, json={"samples": 256, "seed": seed}) for seed in range(16)]
        row = {"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}
        for _ in range(20):
            assert service.post("/v2/models/free/infer", json={"inputs": [row]}).status_code == 200
        answers = [call.result() for call in calls]
        proven = [answer for answer in answers if answer.status_code == 200]
        refused = [answer for answer in answers if answer.status_code == 429]
        assert len(proven) + len(refused) == 16
        assert len(proven) >= MAX_WAITING
        assert all(answer.json()["equivalent"] for answer in proven)
        assert all(answer.headers["retry-after"] == "1" for answer in refused)


@pytest.fixture
def without_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that are started from now on have no torch."""
    (tmp_path / "hidden").mkdir()
    text = "raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')\n"
    (tmp_path / "hidden" / "torch.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "hidden"), prepend=os.pathsep)


@pytest.fixture(scope="module")
def of_torch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with `cnn`, folded from a PyTorch checkpoint: its reference is a torch program."""
    import torch  # noqa: PLC0415  # as below

    from fold.convert import Target, convert  # noqa: PLC0415  # what it imports no other test here needs
    from fold.sources.source import Source  # noqa: PLC0415  # what it imports no other test here needs
    from support.folding import architecture, randomise  # noqa: PLC0415

    folder = tmp_path_factory.mktemp("torch")
    torch.save(randomise(architecture("cnn"), seed=3).state_dict(), folder / "cnn.pt")
    source = Source(folder / "cnn.pt", "models.cnn:cnn", (), ["1,8,8"])
    assert convert(source, Target(folder / "repository", "cnn"), provider="cpu").path is not None
    return folder / "repository"


def test_without_torch_a_torch_reference_is_501_and_everything_else_works(
    of_torch: Path, start_process: Callable[..., Any], without_torch: None
) -> None:
    """Verified by its canary, it serves; only proofs and shadow checks need torch, and say so."""
    with start_process(of_torch, shadow=1) as service:
        assert service.post("/v2/repository/index").json()[0]["state"] == "READY"
        image = {"name": "x", "shape": [1, 1, 8, 8], "datatype": "FP32", "data": [0.5] * 64}
        assert service.post("/v2/models/cnn/infer", json={"inputs": [image]}).status_code == 200
        for body in ({}, {"parts": ["algebra", "search"]}):
            answer = service.post("/v2/models/cnn/equivalence", json=body)
            assert answer.status_code == 501
            assert answer.json()["error"] == (
                "model cnn/1 is proven against reference.pt2, and torch is not installed here; "
                "install bnfold with torch to check equivalence"
            )
        end = time.monotonic() + PATIENCE
        while "bnfold_shadow_rows_total{" in service.get("/metrics").text:
            assert time.monotonic() < end
        assert service.metric('bnfold_shadow_share{model="cnn",version="1"}') == 0
    (line,) = service.said
    assert (
        line == "bnfold: not comparing cnn/1 with its reference: its reference needs torch, which is not installed here"
    )


def test_with_torch_the_same_model_is_proven_and_compared(of_torch: Path, start: Callable[..., Any]) -> None:
    image = {"name": "x", "shape": [1, 1, 8, 8], "datatype": "FP32", "data": [0.5] * 64}
    with start(of_torch, shadow=1) as service:
        assert service.post("/v2/models/cnn/equivalence").json()["equivalent"] is True
        end = time.monotonic() + PATIENCE
        while service.metric('bnfold_shadow_rows_total{model="cnn",version="1"}') < 1:
            assert service.post("/v2/models/cnn/infer", json={"inputs": [image]}).status_code == 200
            assert time.monotonic() < end, service.lines
        assert service.metric('bnfold_shadow_disagreements_total{kind="error",model="cnn",version="1"}') == 0


def test_without_torch_an_onnx_reference_is_proven_but_not_searched(
    folded: Path, start_process: Callable[..., Any], without_torch: None
) -> None:
    with start_process(folded) as service:
        assert service.post(PROVE).json()["equivalent"] is True
        answer = service.post(PROVE, json={"parts": ["search"]})
        assert (answer.status_code, "torch is not installed here" in answer.json()["error"]) == (501, True)


def test_algebra_rounding_and_search_on_request(folded: Path, start: Callable[..., Any]) -> None:
    image = RANDOM.normal(size=(5, 1, 8, 8)).astype(np.float32)
    tensor = {"name": "image", "shape": list(image.shape), "datatype": "FP32"}
    with start(folded) as service:
        assert not {"algebra", "rounding", "search"} & service.post(PROVE).json().keys()
        body = {"samples": 4, "parts": ["algebra", "rounding", "search"], "search_seconds": 0.5}
        answer = service.post(PROVE, json=body)
        assert answer.status_code == 200, answer.text
        verdict = answer.json()
        assert verdict["equivalent"] is True
        assert verdict["algebra"]["holds"] is True
        assert verdict["rounding"]["holds"] is True
        assert verdict["rounding"]["weights"] >= 3
        assert "scores" in str(verdict["search"]["outputs"])
        assert verdict["located"] is None

        own = {"inputs": [{**tensor, "data": image.ravel().tolist()}], "parts": ["algebra"]}
        plain = service.post(PROVE, json=own).json()
        assert "given" in [family["name"] for family in plain["algebra"]["families"]]
        header = {"inputs": [{**tensor, "parameters": {"binary_data_size": image.nbytes}}], "parts": ["algebra"]}
        text = json.dumps(header).encode()
        headers = {"Inference-Header-Content-Length": str(len(text))}
        binary = service.post(PROVE, content=text + image.tobytes(), headers=headers).json()
        assert binary["algebra"] == plain["algebra"]
        assert "algebra holds" in service.get("/").text


def test_a_part_that_fails_makes_the_whole_not_equivalent(
    tmp_path: Path, start: Callable[..., Any], make_net: Callable[..., None]
) -> None:
    """Right to rounding, but not the graph that folding gives: made by hand, its weights lie under other names."""
    make_net(tmp_path, "net")
    with start(tmp_path) as service:
        assert service.post(PROVE).json()["equivalent"] is True
        verdict = service.post(PROVE, json={"parts": ["rounding"]}).json()
        assert (verdict["equivalent"], verdict["rounding"]["holds"]) == (False, False)
        assert verdict["message"].startswith("NOT equivalent: rounding does not hold; ")
        assert service.metric('bnfold_equivalent{model="net",version="1"}') == 0
        assert service.post(PROVE).json()["equivalent"] is True
        page = service.get("/").text
        assert ("rounding does NOT hold" in page, ">NOT equivalent</span>" in page) == (True, True), "it is not hidden"


PROVE_SLOW = "/v2/models/slow/equivalence"
HELD_ROWS = {"inputs": [{"name": "x", "shape": [20, 1], "datatype": "FP32", "data": [HELD] * 20}]}
"""To be checked one by one: the first run on them is held."""


def test_a_check_that_takes_too_long_is_504_and_ends(
    tmp_path: Path, start: Callable[..., Any], make_slow: Callable[..., None]
) -> None:
    make_slow(tmp_path)
    with start(tmp_path, equivalence_seconds=2, max_batch_size=1) as service, held() as hold:
        answer = service.post(PROVE_SLOW, json=HELD_ROWS)
        assert answer.status_code == 504
        assert answer.json()["error"] == ("model slow/1: not proven within 2 seconds; ask for fewer samples or parts")
        assert service.metric('bnfold_errors_total{kind="overdue",model="slow",version="1"}') == 1
        hold.release()
        end = time.monotonic() + PATIENCE
        while service.post(PROVE_SLOW, json={"samples": 1}).status_code != 200:  # may be overdue on a slow machine
            assert time.monotonic() < end, "the thread is not free again"
        assert hold.runs <= 1, "it ended at the next batch"


@pytest.fixture
def endless(tmp_path: Path) -> Path:
    """A repository with `net`, whose Loop doubles the largest value of `x` and adds 1 until it is large: never if that
    is -1."""
    from onnx import TensorProto, helper, numpy_helper  # noqa: PLC0415  # what they import few tests here need

    from fold.convert import Target, convert  # noqa: PLC0415  # as above
    from fold.sources.source import Source  # noqa: PLC0415  # as above
    from support.onnxfiles import info, network, write  # noqa: PLC0415  # as above

    body = helper.make_graph(
        [
            helper.make_node("Add", ["a", "a"], ["twice"]),
            helper.make_node("Add", ["twice", "one"], ["b"]),
            helper.make_node("Abs", ["b"], ["size"]),
            helper.make_node("Less", ["size", "hundred"], ["on"]),
        ],
        "body",
        [info("i", (), TensorProto.INT64), info("before", (), TensorProto.BOOL), info("a", ())],
        [info("on", (), TensorProto.BOOL), info("b", ())],
    )
    model = network(
        helper.make_node("ReduceMax", ["x"], ["largest"], keepdims=0),
        helper.make_node("Loop", ["", "", "largest"], ["end"], name="loop", body=body),
        helper.make_node("Mul", ["end", "zero"], ["nothing"]),
        helper.make_node("Add", ["y", "nothing"], ["z"]),
        outputs=[info("z", ("n", 4, 4, 3))],
    )
    numbers = {"zero": 0, "one": 1, "hundred": 100}
    model.graph.initializer.extend(numpy_helper.from_array(np.float32(n), name) for name, n in numbers.items())
    target = Target(tmp_path / "repository", "net")
    assert convert(Source(write(model, tmp_path)), target, provider="cpu").path is not None
    return tmp_path / "repository"


def test_a_check_of_a_loop_that_never_ends_is_504_and_leaves_others(endless: Path, start: Callable[..., Any]) -> None:
    tensor = {"name": "x", "shape": [1, 3, 6, 5], "datatype": "FP32", "data": [-1.0] * 90}
    with start(endless, equivalence_seconds=2) as service:
        answer = service.post(PROVE, json={"inputs": [tensor]})
        assert answer.status_code == 504
        assert answer.json()["error"] == "model net/1: not proven within 2 seconds; ask for fewer samples or parts"
        end = time.monotonic() + PATIENCE
        while service.post(PROVE, json={"samples": 1}).status_code != 200:  # may be overdue on a slow machine
            assert time.monotonic() < end, "the thread is not free again"
        assert not [line for line in service.lines if "failed" in line]


def test_a_check_ends_when_its_client_goes(
    tmp_path: Path, start: Callable[..., Any], make_slow: Callable[..., None]
) -> None:
    make_slow(tmp_path)
    body = json.dumps(HELD_ROWS).encode()
    head = f"POST {PROVE_SLOW} HTTP/1.1\r\nHost: h\r\nContent-Length: {len(body)}\r\n\r\n"
    gone = 'bnfold_errors_total{kind="client_gone",model="slow",version="1"} 1.0'
    with start(tmp_path, max_batch_size=1) as service, held() as hold:
        with socket.create_connection(("127.0.0.1", service.port)) as connection:
            connection.sendall(head.encode() + body)
            assert hold.begun.wait(PATIENCE)
        end = time.monotonic() + PATIENCE
        while gone not in service.get("/metrics").text:
            assert time.monotonic() < end, "nobody noticed"
        hold.release()
        assert service.post(PROVE_SLOW, json={"samples": 1}).status_code == 200, "the thread is free again"
        assert hold.runs == 1, "it ended at the next batch"


def test_a_reference_that_fails_is_an_answer_not_an_end(
    tmp_path: Path, start: Callable[..., Any], make_net: Callable[..., None]
) -> None:
    make_net(tmp_path, "net")
    with start(tmp_path) as service:
        (tmp_path / "net" / "1" / "unfolded.onnx").write_bytes(b"no graph")
        for _ in range(2):
            answer = service.post(PROVE)
            assert (answer.status_code, "error" in answer.json()) == (500, True)
        image = {"name": "image", "shape": [1, 1, 8, 8], "datatype": "FP32", "data": [0] * 64}
        assert service.post("/v2/models/net/infer", json={"inputs": [image]}).status_code == 200


@pytest.mark.usefixtures("wrong_relu")
def test_a_reference_in_doubt_proves_nothing(folded: Path, start: Callable[..., Any]) -> None:
    with start(folded) as service:
        for asked in ({}, {"parts": ["algebra", "rounding"]}):
            verdict = service.post(PROVE, json={"samples": 4, **asked}).json()
            assert verdict["equivalent"] is False
            assert verdict["message"].startswith("NOT proven: the reference is in doubt: output 'scores' of the unfold")
            (output,) = verdict["outputs"]
            assert output["unfolded_error"] > 100 * output["unfolded_limit"]
            assert output["folded_error"] < output["limit"], "C's own limit would accept it"
            assert verdict["located"]["layer"].endswith("(Relu)")
            assert f"; the first node where they part is {verdict['located']['layer']}; " in verdict["message"]
