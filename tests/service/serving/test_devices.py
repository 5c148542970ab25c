"""Batch sizes in buckets, where things run, and what becomes of a service whose device fails.

The buckets are the ones of a GPU, on a CPU: only where their buffers lie differs. tests/gpu runs them on a device.
"""

import logging
import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fold.artifact.directory import read_version
from fold.artifact.manifest import Manifest, TensorSpec
from fold.artifact.triton import powers_of_two
from fold.runtime.devices import ProviderUnavailableError, device_number, gpu_memory
from fold.runtime.session import CudaOptions, computed_elsewhere, open_session
from fold.serving.buckets import Buckets, bucket_sizes
from fold.serving.faults import DeviceLostError, DeviceMemoryError, device_fault
from fold.serving.options import SessionOptions
from fold.serving.placement import FACTS, Placement
from fold.serving.session import ModelSession
from fold.serving.staging import Staging
from service.telemetry import gpu
from service.telemetry.gpu import GpuCollector
from support.service import serving
from support.service.serving import PATIENCE

TWO = """<ir_version: 8, opset_import: ["" : 17]>
g (float[N,3] x, int64[N] k) => (float[N,3] y, int64[N,3] z) {
  y = Softmax <axis = 1> (x)
  i = Cast <to = 7> (x)
  one = Constant <value = int64[1] {1}> ()
  column = Unsqueeze (k, one)
  z = Add (i, column)
}"""
INPUTS = [TensorSpec(name="x", datatype="FP32", shape=(-1, 3)), TensorSpec(name="k", datatype="INT64", shape=(-1,))]
OUTPUTS = [TensorSpec(name="y", datatype="FP32", shape=(-1, 3)), TensorSpec(name="z", datatype="INT64", shape=(-1, 3))]
SESSION = ort.InferenceSession(onnx.parser.parse_model(TWO).SerializeToString(), providers=["CPUExecutionProvider"])


def buckets(sizes: Sequence[int], copies: int = 1) -> Buckets:
    def make(size: int, position: int) -> Staging:
        return Staging(SESSION, INPUTS, OUTPUTS, size)

    return Buckets(sizes, copies, make)


SOME = buckets((1, 4, 6))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=6), st.integers(0, 2**32 - 1))
def test_filled_up_batches_answer_as_batches_of_their_own_size(runs: list[int], seed: int) -> None:
    """Whatever ran before in the same buffers: earlier rows, and rows that fill up, never show."""
    random = np.random.default_rng(seed)
    before: list[tuple[dict[str, np.ndarray], dict[str, np.ndarray]]] = []
    for rows in runs:
        x = random.normal(size=(rows, 3)).astype(np.float32)
        x[random.random(x.shape) < 0.05] = np.nan
        inputs = {"x": np.nan_to_num(x, nan=7.0), "k": random.integers(-9, 9, rows)}
        expected = dict(zip(("y", "z"), SESSION.run(["y", "z"], inputs), strict=True))
        answered = SOME.run(inputs)
        before.append((expected, answered))
    for expected, answered in before:  # nor do later runs write into what was given
        for name, array in expected.items():
            np.testing.assert_array_equal(answered[name], array, strict=True)


def test_the_driver_tells_how_much_memory_a_gpu_has(monkeypatch: pytest.MonkeyPatch) -> None:
    def get(device: Any, number: int) -> int:
        device._obj.value = number
        return 0

    def total(size: Any, device: Any) -> int:
        size._obj.value = (80 + device.value) << 30
        return 0

    driver = types.SimpleNamespace(cuInit=lambda _: 0, cuDeviceGet=get, cuDeviceTotalMem_v2=total)
    monkeypatch.setattr("ctypes.CDLL", lambda _: driver)
    assert (gpu_memory("auto"), gpu_memory("cuda:1")) == (80 << 30, 81 << 30)
    driver.cuDeviceTotalMem_v2 = lambda *_: 999
    with pytest.raises(ProviderUnavailableError, match="device cuda: the driver does not tell its memory"):
        gpu_memory("cuda")


def test_sizes() -> None:
    assert powers_of_two(1) == (1,)
    assert powers_of_two(64) == (1, 2, 4, 8, 16, 32, 64)
    assert powers_of_two(48) == (1, 2, 4, 8, 16, 32, 48)

    def chosen(setting: str, provider: str) -> tuple[int, ...]:
        return bucket_sizes(SessionOptions(buckets=setting, max_batch_size=48), provider)

    assert chosen("auto", "cpu") == chosen("off", "cuda") == ()
    assert chosen("auto", "cuda") == powers_of_two(48)
    assert chosen("16,3,3,99", "cpu") == (3, 16, 48), "the largest batch always has a bucket, and none is larger"


