"""One version of a model, opened in ONNX Runtime: what the batches run through, and the proof as well.

The very same session serves and is proven; nothing is opened a second time for the certificate. Where batch sizes come
in buckets, as they do on a GPU, the proof runs through these too.
"""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import onnxruntime as ort

from fold.arrays import Arrays
from fold.artifact import CANARY_FILE, DATATYPES, ModelVersion, check_canary, powers_of_two
from fold.errors import BnfoldError, first_line
from fold.runtime import (
    SPIN_MICROSECONDS,
    CudaOptions,
    ProviderUnavailableError,
    computed_elsewhere,
    cores,
    loaded_cudnn,
    open_session,
    placement,
    provider_of,
)
from service.protocol import DTYPES, Signature
from service.runtime.bfloat16 import run_with_bfloat16
from service.runtime.buckets import Buckets
from service.runtime.faults import DeviceLostError, device_fault
from service.runtime.pinned import pageable, pinned
from service.runtime.placement import Placement
from service.runtime.staging import Staging
from service.settings import Settings

SHORT_SECONDS = 0.001
SHORT_SPIN_MICROSECONDS = 500
"""Their threads take a core from clients on the same machine that send many requests."""
SHORT_THREADS = 2
"""That the second one spins for a while after each run is worth more than what it computes: meanwhile no core sleeps,
from which to wake costs a lone client's next request as much as all the rest."""
LONG_SECONDS = 0.05
"""A run that takes so long is no short one's first, and need not be tried again before the service is ready."""
TRIALS = 3
KNOWN_SHAPES = 4096
"""Shapes of runs that are remembered; clients choose the free dimensions, so there could be any number."""
CONVOLUTIONS = frozenset({"Conv", "ConvTranspose", "FusedConv", "NhwcConv", "NhwcFusedConv"})

T = TypeVar("T")


class CertificateError(BnfoldError):
    """The certificate of a version does not hold where it was to be served."""


