"""The contestants: a graph in ONNX Runtime as the service runs it, and PyTorch. Each answers a batch in main memory.

All calls are host to host: before a call returns, the batch is copied into buffers that stay (page-locked if there is a
GPU), from there to the device, and the answer is copied back.
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import nn

from fold.artifact import TensorSpec
from fold.runtime import CudaOptions, device_number, open_session, provider_of
from fold.serving.buckets import Buckets
from fold.serving.cuda_runtime import CudaRuntime
from fold.serving.staging import Staging

Answer = Callable[[np.ndarray], np.ndarray]
"""Takes a batch and returns the only output, in float32."""
TYPES: dict[str, tuple[str, type]] = {"tensor(float)": ("FP32", np.float32), "tensor(uint8)": ("UINT8", np.uint8)}
"""Those of an input, by ONNX Runtime's name."""


def in_onnxruntime(
    graph: Path, device: str, sizes: Sequence[int], *, cuda: CudaOptions | None = None, copies: int = 1
) -> Answer:
    """A graph of one input and one output in the buckets of the service, warmed up; up to `copies` threads may call.
    As there, each size has a session of its own on a GPU."""
    options = cuda or CudaOptions()
    session = open_session(graph, provider=device, cuda=options)
    [given], [computed] = session.get_inputs(), session.get_outputs()
    datatype, dtype = TYPES[given.type]
    inputs = [TensorSpec(name=given.name, datatype=datatype, shape=(-1, *given.shape[1:]))]
    outputs = [TensorSpec(name=computed.name, datatype="FP32", shape=(-1, *computed.shape[1:]))]
    runtime = CudaRuntime(device_number(device)) if provider_of(session) == "cuda" else None

    def staging(size: int, position: int) -> Staging:
        if runtime is None:
            return Staging(session, inputs, outputs, size)
        opened = open_session(graph, provider=device, cuda=options) if position else session
        recorded = position + 1 if options.graphs else None
        return Staging(opened, inputs, outputs, size, cuda=runtime, graph=recorded)

    buckets = Buckets(sizes, copies, staging)
    buckets.warm_up({given.name: np.zeros((1, *given.shape[1:]), dtype)})
    return lambda x: buckets.run({given.name: x})[computed.name]


def in_torch(module: Callable[[torch.Tensor], torch.Tensor], device: str, *, half: bool = False) -> Answer:
    """`module` is on the device already. TF32 is off; `half` computes in float16 with the channels last."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    buffers: dict[int, torch.Tensor] = {}

    def answer(x: np.ndarray) -> np.ndarray:
        buffer = buffers.get(len(x))
        if buffer is None:
            buffer = torch.empty(x.shape, dtype=torch.from_numpy(x).dtype, pin_memory=device != "cpu")
            buffers[len(x)] = buffer
        buffer.numpy()[...] = x
        with torch.inference_mode():
            given = buffer.to(device, non_blocking=True)
            if half:
                given = given.to(torch.float16, memory_format=torch.channels_last)
            array: np.ndarray = module(given).float().cpu().numpy()
        return array

    return answer


def halved(module: nn.Module) -> nn.Module:
    """In float16, with the channels last."""
    return module.half().to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def relative_error(found: np.ndarray, truth: np.ndarray) -> float:
    """The error relative to the largest number of the truth; infinite if a number is not finite."""
    if found.shape != truth.shape or not np.isfinite(found).all():
        return float("inf")
    return float(np.abs(found - truth).max() / np.abs(truth).max())


def seconds_of(answer: Answer, x: np.ndarray, seconds: float) -> list[float]:
    """The time of each call, one after another, that begins within this many seconds; at least three."""
    taken: list[float] = []
    until = time.perf_counter() + seconds
    while len(taken) < 3 or time.perf_counter() < until:
        began = time.perf_counter()
        answer(x)
        taken.append(time.perf_counter() - began)
    return taken


def rate(answer: Answer, x: np.ndarray, threads: int, seconds: float) -> float:
    """Rows per second, with this many threads, each of which makes one call after another."""
    began = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        calls = sum(len(taken) for taken in pool.map(lambda _: seconds_of(answer, x, seconds), range(threads)))
    return calls * len(x) / (time.perf_counter() - began)