def test_every_size_is_warmed_up_for_every_batch_in_flight() -> None:
    ran: list[tuple[int, int]] = []

    class Noted(Staging):
        def run(self, inputs: dict[str, np.ndarray], rows: int) -> dict[str, np.ndarray]:
            ran.append((id(self), rows))
            return super().run(inputs, rows)

    def make(size: int, position: int) -> Staging:
        return Noted(SESSION, INPUTS, OUTPUTS, size)

    warm = Buckets((2, 5), 2, make)
    warm.warm_up({"x": np.zeros((1, 3), np.float32), "k": np.zeros(1, np.int64)})
    assert sorted({rows for _, rows in ran}) == [2, 5]
    assert len(set(ran)) == 4


@pytest.mark.parametrize("name", ["net", "echo", "pair", "single", "free", "text", "upper"])
def test_models_with_and_without_buckets_answer_alike(name: str, repository: Path) -> None:
    """Those that cannot have any, for want of a batch axis or of known sizes, are run as they come."""
    version = read_version(repository / name / "1")
    plain, filled = (
        ModelSession.open(version, SessionOptions(device="cpu", threads=1, buckets=sizes)) for sizes in ("off", "1,4")
    )
    assert plain.bucket_sizes == ()
    assert filled.bucket_sizes == (() if name in ("single", "free", "text", "upper") else (1, 4, 64))
    random = np.random.default_rng(5)
    for rows in (0, 1, 3, 4, 5):
        inputs = {}
        for spec in version.manifest.inputs:
            shape = [
                rows if version.manifest.batched and not i else s if s > 0 else 2 for i, s in enumerate(spec.shape)
            ]
            inputs[spec.name] = _drawn(random, spec.datatype, shape)
        for output, expected in plain.run(inputs).items():
            found = filled.run(inputs)[output]
            if name == "net":  # of another batch size the sums are in another order
                np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5, strict=True)
            else:
                np.testing.assert_array_equal(found, expected, strict=True)


def _drawn(random: np.random.Generator, datatype: str, shape: list[int]) -> np.ndarray:
    from fold.artifact.manifest import DTYPES  # noqa: PLC0415

    if datatype == "BYTES":
        return np.full(shape, "x", np.object_)
    return random.integers(0, 2, shape).astype(DTYPES[datatype])


def test_a_service_with_buckets_serves_proves_and_tells(folded: Path, start: Callable[..., Any]) -> None:
    with start(folded, buckets="2,8", max_batch_size=16, batches_in_flight=2) as service:
        rows = np.random.default_rng(1).normal(size=(21, 1, 8, 8)).round(3)
        answered = [
            service.post("/v1/models/net:predict", json={"instances": part.tolist()}).json()["predictions"]
            for part in (rows[:1], rows[1:4], rows[4:21])
        ]
        together = service.post("/v1/models/net:predict", json={"instances": rows.tolist()}).json()["predictions"]
        np.testing.assert_allclose([row for part in answered for row in part], together, rtol=0, atol=1e-5)
        config = service.get("/v2/models/net/config").json()
        assert config["dynamic_batching"]["preferred_batch_size"] == [2, 8, 16]
        assert [warm["batch_size"] for warm in config["model_warmup"]] == [2, 8, 16]
        assert config["instance_group"][0]["count"] == 2
        assert config["parameters"]["precision"] == {"string_value": "fp32"}
        nodes = int(config["parameters"]["nodes.CPUExecutionProvider"]["string_value"])
        labels = 'model="net",version="2"'
        assert service.metric('bnfold_nodes{model="net",provider="CPUExecutionProvider",version="2"}') == nodes > 0
        facts = 'conv_search="",cuda_graphs="",cudnn="",device="cpu",model="net",nhwc="",precision="fp32",tf32=""'
        assert service.metric(f'bnfold_session_info{{{facts},version="2"}}') == 1
        assert service.metric(f"bnfold_cold_shapes_total{{{labels}}}") == 0
        verdict = service.post("/v2/models/net/equivalence", json={"samples": 19, "seed": 3}).json()
        assert verdict["equivalent"] is True


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"device": "gpu"}, "device"),
        ({"device": "cuda:x"}, "device"),
        ({"buckets": "1,two"}, "buckets"),
        ({"buckets": "0,1"}, "buckets"),
        ({"conv_search": "default"}, "conv_search"),
    ],
)
def test_settings_that_are_none_get_one_line(
    settings: dict[str, str], words: str, folded: Path, start_process: Callable[..., Any]
) -> None:
    with start_process(folded, ready=False, **settings) as service:
        assert service.process.wait(PATIENCE) == 2
    [line] = service.lines
    assert words in line


