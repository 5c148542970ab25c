"""The one place where ONNX Runtime sessions are made, so that what is proven is what is served.

Every session of ours has the same options: telemetry off, the faulty MatMul+BatchNorm fusion off (it gives wrong
numbers when sizes coincide), TF32 off unless asked for, and no silent fall back from a GPU to the CPU.
"""

import ctypes
import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read when onnxruntime is first imported

from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime as ort

from fold.errors import BnfoldError, first_line

Provider = Literal["auto", "cpu", "cuda"]

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
"""ONNX Runtime's names for them."""

FAULTY_OPTIMIZERS = ["MatMul_BatchNormalization_Fusion"]
"""Optimizers of ONNX Runtime 1.31 that compute wrong results: this one ignores where the channel axis went."""


class ProviderUnavailableError(BnfoldError):
    """A provider was asked for by name and this machine or this build of ONNX Runtime does not have it."""


def resolve_provider(provider: Provider) -> Literal["cpu", "cuda"]:
    """`auto` is CUDA where this build of ONNX Runtime has it and a device answers, else the CPU."""
    if provider != "auto":
        return provider
    return "cuda" if PROVIDERS["cuda"] in ort.get_available_providers() and cuda_devices() else "cpu"


def cuda_devices() -> int:
    """How many CUDA devices the driver sees; 0 where there is no driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


def open_session(
    model: Path | bytes,
    *,
    provider: Provider = "auto",
    threads: int = 0,
    spinning: bool = False,
    tf32: bool = False,
    record_placement: bool = False,
    optimised: bool = True,
) -> ort.InferenceSession:
    """Open `model` (a file, or a serialised ModelProto) on one provider.

    `threads` counts the threads inside one operator, 0 leaves it to ONNX Runtime; they spin while a run lasts, and
    with `spinning` between two runs as well, which burns whole cores; `record_placement` lets `placement` tell
    where each node runs; without `optimised` the graph runs node by node as it is written. Raises
    `ProviderUnavailableError` if `cuda` was asked for and the session would not run there, `BnfoldError` if the
    model cannot be loaded.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 4  # what fails is raised, and warnings of the optimizer are not the user's business
    if threads:
        options.intra_op_num_threads = threads
    if record_placement:
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if not optimised:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    wanted = resolve_provider(provider)
    # Between two operators threads take longer to wake than many an operator does; where a GPU computes they only wait.
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spinning or wanted == "cpu" else "0")
    options.add_session_config_entry("session.force_spinning_stop", "0" if spinning else "1")
    providers: list[Any]
    if wanted == "cuda":
        if PROVIDERS["cuda"] not in ort.get_available_providers():
            raise ProviderUnavailableError(
                "provider cuda: this ONNX Runtime has no CUDA provider; install bnfold[gpu], or use --provider cpu"
            )
        if not cuda_devices():
            raise ProviderUnavailableError(
                "provider cuda: no NVIDIA driver or device is visible here; check nvidia-smi, or use --provider cpu"
            )
        ort.preload_dlls()
        options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
        cuda_options = {
            "use_tf32": "1" if tf32 else "0",
            "cudnn_conv_algo_search": "HEURISTIC",
            "arena_extend_strategy": "kSameAsRequested",
            "do_copy_in_default_stream": "1",
        }
        providers = [(PROVIDERS["cuda"], cuda_options)]
    else:
        providers = [PROVIDERS["cpu"]]
    source = model if isinstance(model, bytes) else str(model)
    name = "the model" if isinstance(model, bytes) else str(model)
    try:
        session = ort.InferenceSession(
            source, options, providers=providers, disabled_optimizers=FAULTY_OPTIMIZERS, enable_fallback=0
        )
    except Exception as error:  # ONNX Runtime's exceptions share no base class but Exception
        text = first_line(error)
        if wanted == "cuda":
            raise ProviderUnavailableError(f"provider cuda: {text}; check the driver, or use --provider cpu") from error
        raise BnfoldError(f"{name}: ONNX Runtime cannot load it: {text}") from error
    if provider_of(session) != wanted:
        raise ProviderUnavailableError(
            "provider cuda: ONNX Runtime fell back to the CPU; check CUDA and cuDNN, or use --provider cpu"
        )
    return session


def provider_of(session: ort.InferenceSession) -> str:
    """Where a session runs: `cpu` or `cuda`."""
    first = session.get_providers()[0]
    return next((name for name, known in PROVIDERS.items() if known == first), first)


def placement(session: ort.InferenceSession) -> dict[str, list[str]]:
    """Operator types of the nodes on each provider, for a session opened with `record_placement`."""
    nodes: dict[str, list[str]] = {}
    for part in session.get_provider_graph_assignment_info():
        nodes.setdefault(part.ep_name, []).extend(node.op_type for node in part.get_nodes())
    return nodes


def run(session: ort.InferenceSession, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """One run, outputs by name. Raises `BnfoldError` if the graph cannot take these inputs."""
    names = [output.name for output in session.get_outputs()]
    try:
        return dict(zip(names, session.run(names, inputs), strict=True))
    except Exception as error:  # ONNX Runtime's exceptions share no base class but Exception
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in inputs.items())
        raise BnfoldError(
            f"ONNX Runtime cannot run the graph on inputs of shape {shapes}: {first_line(error)}"
        ) from error
