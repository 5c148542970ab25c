"""What has to be known first of a GPU. Each fact is a line or a few, told as soon as it is known.

    python -m benchmarks.gpu_facts machine|loads|precision|sizes [--device cuda]

machine: the driver, and the versions of the libraries. loads: whether a convolution runs on the device, and is right.
precision: errors from float64, and times, of convolutions in float32 and float16, with TF32 off and on, with the
channels first and last. sizes: what a run takes that has another batch size than the run before.
"""

import argparse
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnx import numpy_helper

from benchmarks.contestants import Answer, in_onnxruntime, relative_error
from benchmarks.convolutions import convolutions
from fold.errors import first_line
from fold.runtime import CudaOptions, loaded_cudnn, open_session, placement, tool_versions

KINDS: dict[str, dict[str, Any]] = {"3x3": {}, "depthwise 3x3": {"depthwise": True}, "1x1": {"kernel": 1}}
ROUNDS = 20


def tell(*words: object) -> None:
    print(*words, flush=True)


def machine(device: str) -> None:
    if device != "cpu":
        query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
        tell("GPU, driver, memory:", subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip())
    tell(", ".join(f"{name} {version}" for name, version in tool_versions().items()))
    tell("torch's CUDA", torch.version.cuda, "cuDNN", torch.backends.cudnn.version() if device != "cpu" else "")


def loads(device: str) -> None:
    began = time.perf_counter()
    model = convolutions(1, 4, 9)
    session = open_session(model.SerializeToString(), provider=device, record_placement=True)
    x = np.random.default_rng(0).standard_normal((3, 4, 9, 9)).astype(np.float32)
    [found] = session.run(None, {"x": x})
    error = relative_error(found, in_float64(model, x, device))
    told = f"first run after {time.perf_counter() - began:.1f} s, error {error:.1e}:"
    tell(told, "right" if error < 1e-5 else "WRONG")
    tell("nodes:", {name: len(nodes) for name, nodes in placement(session).items()}, "cuDNN", loaded_cudnn())
    tell("options:", session.get_provider_options().get(session.get_providers()[0]))


def precision(device: str) -> None:
    rows, channels, size = (2, 16, 8) if device == "cpu" else (64, 256, 28)
    x = np.random.default_rng(0).standard_normal((rows, channels, size, size)).astype(np.float32)
    for kind, given in KINDS.items():
        truth = in_float64(convolutions(8, channels, size, **given), x, device)
        for half in (False, True):
            model = convolutions(8, channels, size, half=half, **given).SerializeToString()
            for tf32 in (False, True):
                for nhwc in (False, True):
                    told = f"{kind}, {'fp16' if half else 'fp32'}, use_tf32 {int(tf32)}, prefer_nhwc {int(nhwc)}:"
                    try:
                        session = open_session(model, provider=device, cuda=CudaOptions(tf32=tf32, nhwc=nhwc))
                        found, milliseconds = on_device(session, x, device)
                        tell(told, f"error {relative_error(found, truth):.1e}, {milliseconds:.2f} ms")
                    except Exception as error:  # any error of the device
                        tell(told, first_line(error))


def sizes(device: str) -> None:
    layers, channels, side = (5, 8, 8) if device == "cpu" else (50, 64, 28)
    batches = (1, 8, 64)
    random = np.random.default_rng(0)
    inputs = {n: random.standard_normal((n, channels, side, side)).astype(np.float32) for n in batches}
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("3x3", "depthwise 3x3"):
            graph = Path(folder) / "convolutions.onnx"
            onnx.save(convolutions(layers, channels, side, **KINDS[kind]), graph)
            session = open_session(graph, provider=device)
            answers: dict[str, Answer] = {
                "one session": lambda x, session=session: session.run(None, {"x": x})[0],
                "a session for each size": in_onnxruntime(graph, device, batches),
                "CUDA graphs": in_onnxruntime(graph, device, batches, cuda=CudaOptions(graphs=True)),
            }
            for name, answer in answers.items():
                orders: Sequence[Sequence[int]] = ((1,), (64,), (1, 8, 64))
                taken = ", ".join(f"{order} {each_of(answer, [inputs[n] for n in order]):.2f} ms" for order in orders)
                wrong = max(relative_error(answer(x), answers["one session"](x)) for x in inputs.values())
                tell(f"{layers} convolutions {kind}, {name}: rows {taken} a run; error {wrong:.1e}")


def on_device(session: ort.InferenceSession, x: np.ndarray, device: str) -> tuple[np.ndarray, float]:
    """The output, and the milliseconds of a run whose input and output stay on the device."""
    binding = session.io_binding()
    binding.bind_ortvalue_input("x", ort.OrtValue.ortvalue_from_numpy(x, device, 0))
    binding.bind_output("y", device, 0)

    def run() -> None:
        session.run_with_iobinding(binding)

    milliseconds = median_ms(run)
    return binding.copy_outputs_to_cpu()[0], milliseconds


def each_of(answer: Answer, xs: Sequence[np.ndarray]) -> float:
    """The milliseconds of a run, where these inputs follow one another."""

    def run() -> None:
        for x in xs:
            answer(x)

    return median_ms(run) / len(xs)


def median_ms(run: Callable[[], None]) -> float:
    run()
    taken = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        run()
        taken.append(time.perf_counter() - began)
    return 1000 * float(np.median(taken))


def in_float64(model: onnx.ModelProto, x: np.ndarray, device: str) -> np.ndarray:
    """What the graph computes, by PyTorch."""
    value = torch.from_numpy(x).double().to(device)
    for tensor in model.graph.initializer:
        weight = torch.from_numpy(numpy_helper.to_array(tensor).astype(np.float64)).to(device)
        groups = len(weight) // weight.shape[1] if weight.shape[1] == 1 else 1
        value = torch.nn.functional.conv2d(value, weight, padding=weight.shape[2] // 2, groups=groups)
    array: np.ndarray = value.cpu().numpy()
    return array


FACTS = {"machine": machine, "loads": loads, "precision": precision, "sizes": sizes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("fact", choices=FACTS)
    parser.add_argument("--device", default="cuda")
    arguments = parser.parse_args()
    FACTS[arguments.fact](arguments.device)


if __name__ == "__main__":
    main()
