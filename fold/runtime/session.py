"""The one place where ONNX Runtime sessions are made, so that what is proven is what is served.

Every session of ours has the same options: telemetry off, the faulty MatMul+BatchNorm fusion off (it gives wrong
numbers when sizes coincide), products with integer weights in float32, TF32 off unless asked for, and no silent fall
back from a GPU to the CPU.
"""

import contextlib
import io
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import onnxruntime as ort

from fold.errors import BnfoldError, first_line, is_out_of_memory
from fold.runtime.cpus import physical_cores
from fold.runtime.devices import (
    PROVIDERS,
    Provider,
    ProviderUnavailableError,
    cuda_devices,
    device_number,
    resolve_provider,
)
from fold.runtime.running import in_flight, run_options

if TYPE_CHECKING:
    import onnx_ir as ir

FAULTY_OPTIMIZERS = ["MatMul_BatchNormalization_Fusion"]
"""Optimizers of ONNX Runtime 1.31 that compute wrong results: this one ignores where the channel axis went."""

FLOAT32_PRODUCTS = "1"
"""The most exact of ONNX Runtime's accuracy levels; 4, int8, is its default."""

SPIN_MICROSECONDS = 1000
"""Longer than most operators take, and than the pause between two requests of a client that sends one after another.
ONNX Runtime's default is a million iterations of a loop, many milliseconds of whole cores after each run."""

SHAPE_OPERATORS = frozenset(
    {
        *("Shape", "Size", "Range", "ConstantOfShape", "Cast", "Where"),
        *("Concat", "Expand", "Gather", "Reshape", "Slice", "Split", "Squeeze", "Unsqueeze"),
        *("Add", "Ceil", "Div", "Floor", "Max", "Min", "Mod", "Mul", "Sub"),
        *("And", "Equal", "Greater", "Less", "Not", "Or"),
        *("ReduceMax", "ReduceMin", "ReduceProd", "ReduceSum"),
    }
)
"""Operators that compute the dimensions of tensors: ONNX Runtime leaves these few integers on the CPU by design."""


DECORATION = re.compile(
    r"^\[ONNXRuntimeError\] : \d+ : [A-Z_]+ : (Load model from .*? failed:)?"
    r"(\S+\.(cc|h):\d+ ([^()]*::[^()]*\(.*?\) |\w+ ))?(This is an invalid model\. )?(Error: )?"
)
"""What ONNX Runtime writes before the reason of a failure: a code, the file, its own source position."""
CODE = re.compile(
    r"\[ONNXRuntimeError\] : \d+ : ([A-Z_]+)|\b((?:CUDA|CUDNN|CUDNN_FE|CUBLAS) (?:failure|error)[ :]+\d+)"
)
POSITION = re.compile(r"\S+\.(?:cc|h|cu|cuh):\d+ (?:[^()]*::[^()]*\(.*?\) )?")
"""A position in its own source, which may stand within a sentence, too."""
OF_DEVICE = re.compile(r"\b(?:CUDA|CUDNN|CUDNN_FE|CUBLAS) failure -?\d+: .*?(?= ; GPU=|$)")
"""What a library of the device said. ONNX Runtime adds the host's name, its own source position and expression."""
SOURCE_POSITION = re.compile(r"\.(cc|h|cu|cpp):\d+")
"""What shows that an exception without a code is of C++, too."""


@dataclass(frozen=True)
class CudaOptions:
    """Options of ONNX Runtime's CUDA provider.

    `tf32` rounds the factors of matrix products and convolutions of float32 to 11 bits; without it, no type has tensor
    cores. cuDNN's algorithm for a new shape is the first of its `heuristic` mode A, or with `exhaustive` of mode B,
    which takes longer to choose; neither tries any. `graphs` records the kernels of a batch size once and launches them
    as one, for inputs at fixed addresses; `nhwc` lays tensors out with the channels last. `memory_limit`, in bytes, is
    of the arena, which holds everything but weights and libraries.
    """

    tf32: bool = False
    conv_search: Literal["heuristic", "exhaustive"] = "heuristic"
    graphs: bool = False
    nhwc: bool = False
    memory_limit: int | None = None

    def entries(self, device: int) -> dict[str, str]:
        """As the provider takes them."""
        entries = {
            "device_id": str(device),
            "use_tf32": str(int(self.tf32)),
            "cudnn_conv_algo_search": self.conv_search.upper(),
            "arena_extend_strategy": "kSameAsRequested",
            "do_copy_in_default_stream": "1",  # copies in other streams race with the reuse of the arena's memory
        }
        if self.graphs:
            entries["enable_cuda_graph"] = "1"
        if self.nhwc:
            entries["prefer_nhwc"] = "1"
        if self.memory_limit is not None:
            entries["gpu_mem_limit"] = str(self.memory_limit)
        return entries


