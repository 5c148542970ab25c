"""Every architecture, in every precision that the device has: proven on it, and computed by it alone."""

import numpy as np
import pytest

from fold.artifact.directory import read_version
from fold.proof.certifier import certify
from fold.proof.reference import load_reference
from fold.runtime.devices import PROVIDERS
from fold.runtime.session import CudaOptions, computed_elsewhere, open_session, placement, run
from support.device import LIMITS, ON_GPU, PRECISIONS, PROVIDER, every, published
from support.service.serving import start_process

pytestmark = pytest.mark.gpu


@every(*PRECISIONS)
def test_certificate_holds_on_the_device(name, precision) -> None:
    conversion = published(name, precision)
    assert conversion.certificate, conversion.certificate.message
    assert conversion.certificate.verdict.provider == PROVIDER
    assert conversion.certificate.verdict.precision == precision
    if precision != "fp32":
        assert f"on {PROVIDER} in {precision}:" in conversion.certificate.message


@every(*PRECISIONS)
def test_every_node_runs_on_the_device(name, precision) -> None:
    session = opened(name, precision)
    assert computed_elsewhere(session) == []
    own = placement(session)[PROVIDERS[PROVIDER]]
    assert set(own) & {"Conv", "FusedConv", "NhwcConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul", "ConvTranspose"}


@every(*PRECISIONS)
def test_the_same_row_in_another_batch_differs_by_rounding_alone(name, precision) -> None:
    session, spec = opened(name, precision), read_version(published(name, precision).path).manifest.inputs[0]
    x = np.random.default_rng(0).standard_normal((17, *spec.shape[1:])).astype(np.float32)
    together = run(session, {spec.name: x})["output"]
    alone = np.concatenate([run(session, {spec.name: x[i : i + 1]})["output"] for i in range(17)])
    np.testing.assert_allclose(alone, together, rtol=0, atol=LIMITS[precision] * np.abs(together).max())


@every("fp32")
def test_a_served_prediction_and_its_proof(name, precision) -> None:
    """The real service on the device answers what the module computes in float64, and proves itself."""
    path = published(name, precision).path
    spec = read_version(path).manifest.inputs[0]
    x = np.random.default_rng(1).standard_normal((3, *spec.shape[1:])).astype(np.float32)
    expected = load_reference(read_version(path)).exact({spec.name: x})["output"]
    with start_process(path.parents[1], device=PROVIDER, max_batch_size=8, batches_in_flight=2) as service:
        assert f"({PROVIDER})" in service.lines[-1]
        answer = service.post(f"/v1/models/{name}:predict", json={"instances": x.tolist()})
        served = np.array(answer.json()["predictions"])
        np.testing.assert_allclose(served, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
        verdict = service.post(f"/v2/models/{name}/equivalence", json={"samples": 19, "seed": 3}).json()
        assert verdict["equivalent"] is True, verdict
        assert verdict["provider"] == PROVIDER
    assert service.process.returncode == 0


@pytest.mark.parametrize("name", ["resnet", "mobilenet", "levit"] if ON_GPU else ["cnn"])
def test_a_published_float16_model_is_certified_again_from_its_directory(name) -> None:
    assert certify(read_version(published(name, "fp16").path), samples=8, seed=5, provider=PROVIDER)


def opened(name: str, precision: str):
    conversion = published(name, precision)
    assert conversion.path is not None, conversion.certificate.message
    cuda = CudaOptions(tf32=precision != "fp32")
    return open_session(conversion.path / "model.onnx", provider=PROVIDER, cuda=cuda, record_placement=True)
