"""What needs a GPU: placement, equivalence with TF32 off, one served prediction. scripts/gpu-check runs these.

BNFOLD_GPU_TEST_PROVIDER=cpu runs the same steps on the CPU, to see that they work before a GPU is at hand.
"""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from folding import ARCHITECTURES, architecture, randomise

from fold.artifact import read_version
from fold.certificate import certify
from fold.convert import Conversion, Target, convert
from fold.runtime import PROVIDERS, cuda_devices, open_session, placement, run
from fold.sources.archive import load_program
from fold.sources.source import Source

PROVIDER = os.environ.get("BNFOLD_GPU_TEST_PROVIDER", "cuda")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(PROVIDER == "cuda" and not cuda_devices(), reason="no NVIDIA GPU; see scripts/gpu-check"),
]


def publish(name: str, repository: Path, **options: Any) -> Conversion:
    checkpoint = repository / f"{name}.pt"
    repository.mkdir(parents=True, exist_ok=True)
    torch.save(randomise(architecture(name), seed=1, hostile=False).state_dict(), checkpoint)
    source = Source(checkpoint, f"models.{name}:{name}", (), [",".join(map(str, ARCHITECTURES[name]))])
    return convert(source, Target(repository / "repository", name), provider=PROVIDER, **options)


@pytest.fixture(scope="module", params=list(ARCHITECTURES))
def published(request, tmp_path_factory) -> Conversion:
    return publish(request.param, tmp_path_factory.mktemp(request.param))


def test_folded_graph_is_equivalent_in_float32_on_the_device(published) -> None:
    assert published.certificate, published.certificate.message
    assert published.certificate.verdict.provider == PROVIDER


def test_every_node_runs_on_the_device(published) -> None:
    session = open_session(published.path / "model.onnx", provider=PROVIDER, record_placement=True)
    nodes = placement(session)
    elsewhere = {name: ops for name, ops in nodes.items() if name != PROVIDERS[PROVIDER]}
    # The shape arithmetic of a dynamic batch belongs on the CPU: it is integers, and a copy would cost more.
    compute = {op for ops in elsewhere.values() for op in ops} - {"Shape", "Squeeze", "Concat", "Gather", "Unsqueeze"}
    assert nodes[PROVIDERS[PROVIDER]]
    assert not compute


def test_the_same_row_in_another_batch_differs_by_rounding_alone(published) -> None:
    session = open_session(published.path / "model.onnx", provider=PROVIDER)
    spec = read_version(published.path).manifest.inputs[0]
    x = np.random.default_rng(0).standard_normal((17, *spec.shape[1:])).astype(np.float32)
    together = run(session, {spec.name: x})["output"]
    alone = np.concatenate([run(session, {spec.name: x[i : i + 1]})["output"] for i in range(17)])
    np.testing.assert_allclose(alone, together, rtol=0, atol=1e-4 * np.abs(together).max())


@pytest.mark.parametrize("name", ["resnet", "mobilenet", "levit"])
def test_float16_is_certified_on_the_device_and_runs_there(name, tmp_path) -> None:
    conversion = publish(name, tmp_path, precision="fp16")
    assert conversion.path is not None, conversion.certificate.message
    assert f"on {PROVIDER} in fp16:" in conversion.certificate.message
    session = open_session(conversion.path / "model.onnx", provider=PROVIDER, record_placement=True)
    nodes = placement(session)
    assert set(nodes[PROVIDERS[PROVIDER]]) & {"Conv", "FusedConv", "Gemm", "MatMul"}
    assert certify(read_version(conversion.path), samples=8, seed=5, provider=PROVIDER)


def test_a_served_prediction(published) -> None:
    """The real service on the device answers what the module computes, and proves itself."""
    command = [sys.executable, "-m", "fold", "serve", published.path.parents[1], "--port", "0", "--provider", PROVIDER]
    server = subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, text=True)
    try:
        assert server.stderr is not None
        line = next(line for line in server.stderr if "serving" in line)
        assert f"({PROVIDER})" in line
        url = next(word for word in line.split() if word.startswith("http"))
        spec = read_version(published.path).manifest.inputs[0]
        x = np.random.default_rng(1).standard_normal((3, *spec.shape[1:])).astype(np.float32)
        name = published.name
        served = np.array(_post(f"{url}/v1/models/{name}:predict", {"instances": x.tolist()})["predictions"])
        module = load_program(published.path / "reference.pt2").module()
        with torch.no_grad():
            expected = module(torch.from_numpy(x)).numpy()
        np.testing.assert_allclose(served, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
        verdict = _post(f"{url}/v2/models/{name}/equivalence", {"samples": 8, "seed": 3})
        assert verdict["equivalent"] is True, verdict
        assert verdict["provider"] == PROVIDER
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 0
    finally:
        server.kill()
        server.wait()
        if server.stderr is not None:
            server.stderr.close()


def _post(url: str, content: dict[str, object]) -> dict:
    body = json.dumps(content).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    for _ in range(100):
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return json.loads(answer.read())
        except ConnectionError:
            time.sleep(0.1)
    raise AssertionError("the service did not answer")
