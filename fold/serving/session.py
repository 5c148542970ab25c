"""One version of a model, opened in ONNX Runtime: what the batches run through, and the proof as well.

The very same session serves and is proven; nothing is opened a second time for the certificate. Where batch sizes come
in buckets, as they do on a GPU, the proof runs through these too.
"""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import numpy as np
import onnxruntime as ort

from fold.arrays import Arrays, Run
from fold.artifact import CANARY_FILE, DTYPES, Manifest, ModelVersion, check_canary
from fold.errors import BnfoldError
from fold.runtime import (
    SPIN_MICROSECONDS,
    CudaOptions,
    ProviderUnavailableError,
    cores,
    open_session,
    runtime_reason,
)
from fold.serving.buckets import Buckets, sizes_for
from fold.serving.faults import DeviceLostError, DeviceMemoryError, device_fault
from fold.serving.graph import Graph
from fold.serving.options import SessionOptions
from fold.serving.placement import Placement
from fold.serving.refusals import (
    CertificateError,
    refuse_elsewhere,
    refuse_other_graph,
    refuse_unknown_datatypes,
    refuse_unproven,
    refuse_without_cudnn,
)

FAST_SECONDS = 0.001
"""A model is fast if its smallest run, on one row or the smallest bucket, takes no longer."""
FAST_SPIN_MICROSECONDS = 500
"""The threads of fast models take a core from clients on the same machine that send many requests."""
FAST_THREADS = 2
"""Of a fast model. The second one is there because it spins for a while after each run: meanwhile no core sleeps, and
to wake one costs the next request as much as all the rest."""
SLOW_SECONDS = 0.05
"""A first run that takes so long is not of a fast model; it need not be tried again before the service is ready."""
TRIALS = 3
KNOWN_SHAPES = 4096
"""Shapes of runs that are remembered at most; clients choose the free dimensions, so there could be any number."""

T = TypeVar("T")


