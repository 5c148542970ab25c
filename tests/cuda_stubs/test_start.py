"""Processes: with the stub libraries, without a driver, and with a driver whose CUDA libraries are missing."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cuda_stubs.networks import chain, rows

from support.service.serving import SERVE, start_process

pytestmark = pytest.mark.cuda_stubs

STUBS = Path(os.environ.get("LD_LIBRARY_PATH", "").partition(":")[0])


def run(code: str, *arguments: object, libraries: Path | str = STUBS) -> "subprocess.CompletedProcess[str]":
    environment = {name: value for name, value in os.environ.items() if not name.startswith("BNFOLD_")}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(
        command, env=environment | {"LD_LIBRARY_PATH": str(libraries)}, capture_output=True, text=True, check=False
    )


SERVE_ON = "import os, sys; os.environ |= {'BNFOLD_REPOSITORY': sys.argv[1], 'BNFOLD_DEVICE': sys.argv[2]}" + SERVE


@pytest.fixture(scope="module")
def driver_alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("driver")
    shutil.copy(STUBS / "libcuda.so.1", folder)
    return folder


RESOLVE = "from fold.runtime import resolve_provider; print(resolve_provider('auto'))"


def test_auto_takes_the_gpu_where_there_is_a_driver(driver_alone: Path) -> None:
    assert [run(RESOLVE, libraries=found).stdout.strip() for found in (STUBS, driver_alone, "")] == [
        "cuda",
        "cuda",
        "cpu",
    ]


def test_without_a_driver_it_does_not_serve_from_the_cpu(tmp_path: Path) -> None:
    chain(tmp_path)
    done = run(SERVE_ON, tmp_path, "cuda", libraries="")
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert "no NVIDIA driver or device is visible here" in line


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_a_driver_without_libraries_is_told_and_not_replaced_by_the_cpu(
    device: str, driver_alone: Path, tmp_path: Path
) -> None:
    chain(tmp_path)
    done = run(SERVE_ON, tmp_path, device, libraries=driver_alone)
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert "device cuda: ONNX Runtime found no libcublasLt.so.13" in line
    assert "--device cpu" in line


def test_a_service_says_where_it_runs_and_nothing_else(tmp_path: Path) -> None:
    chain(tmp_path)
    with start_process(tmp_path, device="cuda", max_batch_size=8, log_format="json") as service:
        config = service.get("/v2/models/fp32/config").json()
        tensor = {"name": "x", "shape": [3, 4, 8, 8], "datatype": "FP32", "data": rows(3)["x"].ravel().tolist()}
        answer = service.post("/v2/models/fp32/infer", json={"inputs": [tensor]})
        assert answer.status_code == 200, answer.text
        assert service.metric('bnfold_cold_shapes_total{model="fp32",version="1"}') == 0
    assert config["instance_group"][0] == config["instance_group"][0] | {"kind": "KIND_GPU", "count": 2}
    assert config["parameters"]["cudnn"]["string_value"] == "9.15.0"
    assert int(config["parameters"]["nodes.CUDAExecutionProvider"]["string_value"])
    assert service.process.returncode == 0
    assert [json.loads(line)["level"] for line in service.lines]


LEAVE = """
import sys, threading
from pathlib import Path
import numpy as np
from fold.artifact import read_version
from fold.serving import ModelSession, SessionOptions
session = ModelSession.open(read_version(Path(sys.argv[1])), SessionOptions(device="cuda", max_batch_size=4))
began = threading.Event()
def ask():
    while True:
        session.run({"x": np.ones((3, 4, 8, 8), np.float32)})
        began.set()
threading.Thread(target=ask, daemon=True).start()
began.wait()
"""


def test_a_process_may_end_while_a_batch_runs(tmp_path: Path) -> None:
    done = run(LEAVE, chain(tmp_path).path)
    assert (done.returncode, done.stderr) == (0, "")