def open_session(
    model: Path | bytes,
    *,
    provider: Provider = "auto",
    threads: int = 0,
    spinning: bool = False,
    spin_microseconds: int = SPIN_MICROSECONDS,
    cuda: CudaOptions = CudaOptions(),
    record_placement: bool = False,
    optimised: bool = True,
    as_shipped: bool = False,
) -> ort.InferenceSession:
    """Open `model` (a file, or a serialised ModelProto) on one provider.

    `threads` counts the threads inside one operator, 0 is one for each core that this process may use. Without work
    they spin for `spin_microseconds` before they sleep, and with `spinning` far longer, which burns whole cores. `cuda`
    is used on a GPU only; `record_placement` is needed for `placement`; without `optimised` the graph runs node by node
    as it is written. With `as_shipped` optimizers that are known to be wrong run as well, as in other programs. Raises
    `ProviderUnavailableError` if a GPU was asked for and the session would not run there, `BnfoldError` if the model
    cannot be loaded.
    """
    # 1. How it computes
    wanted, missing = resolve_provider(provider), list[str]()
    options = ort.SessionOptions()
    options.log_severity_level = 4  # what fails is raised, and warnings of the optimizer are not the user's business
    options.intra_op_num_threads = threads or physical_cores()  # its own choice ignores affinity and quotas
    if not as_shipped:  # it rounds what a MatMul reads to int8 if its weights are integers behind a DequantizeLinear
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", FLOAT32_PRODUCTS)
    if record_placement:
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if not optimised:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    # Between two operators threads take longer to wake than many an operator does; where a GPU computes they only wait.
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spinning or wanted == "cpu" else "0")
    if wanted == "cpu" and not spinning:
        options.add_session_config_entry("session.intra_op.spin_duration_us", str(spin_microseconds))
    # 2. Where
    providers: list[Any] = [PROVIDERS["cpu"]]
    if wanted == "cuda":
        number = _present_device(provider)
        # What fails is raised, too. It warns of each session that the provider is no plug-in.
        ort.set_default_logger_severity(4)
        missing = _preload()
        options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
        providers = [(PROVIDERS["cuda"], cuda.entries(number))]
    # 3. Open it, and check that it runs there
    source = model if isinstance(model, bytes) else str(model)
    try:
        with in_flight:
            session = ort.InferenceSession(
                source,
                options,
                providers=providers,
                disabled_optimizers=None if as_shipped else FAULTY_OPTIMIZERS,
                enable_fallback=0,
            )
    except Exception as error:  # ONNX Runtime's exceptions share no base class but Exception
        text = runtime_reason(error)
        if wanted == "cuda":
            hint = "it has too little memory" if is_out_of_memory(error) else "check the driver"
            raise ProviderUnavailableError(f"device cuda: {text}; {hint}, or use --device cpu") from error
        name = "the model" if isinstance(model, bytes) else str(model)
        raise BnfoldError(f"{name}: ONNX Runtime cannot load it: {text}") from error
    if provider_of(session) != wanted:
        reason = "fell back to the CPU; check CUDA and cuDNN"
        if missing:
            reason = f"found no {', '.join(missing)}; install bnfold[gpu]"
        raise ProviderUnavailableError(f"device cuda: ONNX Runtime {reason}, or use --device cpu")
    return session