class ModelSession:
    """A version that is ready to serve: opened, warmed up and tried on its canary. `open` makes it."""

    def __init__(
        self,
        version: ModelVersion,
        graph: Graph,
        single_core: Graph | None,
        placement: Placement,
        options: SessionOptions,
        another: Callable[[], Graph],
    ) -> None:
        """`single_core` computes the same on one core; `another` opens `graph` once more."""
        self.version = version
        self.placement = placement
        self.provider = placement.provider
        self.lost: str | None = None
        """The code of the failure after which the device answered no more."""
        self.cold_shapes = 0
        """Runs on a GPU of shapes that were not warmed up, or, if it convolves, of other shapes than the run before:
        the device had to get ready for them while a client waited."""
        self._known_shapes: set[tuple[tuple[int, ...], ...]] = set()
        self._most_shapes = 1 if placement.keeps_plans else KNOWN_SHAPES
        self._graph = graph
        self._single_core = single_core
        self.single_core_runs = 0 if single_core is None else cores()
        """Runs on one core each that may take the place of one on all of them, where many requests wait."""
        self.batches_in_flight = options.batches_in_flight or (2 if self.provider == "cuda" else 1)
        self._thread: ThreadPoolExecutor | None = None
        if _records_graphs(options, placement):
            # ONNX Runtime keeps CUDA graphs by thread, and what runs beside a recording ends up in it: so this thread
            # runs everything.
            self.batches_in_flight = 1
            self._thread = ThreadPoolExecutor(1, f"cuda graphs of {version.path.parent.name}")
        self._buckets = Buckets.of(
            graph.session, lambda: another().session, version.manifest, placement, options, self.batches_in_flight
        )

    @classmethod
    def open(
        cls, version: ModelVersion, options: SessionOptions, halt: Callable[[], None] = lambda: None
    ) -> "ModelSession":
        """Open a version and try it; `halt` is called between the steps, and may raise.

        Raises `ProviderUnavailableError` if it cannot run on the device of the options, `CertificateError` if it is not
        certified or does not compute there what was proven, `BnfoldError` if ONNX Runtime cannot load or run the graph.

        On the CPU with `threads` 0, a fast model gets two threads at most, since it takes longer to wake more than they
        save. Any other model gets as many as ONNX Runtime likes, and with `batches_in_flight` 0 a second session for
        runs on one core each, which takes the weights' memory once more.
        """
        refuse_unproven(version)
        refuse_unknown_datatypes(version)
        halt()
        graph, placement = _open_graph(version, options, options.threads, options.spinning)
        if not options.allow_cpu_nodes:
            refuse_elsewhere(version, placement)
        single_core = None
        if not options.threads and placement.provider == "cpu":
            sizes = sizes_for(version.manifest, options, "cpu")
            if _is_fast(version, graph, rows=min(sizes, default=1)):
                threads = min(cores(), FAST_THREADS)
                graph, placement = _open_graph(version, options, threads, False, FAST_SPIN_MICROSECONDS)
            elif cores() > 1 and version.manifest.batched and not sizes and not options.batches_in_flight:
                single_core = Graph(open_session(version.model_file, provider="cpu", threads=1), version.manifest)
        halt()
        another = partial(_open_graph, version, options, options.threads, options.spinning)
        session = _attempt(
            version,
            lambda: cls(version, graph, single_core, placement, options, lambda: another()[0]),
            placement.gpu,
        )
        session._warm_up()
        halt()
        session._try_canary()
        return session

    @property
    def device(self) -> str:
        """As the setting names one: `cpu`, or `cuda:0` and so on."""
        return self.placement.name

    @property
    def bucket_sizes(self) -> tuple[int, ...]:
        """The batch sizes that are run; empty where every batch is run as large as it is."""
        return () if self._buckets is None else self._buckets.sizes

    @property
    def has_canary(self) -> bool:
        """Versions that were published before there were canaries have none."""
        return CANARY_FILE in self.version.manifest.files

    def run(self, inputs: Arrays) -> Arrays:
        """One run; several threads may call it. Outputs by name.

        Raises `DeviceMemoryError` or `DeviceLostError` where it was the device that failed.
        """
        try:
            return self._on_thread(lambda: self._run(inputs))
        except Exception as error:  # ONNX Runtime's exceptions share no base class but Exception
            fault = device_fault(error, self.placement.gpu)
            if fault is None:
                raise
            if isinstance(fault, DeviceLostError):
                self.lost = fault.code
            raise fault from error

    def run_on_one_core(self, inputs: Arrays) -> Arrays:
        """The same on one core, where there are `single_core_runs`."""
        assert self._single_core is not None
        return self._single_core.run(inputs)

    def run_in_all(self, inputs: Arrays) -> Arrays:
        """What is proven: the answers of all sessions that serve, the rows from each in turn."""
        outputs = self.run(inputs)
        if self._single_core is not None:
            for name, array in self._single_core.run(inputs).items():
                mixed = outputs[name].copy()
                mixed[1::2] = array[1::2]
                outputs[name] = mixed
        return outputs

    def _run(self, inputs: Arrays) -> Arrays:
        if self._buckets is not None:
            return self._buckets.run(inputs)
        if self.provider == "cuda":
            self._note_shape(inputs)
        return self._graph.run(inputs)

    def _note_shape(self, inputs: Arrays) -> None:
        shapes = tuple(array.shape for array in inputs.values())
        if shapes in self._known_shapes:
            return
        if len(self._known_shapes) >= self._most_shapes:
            self._known_shapes.clear()
        self._known_shapes.add(shapes)
        self.cold_shapes += 1

    def _warm_up(self) -> None:
        """Run on zeros, so that no request pays for what the first run sets up.

        Where a dimension beside the batch is free, no size is known to be valid: there the first request is the first.
        """
        row = _blank(self.version.manifest)
        if row is None:
            return
        buckets = self._buckets
        if buckets is None:
            _attempt(self.version, lambda: self.run_in_all(row), self.placement.gpu)
            self.cold_shapes = 0
        else:
            _attempt(self.version, lambda: self._on_thread(lambda: buckets.warm_up(row)), self.placement.gpu)
        if self.provider == "cuda":
            refuse_without_cudnn(self.version, self.placement)

    def _try_canary(self) -> None:
        """At each batch size that is run. Raises `CertificateError` if this session, with its device and options, does
        not compute what was proven."""
        if not self.has_canary:
            return
        at_each_size: list[Run] = [partial(self._run_at, size) for size in self.bucket_sizes]
        for run in at_each_size or [self.run_in_all]:
            self._check_canary(run)

    def _check_canary(self, run: Run) -> None:
        failure = check_canary(
            self.version.path, lambda inputs: _attempt(self.version, lambda: run(inputs), self.placement.gpu)
        )
        if failure is not None:
            raise CertificateError(
                f"{self.version.model_file}: its certificate does not hold here, on {self.provider}: {failure}; "
                "compare with bnfold verify, and fold the model again"
            )

    def _run_at(self, size: int, inputs: Arrays) -> Arrays:
        buckets = self._buckets
        assert buckets is not None
        return self._on_thread(lambda: buckets.run_at(size, inputs))

    def _on_thread(self, work: Callable[[], T]) -> T:
        """The outcome of `work`, which runs on the thread that all runs need, if there is one."""
        return work() if self._thread is None else self._thread.submit(work).result()