class ModelSession:
    def __init__(self, session: ort.InferenceSession, version: ModelVersion, settings: Settings) -> None:
        self.version = version
        self._refuse_unknown_datatypes()
        self.signature = Signature.of(version.manifest)
        self._session = session
        self._outputs = [spec.name for spec in version.manifest.outputs]
        specs = (*version.manifest.inputs, *version.manifest.outputs)
        self._has_bfloat16 = any(spec.datatype == "BF16" for spec in specs)
        self.provider = provider_of(session)
        self._refuse_other_graph()
        self.placed = Placement.of(session)
        self.lost: str | None = None
        """What the device said when it answered no more."""
        self.cold_shapes = 0
        """Runs on a GPU of shapes that were not warmed up: the device had to get to know them while a client waited."""
        self._known_shapes: set[tuple[tuple[int, ...], ...]] = set()
        self.batches_in_flight = settings.batches_in_flight or (2 if self.provider == "cuda" else 1)
        graphs = settings.cuda_graphs and self.provider == "cuda"
        self.narrow_runs = 0
        """Runs on one core each that may take the place of one on all of them, where many requests wait."""
        self._narrow: ort.InferenceSession | None = None
        self._options = ort.RunOptions()
        self._thread: ThreadPoolExecutor | None = None
        if graphs:
            # ONNX Runtime keeps graphs by thread, and what runs beside a recording ends up in it: so whoever asks, this
            # thread runs. Without a bucket's fixed addresses nothing may be recorded, and launched again.
            self.batches_in_flight = 1
            self._thread = ThreadPoolExecutor(1, f"cuda graphs of {version.path.parent.name}")
            self._options.add_run_config_entry("gpu_graph_id", "-1")
        self._buckets = self._open_buckets(settings)

    @classmethod
    def open(cls, version: ModelVersion, settings: Settings) -> "ModelSession":
        """Raises `BnfoldError` if ONNX Runtime cannot load the graph, or not on this device.

        With `threads` 0 a model whose run on one row takes no longer than `SHORT_SECONDS` gets two threads at most, for
        to wake more takes longer than they save; any other model gets as many as ONNX Runtime likes, and with
        `batches_in_flight` 0 a second session for runs on one core each, which takes the weights' memory once more.
        """
        cuda = CudaOptions(
            tf32=version.manifest.precision == "tf32",
            conv_search=settings.conv_search,
            graphs=settings.cuda_graphs,
            nhwc=settings.nhwc,
            memory_limit=settings.gpu_memory_limit_bytes,
        )

        def opened(threads: int, spinning: bool, spin_microseconds: int = SPIN_MICROSECONDS) -> ModelSession:
            session = open_session(
                version.model_file,
                provider=settings.device,
                threads=threads,
                spinning=spinning,
                spin_microseconds=spin_microseconds,
                cuda=cuda,
                record_placement=True,
            )
            return cls(session, version, settings)

        first = opened(settings.threads, settings.spinning)
        first._refuse_elsewhere(allowed=settings.allow_cpu_nodes)
        if settings.threads or first.provider != "cpu":
            return first
        if first._is_short():
            return opened(min(cores(), SHORT_THREADS), False, SHORT_SPIN_MICROSECONDS)
        if cores() > 1 and not settings.batches_in_flight and first._buckets is None and first.signature.batched:
            first._narrow = open_session(version.model_file, provider="cpu", threads=1)
            first.narrow_runs = cores()
        return first

    @property
    def device(self) -> str:
        """As the setting names one: `cpu`, or `cuda:0` and so on."""
        return self.placed.name

    @property
    def bucket_sizes(self) -> tuple[int, ...]:
        """The batch sizes that are run; empty where every batch is run as large as it is."""
        return () if self._buckets is None else self._buckets.sizes

    def run(self, inputs: Arrays) -> Arrays:
        """One run; several threads may call it. Outputs by name.

        Raises `DeviceMemoryError` or `DeviceLostError` where it was the device that failed.
        """
        try:
            return self._run(inputs) if self._thread is None else self._thread.submit(self._run, inputs).result()
        except Exception as error:  # ONNX Runtime's exceptions share no base class but Exception
            fault = device_fault(error)
            if fault is None:
                raise
            text = first_line(error)
            if fault is DeviceLostError:
                self.lost = text
                raise DeviceLostError(f"the device is lost: {text}; the service must be started anew") from error
            raise fault(f"no memory on the device: {text}; send fewer rows, or try again") from error

    def run_on_one_core(self, inputs: Arrays) -> Arrays:
        """The same on one core, by a session that is there if there are `narrow_runs`."""
        assert self._narrow is not None
        return self._call(self._narrow, inputs)

    def run_in_all(self, inputs: Arrays) -> Arrays:
        """What is proven: the answers of all sessions that serve, the rows from each in turn."""
        outputs = self.run(inputs)
        if self._narrow is not None:
            for name, array in self.run_on_one_core(inputs).items():
                mixed = outputs[name].copy()
                mixed[1::2] = array[1::2]
                outputs[name] = mixed
        return outputs

    def _run(self, inputs: Arrays) -> Arrays:
        if self._buckets is not None:
            rows = len(next(iter(inputs.values())))
            if rows:
                return self._buckets.run(inputs, rows)
        elif self.provider == "cuda":
            self._note_shape(inputs)
        return self._call(self._session, inputs)

    def _call(self, session: ort.InferenceSession, inputs: Arrays) -> Arrays:
        # A binary tensor begins where the JSON before it happened to end, and kernels may load aligned.
        feeds = {name: a if a.flags.aligned else a.copy() for name, a in inputs.items()}
        if self._has_bfloat16:
            return dict(
                zip(self._outputs, run_with_bfloat16(session, self._outputs, feeds, self._options), strict=True)
            )
        return dict(zip(self._outputs, session.run(self._outputs, feeds, self._options), strict=True))

    def _note_shape(self, inputs: Arrays) -> None:
        shapes = tuple(array.shape for array in inputs.values())
        if shapes not in self._known_shapes and len(self._known_shapes) < KNOWN_SHAPES:
            self._known_shapes.add(shapes)
            self.cold_shapes += 1

    def _open_buckets(self, settings: Settings) -> Buckets | None:
        """None where batches are run as they are: on the CPU unless sizes are given, and where the sizes of tensors are
        not known beforehand."""
        sizes = bucket_sizes(settings, self.provider)
        manifest = self.version.manifest
        specs = (*manifest.inputs, *manifest.outputs)
        if not sizes or not manifest.batched or not manifest.inputs:
            return None
        if any(-1 in spec.shape[1:] or spec.datatype not in DATATYPES for spec in specs):
            return None
        device = self.placed.device if self.provider == "cuda" else None
        allocate = (pinned(device) if device is not None else None) or pageable
        return Buckets(
            sizes,
            self.batches_in_flight,
            lambda size, position: Staging(
                self._session,
                manifest.inputs,
                manifest.outputs,
                size,
                allocate=allocate,
                device=device,
                graph=position + 1 if settings.cuda_graphs and device is not None else None,
            ),
        )

    def warm_up(self) -> None:
        """Run once on zeros, so that no request pays for what the first run sets up.

        Where a dimension beside the batch is free, no size is known to be valid: there the first request is the first.
        Raises `ProviderUnavailableError` for convolutions on a GPU without cuDNN.
        """
        row = self._blank_row()
        if row is None:
            return
        buckets, thread = self._buckets, self._thread
        if buckets is None:
            self._attempt(row)
            self.cold_shapes = 0
        else:
            self._try(lambda: buckets.warm_up(row) if thread is None else thread.submit(buckets.warm_up, row).result())
        self._refuse_without_cudnn()

    def _blank_row(self) -> Arrays | None:
        specs = self.version.manifest.inputs
        batch = 1 if self.signature.batched else 0
        if any(-1 in spec.shape[batch:] for spec in specs):
            return None
        shapes = {spec.name: [1] * batch + list(spec.shape[batch:]) for spec in specs}
        return {spec.name: _blank(shapes[spec.name], spec.datatype) for spec in specs}

    def _is_short(self) -> bool:
        row = self._blank_row()
        if row is None:
            return False
        for _ in range(TRIALS):  # the first takes longer
            began = time.perf_counter()
            self._attempt(row)
            seconds = time.perf_counter() - began
            if seconds <= SHORT_SECONDS or seconds > LONG_SECONDS:
                return seconds <= SHORT_SECONDS
        return False

    @property
    def has_canary(self) -> bool:
        """Versions that were published before there were canaries have none."""
        return CANARY_FILE in self.version.manifest.files

    def try_canary(self) -> None:
        """Raises `CertificateError` if this session, with its device and options, does not compute what was proven."""
        failure = check_canary(self.version.path, self._attempt) if self.has_canary else None
        if failure is not None:
            raise CertificateError(
                f"{self.version.model_file}: its certificate does not hold here, on {self.provider}: {failure}; "
                "compare with bnfold verify, and fold the model again"
            )

    def _attempt(self, inputs: Arrays) -> Arrays:
        return self._try(lambda: self.run_in_all(inputs))

    def _try(self, work: Callable[[], T]) -> T:
        try:
            return work()
        except Exception as error:  # ONNX Runtime's exceptions share no base class but Exception
            raise BnfoldError(
                f"{self.version.model_file}: a run before serving fails: {first_line(error)}; fold the model again"
            ) from error

    def _refuse_unknown_datatypes(self) -> None:
        manifest = self.version.manifest
        for spec in (*manifest.inputs, *manifest.outputs):
            if spec.datatype not in DTYPES:
                known = ", ".join(DTYPES)
                raise BnfoldError(
                    f"tensor {spec.name!r} is {spec.datatype}, which is not served; expected one of {known}"
                )

    def _refuse_elsewhere(self, *, allowed: bool) -> None:
        """Half a model on the CPU is slower than all of it there: nobody means that."""
        elsewhere = computed_elsewhere(self._session) if self.provider == "cuda" else []
        if elsewhere and not allowed:
            raise ProviderUnavailableError(
                f"{self.version.model_file}: {', '.join(elsewhere)} would compute on the CPU, where this ONNX Runtime "
                "has no CUDA kernel for them; set BNFOLD_ALLOW_CPU_NODES=1, or serve it with --device cpu"
            )

    def _refuse_without_cudnn(self) -> None:
        """ONNX Runtime loads it when a convolution first runs, and may do without it, many times slower."""
        types = {op_type for kinds in placement(self._session).values() for op_type in kinds}
        if self.provider == "cuda" and types & CONVOLUTIONS and loaded_cudnn() is None:
            raise ProviderUnavailableError(
                f"{self.version.model_file}: it convolves, and ONNX Runtime found no cuDNN here; install bnfold[gpu], "
                "or serve it with --device cpu"
            )

    def _refuse_other_graph(self) -> None:
        """The manifest is what requests are checked against, so it must tell of this graph."""
        manifest = self.version.manifest
        for kind, specs, nodes in (
            ("inputs", manifest.inputs, self._session.get_inputs()),
            ("outputs", manifest.outputs, self._session.get_outputs()),
        ):
            said = sorted(spec.name for spec in specs)
            has = sorted(node.name for node in nodes)
            if said != has:
                raise BnfoldError(
                    f"{self.version.model_file}: its {kind} are {has}, the manifest says {said}; fold the model again"
                )


def _blank(shape: list[int], datatype: str) -> np.ndarray:
    return np.full(shape, "", np.object_) if datatype == "BYTES" else np.zeros(shape, DTYPES[datatype])


def bucket_sizes(settings: Settings, provider: str) -> tuple[int, ...]:
    """The batch sizes that the setting names for this provider; none where each batch keeps its own."""
    if settings.buckets == "auto":
        return powers_of_two(settings.max_batch_size) if provider == "cuda" else ()
    if settings.buckets == "off":
        return ()
    given = {int(size) for size in settings.buckets.split(",")}
    return (*sorted(size for size in given if size < settings.max_batch_size), settings.max_batch_size)