# The device fails


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("CUDA failure 2: out of memory ; GPU=0 ; hostname=x ; file=bfc.cc ; expr=cudaMalloc", DeviceMemoryError),
        ("BFCArena::AllocateRawInternal Failed to allocate memory for requested buffer of size 9", DeviceMemoryError),
        ("CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0", DeviceMemoryError),
        ("CUDNN failure 4000: CUDNN_STATUS_ALLOC_FAILED", DeviceMemoryError),
        ("CUDNN failure 4004: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED", DeviceMemoryError),
        ("CUDA failure 700: an illegal memory access was encountered ; GPU=0", DeviceLostError),
        ("CUDA failure 719: unspecified launch failure ; GPU=1", DeviceLostError),
        ("CUDA error 214: uncorrectable ECC error encountered", DeviceLostError),
        ("Non-zero status code returned while running Gather node: indices element out of data bounds", None),
        ("CUDA failure 1: invalid argument", None),
    ],
)
def test_what_a_failure_says_of_the_device(text: str, fault: type | None) -> None:
    found = device_fault(RuntimeError(text), None)
    assert (None if found is None else type(found)) is fault


FAILING = """
import onnxruntime
run = onnxruntime.InferenceSession.run
SAID = {
    1e6: "BFCArena::AllocateRawInternal Failed to allocate memory for requested buffer of size 9",
    2e6: "CUDA failure 719: unspecified launch failure ; GPU=0",
}
def failing(self, names, feeds, *rest):
    for value in feeds.values():
        if value.dtype.kind == "f" and value.size and float(value.max()) in SAID:
            raise RuntimeError(SAID[float(value.max())])
    return run(self, names, feeds, *rest)
onnxruntime.InferenceSession.run = failing
"""


def image(value: float) -> dict[str, Any]:
    return {"inputs": [{"name": "image", "shape": [1, 1, 8, 8], "datatype": "FP32", "data": [value] * 64}]}


def test_memory_comes_back_and_a_lost_device_does_not(folded: Path, start_process: Callable[..., Any]) -> None:
    """Short of memory, one request fails. A device that is lost takes readiness and life with it, and says so."""
    with start_process(folded, code=FAILING + serving.SERVE, grpc_port=0) as service:
        infer = "/v2/models/net/infer"
        assert service.post(infer, json=image(1.0)).status_code == 200
        answer = service.post(infer, json=image(1e6))
        assert answer.status_code == 503
        assert "no memory on the device" in answer.json()["error"]
        assert service.post(infer, json=image(1.0)).status_code == 200
        assert service.get("/v2/health/ready").status_code == 200
        answer = service.post(infer, json=image(2e6))
        assert answer.status_code == 503
        assert "the device is lost: CUDA failure 719" in answer.json()["error"]
        for path in ("/v2/health/ready", "/v2/health/live", "/v2/models/net/ready"):
            refused = service.get(path)
            assert (refused.status_code, "lost" in refused.json()["error"]) == (503, True), path
        assert service.post(infer, json=image(1.0)).status_code == 503
        assert service.metric('bnfold_device_lost{model="net",version="2"}') == 1
        assert service.metric('bnfold_errors_total{kind="device_memory",model="net",version="2"}') == 1
        assert service.metric('bnfold_errors_total{kind="device_lost",model="net",version="2"}') == 1


# Where it runs


def test_devices_are_numbered() -> None:
    assert [device_number(device) for device in ("auto", "cpu", "cuda", "cuda:0", "cuda:11")] == [0, 0, 0, 0, 11]


