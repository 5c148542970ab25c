"""The service on a GPU, as a process: with which options it runs there, and that its answers are right in each."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.clients import load, write_questions
from fold.artifact.directory import read_version
from fold.artifact.manifest import PrecisionName
from fold.proof.reference import load_reference
from fold.runtime.devices import PROVIDERS
from support.device import LIMITS, ON_GPU, PRECISIONS, PROVIDER, needs_gpu, published
from support.service.serving import SERVE, start_process

pytestmark = pytest.mark.gpu

NAME = "resnet"
MOST = 32
SETTINGS: dict[str, Any] = {"device": PROVIDER, "max_batch_size": MOST}
if not ON_GPU:  # what a GPU has by itself
    SETTINGS |= {"buckets": "1,2,4,8,16,32", "batches_in_flight": 2}
OPTIONS: dict[str, dict[str, Any]] = {
    "as it comes": {},
    "cuda graphs": {"cuda_graphs": 1},
    "nhwc": {"nhwc": 1},
    "cuda graphs, nhwc": {"cuda_graphs": 1, "nhwc": 1},
    "exhaustive": {"conv_search": "exhaustive"},
    "memory limit": {"gpu_memory_limit_bytes": 1 << 30},
    "own sizes": {"buckets": "3,17"},
    "cuda graphs, no buckets": {"cuda_graphs": 1, "buckets": "off"},
}
if not ON_GPU:  # the others are the CUDA provider's
    OPTIONS = {name: OPTIONS[name] for name in ("own sizes", "cuda graphs, no buckets")}
TOLD = {
    "cuda graphs": ("enable_cuda_graph", "1"),
    "nhwc": ("prefer_nhwc", "1"),
    "exhaustive": ("cudnn_conv_algo_search", "EXHAUSTIVE"),
    "memory limit": ("gpu_mem_limit", str(1 << 30)),
}


def repository(precision: PrecisionName) -> Path:
    return published(NAME, precision).path.parents[1]


def ask(service: Any, folder: Path, precision: PrecisionName, seconds: float = 2.0) -> int:
    """Ask for 1 to 40 rows in several processes at once, and hold every answer against float64; how many came."""
    version = read_version(published(NAME, precision).path)
    [spec] = version.manifest.inputs
    random, reference, questions = np.random.default_rng(4), load_reference(version), []
    for rows in (1, 3, 32, 2, 7, 1, 19, 40, 5, 16):
        # of different sizes, so that what filled a batch up, or was in the buffers before, would show
        x = (random.standard_normal((rows, *spec.shape[1:])) * random.choice([0.01, 1, 3])).astype(np.float32)
        questions.append((x, reference.exact({spec.name: x})["output"]))
    write_questions(folder / "questions.npz", spec.name, questions, LIMITS[precision])
    seen = load(folder / "questions.npz", service.port, f"/v2/models/{NAME}/infer", connections=12, seconds=seconds)
    assert (seen.wrong, seen.failed) == (0, 0), seen
    assert seen.answered
    return seen.answered


def parameters(service: Any) -> dict[str, str]:
    found = service.get(f"/v2/models/{NAME}/config").json()["parameters"]
    return {name: value["string_value"] for name, value in found.items()}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_mixed_batch_sizes_two_in_flight_and_nothing_new_to_the_device(precision, tmp_path) -> None:
    with start_process(repository(precision), **SETTINGS) as service:
        ask(service, tmp_path, precision)
        labels = f'model="{NAME}",version="1"'
        assert service.metric(f"bnfold_cold_shapes_total{{{labels}}}") == 0
        config = service.get(f"/v2/models/{NAME}/config").json()
        assert config["instance_group"][0]["count"] == 2
        assert config["instance_group"][0]["kind"] == ("KIND_GPU" if ON_GPU else "KIND_CPU")
        assert [warm["batch_size"] for warm in config["model_warmup"]] == [1, 2, 4, 8, 16, 32]
        told = parameters(service)
        assert told["precision"] == precision
        nodes = int(told[f"nodes.{PROVIDERS[PROVIDER]}"])
        assert service.metric(f'bnfold_nodes{{model="{NAME}",provider="{PROVIDERS[PROVIDER]}",version="1"}}') == nodes
        assert nodes > 0
        verdict = service.post(f"/v2/models/{NAME}/equivalence", json={"samples": 45, "seed": 2}).json()
        assert (verdict["equivalent"], verdict["precision"]) == (True, precision), verdict


@needs_gpu
@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_providers_own_options_are_published(precision) -> None:
    with start_process(repository(precision), **SETTINGS) as service:
        told = parameters(service)
    assert told["cuda.use_tf32"] == str(int(precision != "fp32"))
    assert told["cuda.cudnn_conv_algo_search"] == "HEURISTIC"
    assert told["cuda.arena_extend_strategy"] == "kSameAsRequested"
    assert told["cuda.do_copy_in_default_stream"] == "1"
    assert int(told["cudnn"].split(".")[0]) >= 9, "cuDNN's version, of the library that is loaded"


@pytest.mark.parametrize("option", OPTIONS)
def test_answers_are_right_with_each_option(option, tmp_path) -> None:
    with start_process(repository("fp32"), **SETTINGS | OPTIONS[option]) as service:
        ask(service, tmp_path, "fp32")
        verdict = service.post(f"/v2/models/{NAME}/equivalence", json={"samples": 33, "seed": 6}).json()
        assert verdict["equivalent"] is True, verdict
        ask(service, tmp_path, "fp32", seconds=0.5)  # what another thread recorded meanwhile would be launched now
        told = parameters(service)
    if ON_GPU and option in TOLD:
        name, value = TOLD[option]
        assert told[f"cuda.{name}"] == value


@needs_gpu
@pytest.mark.parametrize("option", ["cuda_graphs", "nhwc"])
def test_options_with_float16(option, tmp_path) -> None:
    with start_process(repository("fp16"), **SETTINGS | {option: 1}) as service:
        ask(service, tmp_path, "fp16", seconds=1.0)


@needs_gpu
def test_metrics_tell_of_the_gpu() -> None:
    with start_process(repository("fp32"), **SETTINGS) as service:
        used, total = (service.metric(f'bnfold_gpu_memory_{what}_bytes{{gpu="0"}}') for what in ("used", "total"))
        assert 0 < used < total
        assert 0 <= service.metric('bnfold_gpu_utilization_ratio{gpu="0"}') <= 1


@needs_gpu
def test_out_of_memory_is_answered_with_503_and_passes(tmp_path) -> None:
    """1,024 rows of 64×64 in 16 channels are 268 MB for one tensor, and the arena may have 256 MB."""
    conversion = published("unet", "fp32", shape=(1, 64, 64))
    version = read_version(conversion.path)
    [spec] = version.manifest.inputs
    limits = {"gpu_memory_limit_bytes": 1 << 28, "buckets": "off", "max_batch_size": 1024, "queue_rows": 2048}
    x = np.random.default_rng(0).standard_normal((1, *spec.shape[1:])).astype(np.float32)
    expected = load_reference(version).exact({spec.name: x})["output"]
    small, large = (rows_of(spec.name, rows) for rows in (x, np.repeat(x, 1024, axis=0)))
    with start_process(conversion.path.parents[1], **SETTINGS | limits) as service:
        for asked, status in ((small, 200), (large, 503), (small, 200), (large, 503), (small, 200)):
            answer = service.post("/v2/models/unet/infer", **asked)
            assert answer.status_code == status, answer.text[:300]
            if status == 503:
                assert "no memory on the device" in answer.json()["error"]
                continue
            found = np.frombuffer(answer.content[-expected.nbytes // 2 :], np.float32).reshape(expected.shape)
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
        assert service.get("/v2/health/ready").status_code == 200
        assert service.metric('bnfold_device_lost{model="unet",version="1"}') == 0


def rows_of(name: str, x: np.ndarray) -> dict[str, Any]:
    """Body and headers of a request, and of its answer, in binary."""
    tensor = {"name": name, "shape": list(x.shape), "datatype": "FP32", "parameters": {"binary_data_size": x.nbytes}}
    header = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    return {"content": header + x.tobytes(), "headers": {"Inference-Header-Content-Length": str(len(header))}}


def test_without_a_gpu_it_does_not_serve_from_the_cpu() -> None:
    chosen = {"BNFOLD_REPOSITORY": str(repository("fp32")), "BNFOLD_PORT": "0", "BNFOLD_DEVICE": "cuda"}
    environment = {**os.environ, **chosen, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-c", SERVE]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert "device cuda" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