def _open_graph(
    version: ModelVersion,
    options: SessionOptions,
    threads: int,
    spinning: bool,
    spin_microseconds: int = SPIN_MICROSECONDS,
) -> tuple[Graph, Placement]:
    cuda = CudaOptions(
        tf32=version.manifest.tf32,
        conv_search=options.conv_search,
        graphs=options.cuda_graphs,
        nhwc=options.nhwc,
        memory_limit=options.gpu_memory_limit_bytes,
    )
    session = open_session(
        version.model_file,
        provider=options.device,
        threads=threads,
        spinning=spinning,
        spin_microseconds=spin_microseconds,
        cuda=cuda,
        record_placement=True,
    )
    refuse_other_graph(version, session)
    placement = Placement.of(session)
    run_options = ort.RunOptions()
    if _records_graphs(options, placement):  # only at a bucket's fixed addresses, which have options of their own
        run_options.add_run_config_entry("gpu_graph_id", "-1")
    return Graph(session, version.manifest, run_options), placement


def _records_graphs(options: SessionOptions, placement: Placement) -> bool:
    return options.cuda_graphs and placement.provider == "cuda"


def _is_fast(version: ModelVersion, graph: Graph, rows: int) -> bool:
    """Whether a run on so many rows, the fewest that it is run on, takes no longer than `FAST_SECONDS`."""
    inputs = _blank(version.manifest, rows)
    if inputs is None:
        return False
    for _ in range(TRIALS):  # the first takes longer
        began = time.perf_counter()
        _attempt(version, lambda: graph.run(inputs))
        seconds = time.perf_counter() - began
        if seconds <= FAST_SECONDS or seconds > SLOW_SECONDS:
            return seconds <= FAST_SECONDS
    return False


def _blank(manifest: Manifest, rows: int = 1) -> Arrays | None:
    """Inputs of so many rows of zeros; None where the size of a dimension beside the batch is free."""
    batch = 1 if manifest.batched else 0
    if any(-1 in spec.shape[batch:] for spec in manifest.inputs):
        return None
    blank: Arrays = {}
    for spec in manifest.inputs:
        shape = [rows] * batch + list(spec.shape[batch:])
        is_text = spec.datatype == "BYTES"
        blank[spec.name] = np.full(shape, "", np.object_) if is_text else np.zeros(shape, DTYPES[spec.datatype])
    return blank


def _attempt(version: ModelVersion, work: Callable[[], T], gpu: int | None = None) -> T:
    """The outcome of `work`, on a GPU by its number. Raises `ProviderUnavailableError` if the GPU is at fault, and
    `BnfoldError` if the graph is."""
    try:
        return work()
    except ProviderUnavailableError:
        raise
    except Exception as error:  # ONNX Runtime's exceptions share no base class but Exception
        known = isinstance(error, DeviceMemoryError | DeviceLostError)
        reason = runtime_reason(error.__cause__ or error)
        fault = None if gpu is None else error if known else device_fault(error, gpu)
        if isinstance(fault, DeviceMemoryError):
            raise ProviderUnavailableError(
                f"{version.model_file}: too little memory on the device: {reason}; set BNFOLD_BUCKETS or "
                "BNFOLD_MAX_BATCH_SIZE to less, or use --device cpu"
            ) from error
        if fault is not None:
            raise ProviderUnavailableError(f"{version.model_file}: {fault}") from error
        raise BnfoldError(
            f"{version.model_file}: a run before serving fails: {reason}; fold the model again"
        ) from error