def _preload() -> list[str]:
    """Load CUDA's libraries from their wheels, or as the system finds them; the names of those that are missing."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        ort.preload_dlls()
    return re.findall(r"^Failed to load (\S+?):", printed.getvalue(), re.MULTILINE)


def optimised_operators(model: Path) -> list[str] | None:
    """The operators, without constants, that ONNX Runtime leaves of a graph on every provider: its basic optimisations
    fold BatchNorms. None if it cannot write that graph, such as one of more than 2 GB."""
    import onnx  # noqa: PLC0415  # a service does not load it

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "optimised.onnx"
        options.optimized_model_filepath = str(written)
        try:
            with in_flight:
                ort.InferenceSession(
                    str(model), options, providers=[PROVIDERS["cpu"]], disabled_optimizers=FAULTY_OPTIMIZERS
                )
            graph = onnx.load(written, load_external_data=False).graph
        except Exception:  # ONNX Runtime's and protobuf's exceptions share no base class but Exception
            return None
    return [node.op_type for node in graph.node if node.op_type != "Constant"]


def runtime_reason(error: BaseException) -> str:
    """The reason in an exception of ONNX Runtime, without its code, the file and the position in its own source."""
    of_device = OF_DEVICE.search(first_line(error))
    return POSITION.sub("", DECORATION.sub("", first_line(error))) if of_device is None else of_device[0]


def runtime_code(error: BaseException) -> str:
    """What ONNX Runtime and CUDA call a failure, such as `INVALID_ARGUMENT`; else the exception's class."""
    codes = dict.fromkeys(part for found in CODE.findall(str(error)) for part in found if part)
    return ", ".join(codes) or type(error).__name__


def without_runtime_words(error: BaseException) -> str:
    """The text of an exception with the runtime's code in place of its words, which have names of hosts, paths and the
    content of tensors: what others than the operator may read."""
    text = first_line(error)
    cause: BaseException | None = error
    while cause is not None:
        if _is_of_runtime(cause):
            for said in (str(cause), first_line(cause), runtime_reason(cause)):
                text = text.replace(said, runtime_code(cause)) if said else text
        cause = cause.__cause__
    return text


def _is_of_runtime(error: BaseException) -> bool:
    """Whether an exception is of C++: not all of them have ONNX Runtime's classes."""
    package, text = type(error).__module__.partition(".")[0], str(error)
    if package in ("fold", "service"):
        return False
    return package == "onnxruntime" or CODE.search(text) is not None or SOURCE_POSITION.search(text) is not None


def _present_device(provider: Provider) -> int:
    """The number of a GPU that is here. Raises `ProviderUnavailableError` if it is not."""
    if PROVIDERS["cuda"] not in ort.get_available_providers():
        raise ProviderUnavailableError(
            "device cuda: this ONNX Runtime has no CUDA provider; install bnfold[gpu], or use --device cpu"
        )
    number, present = device_number(provider), cuda_devices()
    if not present:
        raise ProviderUnavailableError(
            "device cuda: no NVIDIA driver or device is visible here; check nvidia-smi, or use --device cpu"
        )
    if number >= present:
        raise ProviderUnavailableError(f"device {provider}: {present} GPUs are visible here, counted from 0")
    return number


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


def computed_elsewhere(session: ort.InferenceSession) -> list[str]:
    """Operator types that compute with more than shapes on another provider than the session's, ascending. The session
    was opened with `record_placement`."""
    first = session.get_providers()[0]
    elsewhere = (types for provider, types in placement(session).items() if provider != first)
    return sorted({op_type for types in elsewhere for op_type in types} - SHAPE_OPERATORS)


def run(session: ort.InferenceSession, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """One run, outputs by name. Raises `BnfoldError` if the graph cannot take these inputs."""
    names = [output.name for output in session.get_outputs()]
    try:
        with in_flight:
            found = session.run(names, inputs, run_options())
    except Exception as error:  # ONNX Runtime's exceptions share no base class but Exception
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in inputs.items())
        raise BnfoldError(
            f"ONNX Runtime cannot run the graph on inputs of shape {shapes}: {runtime_reason(error)}"
        ) from error
    return dict(zip(names, found, strict=True))


def open_graph(
    model: "ir.Model",
    *,
    provider: Provider = "cpu",
    optimised: bool = True,
    cuda: CudaOptions = CudaOptions(),
) -> ort.InferenceSession:
    """Open a graph in memory through a file: as bytes it might not fit into protobuf.

    Its weights are in a file of their own, which ONNX Runtime maps. Weights in the graph's file are copied twice: of
    ResNet-50 a session that is not optimised takes 0.1 s and 100 MB of mapped file, instead of 0.5 s and 300 MB.
    """
    from fold.graph import save_graph  # noqa: PLC0415

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        save_graph(model, path, apart=True)
        return open_session(path, provider=provider, optimised=optimised, cuda=cuda)
