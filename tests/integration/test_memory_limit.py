"""The service under a real limit of memory: a control group, in which the kernel kills what takes more."""

import gzip
import io
import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from support.service import served, serving
from support.service.serving import PATIENCE, ServiceProcess

pytestmark = pytest.mark.integration

LIMIT = 400 << 20
"""Bytes. The service and its models take about half; requests may take a quarter."""
GROUPS = ((Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"), (Path("/sys/fs/cgroup"), "memory.max"))
"""Where memory groups are, and the file of their limit, in versions 1 and 2."""
CLIENTS = 2
"""Of each kind at a time."""


def make_group() -> Path | None:
    """A control group whose processes get no more than `LIMIT`; None where none can be made."""
    for root, file in GROUPS:
        folder = root / f"bnfold-test-{os.getpid()}"
        with suppress(OSError):
            folder.mkdir()
            try:
                (folder / file).write_text(str(LIMIT))
            except OSError:
                folder.rmdir()
            else:
                return folder
    return None


@pytest.fixture
def group() -> Iterator[Path]:
    folder = make_group()
    if folder is None:
        pytest.skip("no control group of memory can be made here; that takes root, and a writable /sys/fs/cgroup")
    yield folder
    end = time.monotonic() + PATIENCE
    while (folder / "cgroup.procs").read_text() and time.monotonic() < end:
        time.sleep(0.01)
    folder.rmdir()


def image() -> bytes:
    """A small file of many pixels."""
    file = io.BytesIO()
    Image.new("L", (5000, 5000)).save(file, "PNG")
    return file.getvalue()


def binary(name: str, datatype: str, shape: list[int], content: bytes) -> tuple[bytes, dict[str, str]]:
    parameters = {"binary_data_size": len(content)}
    tensor = {"name": name, "datatype": datatype, "shape": shape, "parameters": parameters}
    header = json.dumps({"inputs": [tensor]}).encode()
    return header + content, {"Inference-Header-Content-Length": str(len(header))}


def bodies() -> dict[str, tuple[str, bytes, dict[str, str]]]:
    """Path, content and headers, by what it is. Each takes more than it seems to."""
    numbers = b'{"instances":[[' + b"1," * 20_000_000 + b"1]]}"
    lists = b'{"instances":[[' + b"[]," * 10_000_000 + b"[]]]}"
    packed = {"Content-Encoding": "gzip"}
    free, net = "/v1/models/free:predict", "/v1/models/net:predict"
    return {
        "tensor": ("/v2/models/free/infer", *binary("x", "FP32", [1, 10_000_000], bytes(40_000_000))),
        "numbers": (free, numbers, {}),
        "packed lists": (free, gzip.compress(lists, 1), packed),
        "strings": ("/v2/models/text/infer", *binary("x", "BYTES", [2_500_000, 2], bytes(20_000_000))),
        "image": (net, image(), {"Content-Type": "image/png"}),
    }


def test_what_does_not_fit_is_503_and_nothing_is_killed(group: Path, tmp_path: Path) -> None:
    served.net(tmp_path)
    served.others(tmp_path)
    served.kinds(tmp_path)
    join = f"import os, pathlib\npathlib.Path({str(group / 'cgroup.procs')!r}).write_text(str(os.getpid()))\n"
    sent = bodies()
    answers: dict[str, list[httpx.Response]] = {what: [] for what in sent}

    def send(what: str) -> None:
        path, content, headers = sent[what]
        answers[what].append(service.post(path, content=content, headers=headers))

    with serving.start_process(tmp_path, code=join + serving.SERVE) as service:
        for what in sent:
            send(what)
        alone = {what: given[0].status_code for what, given in answers.items()}
        assert alone == {
            "tensor": 200,
            "numbers": 503,
            "packed lists": 400,
            "strings": 503,
            "image": 503,
        }
        clients = [threading.Thread(target=send, args=(what,)) for what in list(sent) * CLIENTS]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
        assert_lives(service)
    assert [len(given) for given in answers.values()] == [CLIENTS + 1] * len(sent)
    for what, given in answers.items():
        for answer in given:
            assert answer.status_code in (200, 503, alone[what])
            if answer.status_code == 503:
                assert answer.headers["retry-after"] == "1"
                assert "memory" in answer.text or "bytes do not fit" in answer.text


def assert_lives(service: ServiceProcess) -> None:
    assert service.process.poll() is None
    assert httpx.get(f"{service.url}/v2/health/live", timeout=PATIENCE).status_code == 200
    row = np.ones((1, 2), np.float32).tolist()
    reply = service.post("/v1/models/free:predict", json={"instances": row})
    assert reply.json() == {"predictions": [2]}
