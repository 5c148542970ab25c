"""What fails on the device ends as documented, and is told in one line without the runtime's own positions."""

from pathlib import Path

import pytest
from cuda_stubs import stubs
from cuda_stubs.networks import chain, rows

from fold.artifact import read_version
from fold.convert import Target, convert
from fold.runtime import ProviderUnavailableError, open_session
from fold.serving import CertificateError, DeviceLostError, DeviceMemoryError
from fold.serving.options import SessionOptions
from fold.serving.session import ModelSession
from fold.sources import Source

pytestmark = pytest.mark.cuda_stubs

TAILS = ("hostname", "GPU=", ".cc", ".h:", "expr=", "onnxruntime_src")
"""What ONNX Runtime adds for its own developers."""


def opened(repository: Path, **options: object) -> ModelSession:
    return ModelSession.open(chain(repository), SessionOptions(device="cuda", **options))  # type: ignore[arg-type]


def assert_plain(text: str) -> None:
    assert "\n" not in text
    assert not [tail for tail in TAILS if tail in text], text


def test_memory_comes_back(tmp_path: Path) -> None:
    session = opened(tmp_path, buckets="off")
    with stubs.memory_for(1 << 20), pytest.raises(DeviceMemoryError, match="no memory on the device") as caught:
        session.run(rows(4096))
    assert_plain(str(caught.value))
    assert session.run(rows(4096))["y"].shape[0] == 4096
    assert session.lost is None


@pytest.mark.parametrize("more", [0, 10_000, 30_000, 100_000, 300_000])
def test_a_model_that_does_not_fit_is_told_before_it_serves(more: int, tmp_path: Path) -> None:
    """Its weights, its buffers, or what runs need."""
    with stubs.memory_for(more), pytest.raises(ProviderUnavailableError, match="too little memory") as caught:
        opened(tmp_path)
    assert_plain(str(caught.value))
    assert "fold the model again" not in str(caught.value)
    assert opened(tmp_path / "again").run(rows(64))["y"].shape[0] == 64


def test_the_limit_of_the_arena(tmp_path: Path) -> None:
    session = opened(tmp_path, buckets="off", gpu_memory_limit_bytes=1 << 20)
    with pytest.raises(DeviceMemoryError) as caught:
        session.run(rows(4096))
    assert_plain(str(caught.value))
    assert session.run(rows(1))["y"].shape[0] == 1


def test_memory_that_cudnn_does_not_get(tmp_path: Path) -> None:
    """ONNX Runtime says only that cuDNN failed; the device says that it has little memory."""
    session = opened(tmp_path)
    with stubs.failing_convolutions(4004), stubs.memory_for(1 << 20), pytest.raises(DeviceMemoryError) as caught:
        session.run(rows(3))
    assert_plain(str(caught.value))
    assert session.lost is None


@pytest.mark.parametrize("buckets", ["auto", "off"])
@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("code", [46, 700, 719, 999])
def test_a_lost_device(code: int, graphs: bool, buckets: str, tmp_path: Path) -> None:
    session = opened(tmp_path, buckets=buckets, cuda_graphs=graphs)
    with (
        stubs.failing(code),
        pytest.raises(DeviceLostError, match=f"the device is lost: .*CUDA failure {code}") as caught,
    ):
        session.run(rows(2))
    assert_plain(str(caught.value))
    assert session.lost is not None


@pytest.mark.parametrize("status", [5000, 5003])
def test_cudnn_says_only_that_it_failed(status: int, tmp_path: Path) -> None:
    """The device decides whether it is lost."""
    session = opened(tmp_path)
    with stubs.failing_convolutions(status), pytest.raises(Exception, match=r"(?i)cudnn") as caught:
        session.run(rows(2))
    assert not isinstance(caught.value, DeviceLostError)
    assert session.run(rows(2))["y"].shape[0] == 2
    with stubs.failing_convolutions(status, code_at_wait=719), pytest.raises(DeviceLostError) as lost:
        session.run(rows(2))
    assert_plain(str(lost.value))


def test_a_driver_that_is_too_old_is_told_in_one_line(tmp_path: Path) -> None:
    version = chain(tmp_path)
    with stubs.failing(35), pytest.raises(ProviderUnavailableError, match="device cuda: CUDA failure 35") as caught:
        open_session(version.model_file, provider="cuda")
    assert_plain(str(caught.value))
    assert "--device cpu" in str(caught.value)


@pytest.mark.parametrize("options", [{}, {"buckets": "off"}, {"cuda_graphs": True}, {"nhwc": True}])
def test_wrong_numbers_are_not_served(options: dict[str, object], tmp_path: Path) -> None:
    """All numbers are wrong here; the canary was computed on the CPU."""
    source = Source(chain(tmp_path / "source").reference_file)
    conversion = convert(source, Target(tmp_path / "repository", "net"), provider="cpu")
    assert conversion.path is not None
    version = read_version(conversion.path)
    with pytest.raises(CertificateError, match="its certificate does not hold here, on cuda"):
        ModelSession.open(version, SessionOptions(device="cuda", **options))  # type: ignore[arg-type]
    ModelSession.open(version, SessionOptions(device="cpu", buckets="1,4"))
