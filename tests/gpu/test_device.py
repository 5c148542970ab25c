"""What lies under the service on a GPU: page-locked memory, cuDNN, TF32, buckets, and the reference in float64."""

import ctypes
import subprocess
import sys
import threading

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from fold.artifact.directory import read_version
from fold.proof.reference import load_reference
from fold.runtime.devices import loaded_library
from fold.runtime.session import CudaOptions, open_session, run
from fold.serving.cuda_runtime import CudaRuntime
from fold.serving.options import SessionOptions
from fold.serving.session import ModelSession
from support.device import ON_GPU, PROVIDER, needs_gpu, published

pytestmark = [pytest.mark.gpu, pytest.mark.xdist_group("device")]

USES_CUDNN = """
import sys
from pathlib import Path
import numpy as np
from fold.runtime.session import loaded_cudnn, open_session, run
session = open_session(Path(sys.argv[1]).read_bytes(), provider="cuda")
run(session, {"x": np.zeros((1, 64, 28, 28), np.float32)})
assert "torch" not in sys.modules
maps = Path("/proc/self/maps").read_text()
print(loaded_cudnn(), "libcudnn_graph" in maps or "libcudnn_engines" in maps or "libcudnn_cnn" in maps)
"""


def graph_of(node: onnx.NodeProto, weight: np.ndarray, shape: list[int | str]) -> bytes:
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return model.SerializeToString()


def product() -> tuple[bytes, np.ndarray, np.ndarray]:
    """A matrix product that tensor cores would take, an input, and the truth."""
    random = np.random.default_rng(0)
    x, w = (random.standard_normal((1024, 1024)).astype(np.float32) for _ in range(2))
    content = graph_of(helper.make_node("MatMul", ["x", "w"], ["y"]), w, ["n", 1024])
    return content, x, x.astype(np.float64) @ w.astype(np.float64)


def convolution() -> tuple[bytes, np.ndarray, np.ndarray]:
    """A 1×1 convolution is such a product as well."""
    random = np.random.default_rng(1)
    x = random.standard_normal((8, 256, 28, 28)).astype(np.float32)
    w = random.standard_normal((256, 256, 1, 1)).astype(np.float32)
    content = graph_of(helper.make_node("Conv", ["x", "w"], ["y"]), w, ["n", 256, 28, 28])
    truth = np.einsum("oi,nihw->nohw", w[:, :, 0, 0].astype(np.float64), x.astype(np.float64), optimize=True)
    return content, x, truth


@pytest.mark.parametrize("make", [product, convolution])
def test_float32_is_not_rounded_to_tf32(make) -> None:
    content, x, truth = make()
    [found] = run(open_session(content, provider=PROVIDER), {"x": x}).values()
    assert np.abs(found - truth).max() <= 1e-5 * np.abs(truth).max()


@needs_gpu
def test_tf32_is_another_precision() -> None:
    content, x, truth = product()
    [found] = run(open_session(content, provider=PROVIDER, cuda=CudaOptions(tf32=True)), {"x": x}).values()
    assert 1e-5 < np.abs(found - truth).max() / np.abs(truth).max() < 3e-2


@needs_gpu
def test_a_convolution_is_computed_by_cudnn(tmp_path) -> None:
    """In a process without PyTorch, which brings its own: the library, and those that it loads once it is used."""
    w = np.ones((64, 64, 3, 3), np.float32)
    file = tmp_path / "conv.onnx"
    file.write_bytes(graph_of(helper.make_node("Conv", ["x", "w"], ["y"]), w, ["n", 64, 28, 28]))
    command = [sys.executable, "-c", USES_CUDNN, str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    version, used = done.stdout.split()
    assert int(version.split(".")[0]) >= 9
    assert used == "True"


@needs_gpu
def test_staging_memory_is_page_locked() -> None:
    runtime = loaded_library("libcudart")
    assert runtime is not None
    array = CudaRuntime(0).allocate((3, 1000), np.dtype(np.float32))
    flags = ctypes.c_uint()
    assert runtime.cudaHostGetFlags(ctypes.byref(flags), ctypes.c_void_p(array.ctypes.data)) == 0
    assert not array.any()
    ordinary = np.zeros((3, 1000), np.float32)
    assert runtime.cudaHostGetFlags(ctypes.byref(flags), ctypes.c_void_p(ordinary.ctypes.data)) != 0
    runtime.cudaGetLastError()  # or the next call of anybody would report it


@pytest.mark.parametrize("graphs", [False, True])
def test_filled_up_batches_never_leak_whoever_asks(graphs) -> None:
    """Three threads, as batches and proofs do, ask one session for batches of all sizes, with NaN among the rows."""
    version = read_version(published("preact_resnet", "fp32").path)
    [spec] = version.manifest.inputs
    options = SessionOptions(
        device=PROVIDER,
        buckets="1,4,6",
        max_batch_size=8,
        batches_in_flight=2,
        cuda_graphs=graphs,
    )
    session = ModelSession.open(version, options)
    reference, failures = load_reference(version), list[str]()
    random = np.random.default_rng(0)
    x = random.standard_normal((40, *spec.shape[1:])).astype(np.float32)
    truth = reference.exact({spec.name: x})["output"]
    x[7::8], truth[7::8] = np.nan, np.nan

    def ask(seed: int) -> None:
        chosen = np.random.default_rng(seed)
        for _ in range(60):
            rows = chosen.integers(0, 40, chosen.integers(1, 20))
            found = session.run({spec.name: x[rows]})["output"]
            finite = np.isfinite(truth[rows])  # what becomes of NaN is the device's own affair
            if not np.abs(found - truth[rows])[finite].max(initial=0) <= 1e-4 * np.nanmax(np.abs(truth)):
                failures.append(f"{seed}: {rows}")

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not failures
    assert session.cold_shapes == 0


def test_the_reference_computes_beside_the_graph_in_float64() -> None:
    version = read_version(published("resnet", "fp32").path)
    [spec] = version.manifest.inputs
    x = {spec.name: np.random.default_rng(0).standard_normal((5, *spec.shape[1:])).astype(np.float32)}
    there, here = load_reference(version, provider=PROVIDER, beside=True), load_reference(version)
    assert there._device == ("cuda:0" if ON_GPU else "cpu")  # type: ignore[attr-defined]
    exact, truth = there.exact(x)["output"], here.exact(x)["output"]
    assert exact.dtype == np.float64
    np.testing.assert_allclose(exact, truth, rtol=0, atol=1e-12 * np.abs(truth).max())
    rounded = np.abs(there.unfolded(x)["output"] - truth).max() / np.abs(truth).max()
    assert rounded < 1e-5, "TF32 would be 1e-4 and more"
