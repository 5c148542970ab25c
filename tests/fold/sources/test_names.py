"""Names from a file, as a fold, an inspection and a service write them: nothing obeys them."""

import html
import json
import re
import shlex
from pathlib import Path

import numpy as np
import onnx
import pytest
from google.protobuf import text_format
from onnx import helper
from tritonclient.grpc import model_config_pb2

from support.commands import bnfold
from support.onnxfiles import info, network, rename, write
from support.service import serving

HOSTILE = "\"'<script>alert(1)</script>\x1b[31m\n\r\u202e{{7*7}}&amp;$(id)`"
OBEYED = set("\x1b\r\u202e")
"""What a terminal or a browser obeys wherever it stands."""


def hostile() -> onnx.ModelProto:
    """Two inputs, two outputs, a BatchNorm that is folded, and one that is kept because it reads an output."""
    model = network(
        helper.make_node("Add", ["y", "a"], ["s"]),
        helper.make_node("BatchNormalization", ["s", "gamma", "beta", "mean", "var"], ["z"], name="kept"),
        outputs=[info("s", ("n", 4, 4, 3)), info("z", ("n", 4, 4, 3))],
    )
    model.graph.input.append(info("a", ("n", 4, 4, 3)))
    for name in ("x", "a", "y", "s", "z", "w", "gamma", "beta", "mean", "var"):
        rename(model, name, HOSTILE + name)
    for node in model.graph.node:
        node.name = HOSTILE + node.op_type + node.name
    return model


@pytest.fixture(scope="module")
def folded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of the work, and what the fold printed."""
    folder = tmp_path_factory.mktemp("names")
    path = write(hostile(), folder)
    (folder / "labels.txt").write_text(
        "\n".join(f"{HOSTILE.replace(chr(10), '').replace(chr(13), '')}{i}" for i in "abc")
    )
    done = bnfold("fold", path, "--out", folder / "r", "--samples", 2, "--labels", folder / "labels.txt", "--all")
    assert done.returncode == 0, done.stderr
    return folder, done.stderr


def test_a_terminal_obeys_no_name(folded) -> None:
    folder, printed = folded
    inspected = bnfold("inspect", folder / "net.onnx", "--html", folder / "page.html", "--all")
    verified = bnfold("verify", folder / "r" / "net", "--samples", 2)
    for done in (inspected, verified):
        assert done.returncode == 0, done.stderr
    for text in (printed, inspected.stderr, verified.stderr):
        assert not OBEYED & set(text)


def test_pages_hold_names_as_text(folded) -> None:
    folder, _ = folded
    assert bnfold("inspect", folder / "net.onnx", "--html", folder / "page.html").returncode == 0
    for file in (folder / "page.html", folder / "r" / "net" / "1" / "report.html"):
        page = file.read_bytes().decode()
        assert not OBEYED & set(page)
        assert "<script>alert" not in page
        assert r"&lt;script&gt;alert(1)&lt;/script&gt;\x1b[31m" in page


def test_the_configuration_of_triton_shows_no_directions(folded) -> None:
    written = (folded[0] / "r" / "net" / "config.pbtxt").read_bytes().decode()
    assert not OBEYED & set(written)
    config = text_format.Parse(written, model_config_pb2.ModelConfig())
    assert {one.name for one in config.input} == {HOSTILE + "x", HOSTILE + "a"}


def test_a_service_writes_names_as_text(folded) -> None:
    rows = {"x": np.zeros((1, 3, 6, 5)), "a": np.ones((1, 4, 4, 3))}
    inputs = [
        {"name": HOSTILE + name, "datatype": "FP32", "shape": list(row.shape), "data": row.ravel().tolist()}
        for name, row in rows.items()
    ]
    with serving.start(folded[0] / "r") as service:
        # 1. Pages: text without control characters, and commands that a shell reads as data.
        for path in ("/", "/docs", "/models/net/versions/1/report"):
            page = service.get(path).text
            assert not OBEYED & set(page), path
            assert "<script>alert" not in page
        for path in ("/", "/docs"):
            examples = [html.unescape(one) for one in re.findall(r"<pre>(.*?)</pre>", service.get(path).text, re.S)]
            commands = [shlex.split(one) for one in examples if ":predict" in one]
            assert len(commands) == (2 if path == "/docs" else 1)
            for command in commands:
                assert list(json.loads(command[-1])["instances"][0]) == [HOSTILE + "x", HOSTILE + "a"]
        # 2. Text for machines.
        assert not OBEYED & set(service.get("/metrics").text)
        assert [one["name"] for one in service.get("/v2/models/net").json()["outputs"]] == [
            HOSTILE + "s",
            HOSTILE + "z",
        ]
        assert service.get("/v2/models/net/config").json()["input"][0]["name"] == HOSTILE + "x"
        # 3. Answers and errors.
        answer = service.post("/v2/models/net/infer", json={"inputs": inputs})
        assert [one["name"] for one in answer.json()["outputs"]] == [HOSTILE + "s", HOSTILE + "z"]
        wrong = service.post("/v2/models/net/infer", json={"inputs": [{**inputs[0], "name": HOSTILE}, inputs[1]]})
        assert wrong.status_code == 400
        assert not OBEYED & set(wrong.json()["error"])
        assert service.post("/v2/models/net/equivalence", json={"samples": 2}).json()["equivalent"] is True
    # 4. Logs.
    assert not OBEYED & set("".join(service.lines))