def test_the_options_of_the_cuda_provider() -> None:
    plain = CudaOptions().entries(0)
    assert plain == {
        "device_id": "0",
        "use_tf32": "0",
        "cudnn_conv_algo_search": "HEURISTIC",
        "arena_extend_strategy": "kSameAsRequested",
        "do_copy_in_default_stream": "1",
    }
    every = CudaOptions(tf32=True, conv_search="exhaustive", graphs=True, nhwc=True, memory_limit=1 << 30).entries(3)
    changed = {"device_id": "3", "use_tf32": "1", "cudnn_conv_algo_search": "EXHAUSTIVE"}
    added = {"enable_cuda_graph": "1", "prefer_nhwc": "1", "gpu_mem_limit": str(1 << 30)}
    assert every == plain | changed | added


def test_what_computes_elsewhere_is_told_apart_from_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a session whose nodes run on the CPU, asked as if it were on another provider."""
    model = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["" : 17]>
    g (float[N,4] x) => (float[N,M] y) {
      s = Shape (x)  z = Erf (x)  t = Mul (s, s)  w = Cast <to = 1> (t)  v = ReduceSum (w)  y = Mul (z, v)
    }""")
    session = open_session(model.SerializeToString(), provider="cpu", record_placement=True, optimised=False)
    assert computed_elsewhere(session) == []
    monkeypatch.setattr(session, "get_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    assert computed_elsewhere(session) == ["Erf"]


def test_what_a_gpu_session_is_told_of_in_metrics() -> None:
    options = {"device_id": "1", "use_tf32": "1", "cudnn_conv_algo_search": "HEURISTIC", "prefer_nhwc": "0"}
    placement = Placement("cuda", 1, {"CUDAExecutionProvider": 3}, (), options)
    manifest = Manifest.model_construct(fold={"precision": {"type": "tf32"}})
    facts = placement.facts(manifest)
    assert tuple(facts) == FACTS
    assert facts | {"cudnn": ""} == {
        "device": "cuda:1",
        "precision": "tf32",
        "cudnn": "",
        "tf32": "1",
        "conv_search": "HEURISTIC",
        "cuda_graphs": "",
        "nhwc": "0",
    }
    assert placement.parameters()["cuda.use_tf32"] == {"string_value": "1"}


class _Nvml(types.ModuleType):
    """As NVML answers on a machine with two GPUs, of which CUDA's first is the second on the bus."""

    def nvmlInit(self) -> None:  # noqa: N802
        pass

    def nvmlDeviceGetHandleByPciBusId(self, bus: str) -> str:  # noqa: N802
        return bus

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> Any:  # noqa: N802
        return types.SimpleNamespace(used=7 if handle == "0000:81:00.0" else 1, total=100)

    def nvmlDeviceGetUtilizationRates(self, handle: str) -> Any:  # noqa: N802
        if handle == "lost":
            raise RuntimeError("GPU is lost")
        return types.SimpleNamespace(gpu=35)


class _Repository:
    def __init__(self, *devices: tuple[str, int]) -> None:
        self._models = [
            types.SimpleNamespace(
                session=types.SimpleNamespace(provider=provider, placement=types.SimpleNamespace(device=number))
            )
            for provider, number in devices
        ]

    def ready(self) -> Any:
        return self._models


def _samples(collector: GpuCollector) -> dict[tuple[str, str], float]:
    return {
        (sample.name, sample.labels["gpu"]): sample.value for family in collector.collect() for sample in family.samples
    }


def test_gpu_metrics_are_of_the_devices_that_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", _Nvml("pynvml"))
    monkeypatch.setattr(gpu, "pci_bus_id", lambda number: f"0000:8{1 - number}:00.0")
    found = _samples(GpuCollector(_Repository(("cuda", 0), ("cuda", 0), ("cpu", 0))))  # type: ignore[arg-type]
    assert found == {
        ("bnfold_gpu_memory_used_bytes", "0"): 7,
        ("bnfold_gpu_memory_total_bytes", "0"): 100,
        ("bnfold_gpu_utilization_ratio", "0"): 0.35,
    }
    assert _samples(GpuCollector(_Repository(("cpu", 0)))) == {}  # type: ignore[arg-type]


def test_without_nvml_there_are_no_gpu_metrics_and_one_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", _Nvml("pynvml"))
    monkeypatch.setattr(gpu, "pci_bus_id", lambda number: "lost")
    collector = GpuCollector(_Repository(("cuda", 1)))  # type: ignore[arg-type]
    with caplog.at_level(logging.WARNING, "bnfold"):
        assert _samples(collector) == _samples(collector) == {}
    assert caplog.messages == ["bnfold: no GPU metrics: GPU is lost"]
